"""What error messages share."""

from collections.abc import Iterable
from difflib import get_close_matches


class UnknownClass(ValueError):
    """A method is asked for a class that it has never met and can't answer by its name."""


def nearest(wrong: str, choices: Iterable[str]) -> str:
    """ "did you mean X?" where one of the choices is near, otherwise the choices."""
    choices = list(choices)
    if near := get_close_matches(wrong, choices, 1, 0.5):
        return f"did you mean {near[0]!r}?"
    return f"the choices are {', '.join(choices[:40])}{' ...' * (len(choices) > 40)}"


def explained(error: Exception) -> str | None:
    """What to tell a user of a mistake in the input, or of too little memory; None for an error of ours."""
    if isinstance(error, ValueError | OSError | ArithmeticError):
        return str(error)
    known = "out of memory", "can't allocate memory"  # a GPU's words and a CPU's
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in known)):
        cause = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"there is not enough memory{cause}: take a smaller train.batch, train.micro_batch=4, or fewer tokens "
            "(method.n_tokens, method.n_ctx)"
        )
    return None
