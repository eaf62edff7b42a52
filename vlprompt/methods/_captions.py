"""Captions with the labels that they name: the captions of a lesson, and their frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.templates import as_templated_text, escape_braces
from vlprompt.core.texts import TextItem
from vlprompt.core.towers import Clip
from vlprompt.data.text.captions import read_captions, write_captions
from vlprompt.layers.class_texts import TemplateChoice, fill_class_texts, list_class_texts
from vlprompt.runtime.bounded_cache import BoundedCache

CAPTIONS_PER_PASS, MAX_CACHED_BYTES = 64, 2**30


@dataclass(frozen=True)
class CaptionSettings:
    """Where the captions of a lesson are from; arguments as of `TaIDPT`."""

    captions: str | None
    caption_template: str
    name_template: str
    template: TemplateChoice
    repeats: int

    def build(self, train: Split) -> tuple[Split, str]:
        """Return the captions of a lesson's classes as a split of texts, and a note of captions that were left out.

        Raises:
            ValueError: where there is none, and as `read_captions` and `write_captions`.
        """
        names, note = train.names, ""
        if self.captions is None:
            rows = write_captions(train, self.caption_template, self.name_template)
            if n := len(train) - len(rows):
                note = f"{n} of {len(train)} items without a known label have no caption"
        else:
            file = read_captions(Path(self.captions).expanduser(), names)
            rows = file.rows
            if file.n_dropped:
                note = f"{file.n_dropped} captions that name no class are left out"
        one_hot = [tuple(int(k == label) for k in range(len(names))) for label in range(len(names))]
        groups = [[text] * self.repeats for text in fill_class_texts(None, names)]
        groups += [] if self.template is None else list_class_texts(names, self.template)
        for texts, row in zip(groups, one_hot * 2, strict=False):
            rows += [(as_templated_text(text).words, row) for text in texts]
        if not rows:
            raise ValueError(
                "method.captions: expected captions to learn from, got none. Set method.repeats=1 or more."
            )
        items = tuple(
            TextItem(f"caption {i}", {"text": escape_braces(caption)}, "{text}", "{text}")
            for i, (caption, _) in enumerate(rows)
        )
        return Split(items, tuple(row for _, row in rows), names), note


class CaptionFeatures:
    """The frozen features of the captions of a lesson, which are computed once where they fit into memory.

    They come from passes of fixed captions, so that their bits do not depend on a batch.

    Args:
        clip: the CLIP.
        captions: of the lesson; those that are asked for beside them are computed each time.
    """

    def __init__(self, clip: Clip, captions: Sequence[str]):
        self.clip, self.captions = clip, captions
        self.places = {caption: i for i, caption in reversed([*enumerate(captions)])}
        self.passes: BoundedCache[int, Tensor] = BoundedCache(MAX_CACHED_BYTES)

    def read(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features (B, E), and those of the tokens (B, N, E), behind each text's own zeros."""
        parts = [self._look_up(self.places[one]) if one in self.places else self._encode([one])[0] for one in captions]
        padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded[:, 0], padded[:, 1:]

    def _look_up(self, place: int) -> Tensor:
        number, row = divmod(place, CAPTIONS_PER_PASS)
        features = self.passes.lookup(number)
        if features is None:
            first = number * CAPTIONS_PER_PASS
            features = self._encode(self.captions[first : first + CAPTIONS_PER_PASS])
            self.passes.insert(number, features)
        return features[row]

    @torch.no_grad()
    def _encode(self, captions: Sequence[str]) -> Tensor:
        """Encode captions (n, 1 + N, E): their feature, and their tokens', zero where there is none."""
        text, captions = self.clip.text, [*captions]
        rows, lengths = text(captions, output="rows")[0], torch.tensor(text.count_tokens(captions))
        is_token = torch.arange(rows.shape[1]) < lengths[:, None]
        return torch.cat([text(captions)[0][:, None], rows * is_token[..., None].to(rows.device)], 1)
