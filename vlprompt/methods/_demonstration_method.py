"""What in-context learning and chain of thought share: the demonstrations as the state of a method."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.core.method import Method
from vlprompt.core.texts import TextItem
from vlprompt.core.towers import LanguageTower
from vlprompt.methods._demonstration_items import decode_items, encode_items
from vlprompt.methods._demonstrations import Demonstrations


class DemonstrationMethod(Method):
    """A frozen language model whose state is the demonstrations that it is shown."""

    lm: LanguageTower
    shots: int
    instruction: str
    separator: str
    encoded_demonstrations: Tensor
    _demonstrations: Demonstrations | None = None  # so that an encoded prefix is not encoded again for generation

    def store_items(self, items: Sequence[TextItem]) -> None:
        self._demonstrations = None
        self.register_buffer("encoded_demonstrations", encode_items(items))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        """Take the number of bytes from the saved state."""
        if (saved := state_dict.get(f"{prefix}encoded_demonstrations")) is not None:
            self.encoded_demonstrations, self._demonstrations = self.encoded_demonstrations.new_empty(saved.shape), None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def build_demonstrations(self, template: str | None = None, n_nearest: int = 0) -> Demonstrations:
        """Return the demonstrations, encoded on first use."""
        if self._demonstrations is None:
            items = decode_items(self.encoded_demonstrations)
            if len(items) < self.shots:
                raise ValueError(
                    f"method.shots: expected at most {len(items)}, the number of training texts, got {self.shots}. "
                    "Set a lower method.shots, or choose a dataset with more training texts."
                )
            self._demonstrations = Demonstrations(self.lm, items, template, self.instruction, self.separator, n_nearest)
        return self._demonstrations

    def cut_at_separator(self, text: str) -> str:
        """Drop what was generated after the point where another demonstration would begin."""
        return text.split(self.separator)[0] if self.separator else text
