"""The classes of an export: of the prompt, or of a text file of names."""

from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.core.class_names import Names, class_ids

if TYPE_CHECKING:
    from vlprompt.experiments.export.formats import ExportOptions
    from vlprompt.experiments.learned.prompt import LearnedPrompt


def resolve_names(prompt: "LearnedPrompt", options: "ExportOptions") -> Names:
    """Return the classes to export; ValueError for a class that two names stand for."""
    if options.classes is None:
        return prompt.names
    names, text_by_id = prompt.resolve_classes(options.classes), dict[str, str]()
    for text, class_id in zip(options.classes, class_ids(names), strict=True):
        if class_id in text_by_id:
            raise ValueError(
                f"--classes: expected each class once, got {text_by_id[class_id]!r} and {text!r}, which are the same "
                "class. Remove one."
            )
        text_by_id[class_id] = text
    return names


def read_class_file(path: Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        ValueError: for a file that is missing, empty or no text, a blank line, or a name that is there twice.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"--classes: expected a text file of class names, got {str(path)!r} ({cause}). Write one name a line."
        ) from error
    # str.splitlines would part names at separators of Unicode
    lines = text.removesuffix("\n").split("\n")
    names, first_line = [line.strip() for line in lines], dict[str, int]()
    if not any(names):
        raise ValueError(f"--classes: expected class names, got none in {str(path)!r}. Write one name a line.")
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(
                f"--classes: expected a class name, got a blank line {number} in {str(path)!r}. Remove the line."
            )
        if name in first_line:
            raise ValueError(
                f"--classes: expected each class once, got {name!r} in lines {first_line[name]} and {number} of "
                f"{str(path)!r}. Remove one."
            )
        first_line[name] = number
    return tuple(names)
