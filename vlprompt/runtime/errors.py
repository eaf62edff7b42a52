"""Helpers for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_CHOICES = 40  # to name in a message


class UnknownClassError(ValueError):
    """A class that the method was not trained on, and can't predict by its name."""


def suggest_nearest(name: str, choices: Iterable[str]) -> str:
    """Return "did you mean X?" where one of the choices is near, else the choices."""
    choices = list(choices)
    if near := get_close_matches(name, choices, 1, 0.5):
        return f"did you mean {near[0]!r}?"
    return f"the choices are {', '.join(choices[:MAX_CHOICES])}{' ...' * (len(choices) > MAX_CHOICES)}"


def explain_error(error: Exception) -> str | None:
    """Return the message for a mistake in the input or too little memory; None for a bug in this package."""
    if isinstance(error, ValueError | OSError | ArithmeticError):
        return str(error)
    memory_texts = "out of memory", "can't allocate memory"  # of a GPU and of a CPU
    is_memory_error = isinstance(error, RuntimeError) and any(text in str(error) for text in memory_texts)
    if isinstance(error, MemoryError) or is_memory_error:
        cause = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"memory: expected enough for this run, got an error of the allocator{cause}. Set a smaller "
            "train.batch_size, train.micro_batch_size=4, or fewer tokens (method.n_tokens, method.n_ctx)."
        )
    return None
