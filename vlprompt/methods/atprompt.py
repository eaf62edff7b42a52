"""ATPrompt: Li et al., "Advancing Textual Prompt Learning with Anchored Attributes", ICCV 2025, arXiv:2412.09442.

Words for attributes of the classes, such as color and shape, stand in every class text before the context of the
wrapped method, each behind learned tokens of its own, so that the context is anchored to what classes of one kind have
in common. Where the wrapped method replaces its tokens at deeper layers, the rows of words and their tokens flow on.
Sites: soft tokens at layer 0 of the text tower, before those of the wrapped method.

Differs from the authors' code in: words of several tokens stand in the text whole (theirs counts one token for each, so
that on Oxford Pets, with "playfulness", the second word never enters); each word may have another number of tokens than
the context (theirs needs the same around MaPLe); the wrapped method may start from words (theirs at random); float32.
The recipes have the words that the authors published; `vlprompt attributes` searches others, by weights of combinations
of one word and more (theirs of three and more). From the paper in: the same.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 82.68, new 68.04, harmonic mean 74.65 around CoOp;
81.69, 74.54, 77.95 around CoCoOp; 82.98, 75.76, 79.21 around MaPLe; 83.80, 73.75, 78.45 around CoOp in DePT.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.templates import TemplatedText, TemplatePiece, as_templated_text
from vlprompt.core.towers import Clip, TextTower

INITIAL_STD = 0.01  # of the tokens before a word; those of a context have 0.02


class _AnchoredTextTower:
    """A text tower that puts words, and tokens before each, in front of texts with soft tokens; else the tower's own.

    Args:
        tower: the tower.
        words: the words.
        tokens: (P, D) before each of them.
    """

    def __init__(self, tower: TextTower, words: Sequence[str], tokens: Sequence[Tensor]):
        self.tower, self.words, self.tokens, self.is_used = tower, words, tokens, False

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["tower"], name)

    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        if 0 not in prompt.tokens or not prompt.is_embedded:
            return self.tower(texts, prompt, output)
        self.is_used = True
        return self.tower([self._anchor_text(text, prompt.length) for text in texts], self._anchor(prompt), output)

    def _anchor_text(self, text: str, n_tokens: int) -> TemplatedText:
        pieces = as_templated_text(text).pieces
        if not any(piece.kind == "tokens" for piece in pieces):
            pieces = (TemplatePiece("tokens", n_soft_tokens=n_tokens), *pieces)
        return TemplatedText((*self._anchor_pieces(), *pieces))

    def _anchor_pieces(self) -> Iterator[TemplatePiece]:
        for word, tokens in zip(self.words, self.tokens, strict=True):
            yield TemplatePiece("tokens", n_soft_tokens=len(tokens))
            yield TemplatePiece("words", f" {word} ")

    def _anchor(self, prompt: Prompt) -> Prompt:
        anchors = torch.cat(list(self.tokens))  # (A P, D)
        tokens, carry = dict[int, Tensor](), dict[int, float | Tensor]()
        for layer, own in prompt.tokens.items():
            rows = anchors.to(own.dtype) if layer == 0 else torch.zeros_like(anchors, dtype=own.dtype)
            tokens[layer] = torch.cat([rows.expand(*own.shape[:-2], -1, -1), own], -2)
            if layer:
                share = torch.as_tensor(prompt.carry.get(layer, 0.0), dtype=own.dtype, device=own.device)
                carry[layer] = torch.cat([share.new_ones(len(anchors)), share.expand(prompt.length)])
        return replace(prompt, tokens=tokens, carry=carry)


class ATPrompt(MethodWrapper):
    """A prompt method whose class texts have attribute words with learned tokens before the context.

    Args:
        method: the wrapped method, with soft tokens at layer 0 of the text tower of a CLIP.
        attributes: the words, in order; the default is ImageNet's.
        n_tokens: learned tokens before each word.
    """

    def __init__(self, method: Method, attributes: tuple[str, ...] = ("color", "shape"), n_tokens: int = 2):
        super().__init__()
        self.method, self.attributes, self.n_tokens = method, tuple(attributes), n_tokens

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_tokens=1)
        if not self.attributes or not all(word.strip() for word in self.attributes):
            raise ValueError(
                f"method.attributes: expected words such as color and shape, got {list(self.attributes)}. Name what "
                "tells the classes of the dataset apart, or leave it out."
            )
        if isinstance(self.method, MethodWrapper) or not isinstance(getattr(self.method, "clip", None), Clip):
            raise ValueError(self._mismatch_message())
        super().begin_lesson(lesson, generator)
        if not lesson.index:
            text, n = self.clip.text, self.n_tokens
            starts = [text.init_context(n, None, generator, INITIAL_STD) for _ in self.attributes]
            self.anchors = nn.ParameterList(starts)  # (P, D) each

    def _mismatch_message(self) -> str:
        return (
            f"method.method: expected a method with soft tokens at layer 0 of the text tower of a CLIP, got "
            f"{type(self.method).__name__}. Pass coop, cocoop or maple; wrappers such as kgcoop go around atprompt."
        )

    def view_anchored(self) -> tuple[Method, _AnchoredTextTower]:
        """Return the wrapped method, with the same parameters, on a text tower that adds words and their tokens."""
        view: Any = copy.copy(self.method)  # its parameters are in one dict with the method's
        text = _AnchoredTextTower(view.clip.text, self.attributes, list(self.anchors))
        view.clip = replace(view.clip, text=text)
        return view, text

    def prepare(self, names: Names, fixed: Fixed) -> Prepared:
        return self.view_anchored()[0].prepare(names, fixed[0])

    def forward(self, inputs: Images, prepared: Prepared) -> Output:
        return self.view_anchored()[0](inputs, prepared)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        view, text = self.view_anchored()
        terms_and_output = view.loss_terms(batch, fixed[0])
        if not text.is_used:
            raise ValueError(self._mismatch_message())
        return terms_and_output
