"""Demonstrations in front of texts, encoded once as a prefix where the language model is causal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.templates import escape_braces
from vlprompt.core.texts import TextBatch, TextItem, render_template
from vlprompt.core.towers import LanguageTower


@dataclass(frozen=True)
class Preamble:
    """What precedes texts: an encoded prefix of a causal model, and words in front of each text.

    Attributes:
        prompt: the encoded prefix.
        text: written in front of each text.
        follows_prefix: whether `text` continues the encoded prefix.
    """

    prompt: Prompt = NOTHING
    text: str = ""
    follows_prefix: bool = False

    def prepend_to(self, inputs: TextBatch, template: str | None = None) -> TextBatch:
        """Return the texts behind this preamble, rendered by `template` or by the template of each item."""
        front = escape_braces(self.text)
        items = tuple(replace(item, template=front + (template or item.template)) for item in inputs.items)
        return replace(
            inputs, items=items, template=None, is_plain=False, n_soft_tokens=0, follows_prefix=self.follows_prefix
        )


class Demonstrations:
    """Demonstrations in front of texts.

    Args:
        lm: frozen language model.
        items: the demonstrations, with their responses.
        template: how they are rendered; default the template of each item.
        instruction: text in front of them all.
        separator: text between all parts.
        n_nearest: number of demonstrations for each text, those with the most similar features of `lm`, the nearest
            last. 0: all of them, which a causal model encodes here once for all texts.

    Raises:
        ValueError: if they leave no room for a text as long as the longest demonstration; it names the shots that fit.
    """

    def __init__(
        self,
        lm: LanguageTower,
        items: Sequence[TextItem],
        template: str | None = None,
        instruction: str = "",
        separator: str = "\n\n",
        n_nearest: int = 0,
    ):
        self.lm, self.items, self.template = lm, items, template
        self.instruction, self.separator, self.n_nearest = instruction, separator, n_nearest
        self.features = _normalize(lm(TextBatch(tuple(items)))) if n_nearest else None  # (N, E)
        self.base_preamble = self._build_preamble(() if n_nearest else items, NOTHING)

    def iter_groups(self, inputs: TextBatch) -> Iterator[tuple[Preamble, list[int]]]:
        """Yield each preamble with the indices of the texts that share it and one template."""
        groups, nearest = dict[tuple[str, tuple[int, ...]], list[int]](), list[tuple[int, ...]]([()] * len(inputs))
        if self.features is not None:
            similarity = _normalize(self.lm(inputs.with_template(is_plain=True))) @ self.features.T  # (B, N)
            nearest = [tuple(row) for row in similarity.topk(self.n_nearest).indices.flip(1).tolist()]
        for i, item in enumerate(inputs.items):
            groups.setdefault((self.template or item.template, nearest[i]), []).append(i)
        for (_, neighbours), indices in groups.items():  # one at a time, because an encoded prefix takes memory
            preamble = self.base_preamble
            if neighbours:
                preamble = self._build_preamble([self.items[k] for k in neighbours], preamble.prompt)
            yield preamble, indices

    def _build_preamble(self, items: Sequence[TextItem], instruction_prompt: Prompt) -> Preamble:
        lm, separator = self.lm, self.separator
        rendered = [render_template(item, self.template or item.template) for item in items]
        text = separator.join([*([self.instruction] if self.instruction else []), *rendered])
        if not text:
            return Preamble()
        self._require_room(rendered)
        if lm.kind != "causal":
            return Preamble(text=text + separator)
        if not instruction_prompt:
            return Preamble(lm.encode_prefix(text), separator, True)
        rest = "".join(separator + part for part in rendered)
        return Preamble(lm.encode_prefix(rest, instruction_prompt, follows_prefix=True), separator, True)

    def _require_room(self, rendered: Sequence[str]) -> None:
        lm = self.lm
        if lm.max_positions is None or not rendered:
            return
        sizes = [len(lm.embed_text(self.separator + text)) for text in rendered]
        special_tokens = 2  # one at either end
        room = lm.max_positions - len(lm.embed_text(self.instruction)) - max(sizes) - special_tokens
        if sum(sizes) > room:
            n_fit = sum(sum(sizes[: k + 1]) <= room for k in range(len(sizes)))
            raise ValueError(
                f"{lm.spec}: expected demonstrations and a text as long as the longest within {lm.max_positions} "
                f"positions, got {len(rendered)} demonstrations of {sum(sizes)} tokens, of which {n_fit} fit. "
                f"Set method.shots={n_fit}, or shorten them."
            )


def _normalize(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
