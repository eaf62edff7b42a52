"""What two methods or more use."""

from collections.abc import Sequence


def holes(template: str, names: Sequence[str], n: int = 0) -> list[str]:
    """One text per name: "{ctx} {name}." -> "{16} dog."

    Of several {ctx} each takes n // k tokens and the last one the rest. Underscores in names become spaces
    and their braces are escaped. ValueError for a template without {name}.
    """
    k = template.count("{ctx}")
    if "{name}" not in template:
        raise ValueError(
            f'the template {template!r} has no place for the class: write for example "a photo of a {{name}}."'
        )
    for i in range(k):
        template = template.replace("{ctx}", f"{{{n // k if i < k - 1 else n - n // k * (k - 1)}}}", 1)
    clean = (name.replace("_", " ").replace("{", "{{").replace("}", "}}") for name in names)
    return [template.replace("{name}", name) for name in clean]
