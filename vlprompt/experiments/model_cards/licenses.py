"""Licences of model cards: asked for, never invented."""

import re
from typing import Any

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{1,40}")
FRONT_MATTER = re.compile(r"\A---\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
EXAMPLES = "mit, apache-2.0, cc-by-4.0, cc-by-nc-4.0"


def require_license(license: str | None) -> str:
    """Return the identifier of a licence as the hub writes it; ValueError for none, and for what is no identifier."""
    if license is None:
        raise ValueError(
            f"--license: expected the licence of the prompt, got none. Name it by --license: {EXAMPLES} ..."
        )
    if not IDENTIFIER.fullmatch(license):
        raise ValueError(
            f"--license: expected an identifier as the hub has them ({EXAMPLES} ...), got {license!r}. "
            "Write it in lower case, without spaces."
        )
    return license


def read_license(card: str, where: str) -> str | None:
    """Return the licence in the front matter of a card, None where it has none; ValueError for broken YAML."""
    license = _read_front_matter(card, where).get("license")
    return None if license is None else str(license)


def set_license(card: str, license: str, where: str) -> str:
    """Return the card with another licence in its front matter; its text stays."""
    import yaml

    fields = _read_front_matter(card, where) | {"license": license}
    metadata = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    body = FRONT_MATTER.sub("", card, count=1)
    return f"---\n{metadata}---{body if body[:1] == chr(10) else chr(10) + body}"


def _read_front_matter(card: str, where: str) -> dict[str, Any]:
    import yaml

    match = FRONT_MATTER.match(card)
    try:
        fields = yaml.safe_load(match[1]) if match is not None else {}
        if not isinstance(fields, dict | None):
            raise ValueError(f"a {type(fields).__name__}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"{where}: expected YAML between the lines ---, got {cause}. Correct it.") from error
    return fields or {}
