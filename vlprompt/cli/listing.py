"""What there is: methods, tasks, datasets, backbones, and one method in full.

Files are read, nothing heavy is imported.
"""

import ast
from pathlib import Path

from vlprompt import methods, tasks
from vlprompt.runtime.errors import nearest

KINDS = ("methods", "tasks", "datasets", "backbones", "looks")


def listing(what: str) -> list[str]:
    """One line each; ValueError for a kind that there is not."""
    if what in ("methods", "tasks"):
        package = methods if what == "methods" else tasks
        return [f"{name:16} {_doc(_file(package, name)).splitlines()[0]}" for name in package.found()]
    if what == "datasets":
        from vlprompt.data.cards import cards, read_card

        return [f"{name:26} {read_card(name)['title']}" for name in cards()] + [
            f"{'PATH':26} a folder of images with one sub-folder per class, or a .csv, .jsonl, .npz, .json or .yaml",
            f"{'':26} or of texts: a .jsonl, .csv or .tsv with text and label, prompt and response, words and tags, "
            "or messages, or a folder with such a train and test",
        ]
    if what == "looks":
        from vlprompt.runtime.paths import configs_folder

        texts = {p.stem: p.read_text("utf-8") for p in sorted((configs_folder() / "looks").glob("*.yaml"))}
        heads = {
            name: " ".join(line[2:] for line in text.splitlines() if line[:1] == "#") for name, text in texts.items()
        }
        return [f"{name:14} {head.partition('. ')[0]}" for name, head in heads.items()]
    if what == "backbones":
        return [
            "glyph                       the embedded CLIP: 1.4 M parameters, knows digits, letters and symbols",
            "open_clip:NAME/TAG          any model and weights of open_clip, for example open_clip:ViT-B-16/openai",
            "open_clip:NAME@FILE         the same with weights from a file, open_clip's or OpenAI's",
            "open_clip:local-dir:PATH    open_clip_config.json and weights; hf-hub:REPOSITORY fetches them",
            "open_clip:NAME/random       the same with random weights",
            "hf:OWNER/NAME or hf:FOLDER  a language model of transformers (with --task text)",
            "hf-bf16:  hf-int8:  hf-nf4: the same in half precision, 8 bits or QLoRA's NF4",
            "hf_clip:OWNER/NAME          CLIP or SigLIP of transformers, as hf_clip:openai/clip-vit-base-patch16",
            "hf_clip:FOLDER              the same from a folder: configuration, weights, tokenizer and preprocessor",
            "pixels, pixels:16           no network: the features are the pixels (8 x 8 by default), "
            "for linear and nearest_mean",
            "glyph-vit                   the image tower of the embedded CLIP alone, without texts: a small ViT",
            "timm:NAME/TAG               any image model of timm, for example timm:vit_base_patch16_224/orig_in21k; "
            "ViTs take prompts",
            "timm:NAME                   the same with the weights that timm prefers",
            "timm:NAME@FILE              the same with weights from a file: timm's, Google's .npz, MAE, MoCo-v3, DINO, "
            "DINOv2",
            "timm:NAME/random            the same with random weights",
            "glyph/random                a tiny CLIP with random weights, for tests; glyph-vit/random: its image tower",
        ]
    raise ValueError(f"there is no list of {what!r}; {nearest(what, KINDS)}")


def describe_method(name: str) -> list[str]:
    """The header of a method's file, its class with arguments, and its recipes; ValueError with the nearest name."""
    from vlprompt.config.sources import READERS
    from vlprompt.runtime.paths import configs_folder

    if name not in methods.found():
        raise ValueError(f"there is no method {name!r}; {nearest(name, list(methods.found()))}")
    path = _file(methods, name)
    cls = next(
        n
        for n in ast.parse(path.read_text("utf-8")).body
        if isinstance(n, ast.ClassDef) and n.name == methods.found()[name]
    )
    init = next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    lines = [
        _doc(path),
        "",
        f"{cls.name}: {ast.get_docstring(cls)}",
        "",
        "Arguments (settings are written method.NAME=VALUE):",
    ]
    if init is not None:
        names, defaults = init.args.args[1:], init.args.defaults
        given: list[ast.expr | None] = [None] * (len(names) - len(defaults)) + list(defaults)
        for argument, default in zip(names, given, strict=True):
            kind = ast.unparse(argument.annotation) if argument.annotation else "any"
            if kind == "Reader" and default is None:
                lines.append(f"  {argument.arg}: Reader = linear ({', '.join(READERS)})")
            elif kind not in ("Clip", "Tower", "AnyTower", "VisionTower", "LanguageTower"):
                lines.append(f"  {argument.arg}: {kind}{'' if default is None else f' = {ast.unparse(default)}'}")
    for recipe in sorted(path for task in tasks.found() for path in (configs_folder() / task).rglob(f"{name}.yaml")):
        lines += ["", f"Recipe configs/{recipe.relative_to(configs_folder())}:", recipe.read_text("utf-8").rstrip()]
    return lines


def _file(package: object, name: str) -> Path:
    return Path(str(package.__file__)).parent / f"{name}.py"  # type: ignore[attr-defined]


def _doc(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
