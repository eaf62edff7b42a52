"""The error of a check that a method does not pass."""


class CheckFailure(AssertionError):
    """What a method did, what was expected, and what to change."""


def require(is_met: bool, message: str) -> None:
    """Raise CheckFailure with a message unless a condition is met."""
    if not is_met:
        raise CheckFailure(message)
