"""What a method for texts stands on: a frozen language model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Generator, Tensor, nn

from vlprompt.passages import Passages
from vlprompt.prompt import NOTHING, Prompt
from vlprompt.tower import Tower

HELD = {"hf": "fp32", "hf-bf16": "bf16", "hf-int8": "int8", "hf-nf4": "nf4"}  # how a spec wants the weights held


@runtime_checkable
class LanguageTower(Tower, Protocol):
    """A tower that reads passages.

    Called with read="pooled" it gives features (B, E); "mask" the states (B, E) at the answer's place; "response" the
    states (R, E) before each token of all responses, one after the other; "words" the states (R, E) of the first token
    of each word. States are what the model's own head reads, before the map into the vocabulary.
    """

    kind: Literal["causal", "encoder", "seq2seq"]
    base: str  # how the frozen weights are held: fp32, bf16, int8 or nf4
    layers: tuple[int | str, ...]  # where a prefix may stand
    biases: frozenset[str]  # the sites whose maps have one
    spec: str  # what `load` was asked for
    size: int  # frozen parameters
    room: int | None  # positions, None where there is no bound
    notes: dict[str, str]  # what a result tells of it; grows where texts are cut
    checkpointing: bool  # whether what a layer made is made again going back, instead of being kept

    def spelled(self, words: Sequence[str], template: str | None = None) -> list[list[int]]: ...  # tokens of answers
    def unembed(self, ids: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]: ...  # rows of the vocabulary
    def vocabulary(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor: ...  # (R, E) -> logits (R, V)
    def targets(self, inputs: Passages, prompt: Prompt = NOTHING) -> list[list[int]]: ...  # the tokens of each response
    def embedded(self, text: str) -> Tensor: ...  # the embeddings (N, D) of a text's tokens
    def drawn(self, n: int, generator: Generator) -> Tensor: ...  # the embeddings (n, D) of random words
    def past(
        self, text: str, prompt: Prompt = NOTHING, after: bool = False
    ) -> Prompt: ...  # a text that everyone has read, as a prefix; after: behind another such
    def generate(self, inputs: Passages, prompt: Prompt = NOTHING, **settings: Any) -> list[str]: ...
    def merged(self, prompt: Prompt) -> "LanguageTower": ...
    def adapted(self, config: Mapping[str, Any], seed: int) -> "Adapted": ...  # by PEFT's configuration
    def save(self, prompt: Prompt, folder: Path, told: Mapping[str, Any]) -> None: ...  # as PEFT's files
    def save_merged(self, prompt: Prompt, folder: Path) -> None: ...  # the whole model, with a prompt's parts in it
    def copy(self) -> nn.Module: ...


class Adapted(Protocol):
    """A language model with an adapter of PEFT: what is asked, what is trained, and what else a resume needs."""

    @property
    def tower(self) -> LanguageTower: ...
    @property
    def trained(self) -> Mapping[str, nn.Parameter]: ...
    @property
    def state(self) -> Mapping[str, Tensor]: ...
    def prompt(self) -> Prompt: ...  # what goes into the tower, of the types that have a prompt
    def train(self, mode: bool) -> None: ...  # its dropout
    def penalty(self) -> Tensor | None: ...  # a term of the loss
    def stepped(self, step: int, total: int) -> None: ...  # after each step of the optimizer, from 1
    def save(self, folder: Path, told: Mapping[str, Any]) -> None: ...  # in PEFT's own files
    def save_merged(self, folder: Path) -> None: ...  # the whole model, with the adapter in its weights
