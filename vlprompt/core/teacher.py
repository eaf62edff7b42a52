"""Contract of teachers: a second, frozen method, perhaps on another backbone, whose answers a method learns from."""

from dataclasses import dataclass

from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images


@dataclass(frozen=True)
class TeacherSettings:
    """How a configuration names a teacher.

    Args:
        backbone: its CLIP, as --backbone names one; None for that of the run.
        run: the folder of a finished run, a model folder or OWNER/NAME on the hub; None for the zero-shot CLIP with the
            dataset's own template.
    """

    backbone: str | None = None
    run: str | None = None


class Teacher:
    """A frozen method on a CLIP. Not an nn.Module: it can't be trained or saved with the method that learns from it.

    Attributes:
        settings: how a configuration names it.
    """

    settings: TeacherSettings = TeacherSettings()

    def __deepcopy__(self, memo: dict[int, object]) -> "Teacher":
        """Return itself: a copy of a student has the same frozen teacher, whose kept answers lie in open files."""
        return self

    @property
    def key(self) -> str:
        """What identifies its weights and what it has learned."""
        raise NotImplementedError(f"{type(self).__name__}: expected a property key. Return what identifies its weights")

    def encode_classes(self, names: Names) -> Tensor:
        """Return its features (C, E) of the class texts, without gradient.

        Raises:
            UnknownClassError: for a class that it can't answer by its name.
        """
        raise NotImplementedError(f"{type(self).__name__}: expected encode_classes(names). Return features (C, E)")

    def answer(self, images: Images, names: Names) -> Tensor:
        """Return its logits (B, C) of images, which it reads with its own preprocessing, without gradient."""
        raise NotImplementedError(f"{type(self).__name__}: expected answer(images, names). Return logits (B, C)")
