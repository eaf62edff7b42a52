"""What error messages share."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(wrong: str, choices: Iterable[str]) -> str:
    """ "did you mean X?" where one of the choices is near, otherwise the choices."""
    choices = list(choices)
    if near := get_close_matches(wrong, choices, 1, 0.5):
        return f"did you mean {near[0]!r}?"
    return f"the choices are {', '.join(choices[:40])}{' ...' * (len(choices) > 40)}"
