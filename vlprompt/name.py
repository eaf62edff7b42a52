"""Class names as values: what texts show, what tells two classes apart, and how their dataset words them."""

from collections.abc import Sequence


class Name(str):
    """A class name as texts show it.

    id: tells the class from every other (two may share a name); hand: the hand-written template of its dataset.
    """

    __slots__ = ("hand", "id")
    id: str
    hand: str | None

    def __new__(cls, text: str, id: str | None = None, hand: str | None = None) -> "Name":
        name = super().__new__(cls, text)
        name.id, name.hand = text if id is None else id, hand
        return name

    # pickle gives these to __new__, which takes more arguments than str's does
    def __getnewargs__(self) -> tuple[str, str, str | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self), self.id, self.hand


Names = tuple[str, ...]


def named(name: str) -> Name:
    """A plain string as a Name."""
    return name if isinstance(name, Name) else Name(name)


def ids(names: Sequence[str]) -> Names:
    """What tells the classes apart; a plain string is its own id."""
    return tuple(getattr(name, "id", str(name)) for name in names)
