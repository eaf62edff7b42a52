"""A case is (kind, seed, index): its random stream and the command that repeats it; what broke a rule."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One case, which depends on nothing but these three.

    Args:
        kind: the name of a module of tools/fuzz.
        seed: of the whole fuzz.
        index: the number of the case in its kind.
    """

    kind: str
    seed: int
    index: int

    def stream(self) -> random.Random:
        """Return the random stream of the case."""
        return random.Random(f"{self.kind} {self.seed} {self.index}")

    @property
    def command(self) -> str:
        """Return the command that repeats it alone."""
        return f"python tools/fuzz --kind {self.kind} --seed {self.seed} --index {self.index}"


@dataclass(frozen=True)
class Violation:
    """A rule that a case broke.

    Args:
        case: the case.
        rule: the name of the rule.
        text: what happened.
        commands: the commands of the case, the last of which broke it.
    """

    case: Case
    rule: str
    text: str
    commands: tuple[str, ...]

    def format(self) -> str:
        """Return it as a few lines."""
        lines = [
            f"{self.rule}: {self.text}",
            *(f"  $ {command}" for command in self.commands),
            f"  {self.case.command}",
        ]
        return "\n".join(lines)
