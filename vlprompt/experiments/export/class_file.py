"""Read class names from a text file."""

from pathlib import Path


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
    names, first_line = [line.strip() for line in text.splitlines()], dict[str, int]()
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
