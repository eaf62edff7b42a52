"""A frozen language model as a tower: a Prompt goes in, features or states come out; rows nobody reads are not made."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.backbones.hf import export, generation
from vlprompt.backbones.hf.forward import Passes
from vlprompt.backbones.hf.peft_adapter import Adapted
from vlprompt.backbones.hf.peft_format import plain
from vlprompt.backbones.hf.tokenization import Row
from vlprompt.backbones.hf.weight_merging import folded
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.texts import Passages
from vlprompt.runtime import collectives

READS = ("pooled", "mask", "response", "words")
CHUNK = 16  # rows of one pass without gradients, of like length
STEP = 32  # lengths of passes whose features are kept: multiples of this


class LM(Passes):
    """A language model of transformers; see language.LanguageTower for what it can be asked."""

    def __call__(self, inputs: Passages, prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        """pooled (B, E); mask (B, E); response and words (R, E), row after row.

        ValueError for a prompt that this model has no place for.
        """
        self._check(prompt, read)
        if read == "words":
            _ = inputs.tags  # says what is wrong with texts that have none
        rows = self.rows(inputs, prompt)
        if not prompt and read == "pooled" and self.lookup:
            return self._looked_up(inputs, rows)
        found = torch.cat(self._each(rows, prompt, read, inputs.packed))
        half = found.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(self.device.type)
        return found.float() if half else found

    def _each(self, rows: Sequence[Row], prompt: Prompt, read: str, packed: bool) -> list[Tensor]:
        """What is read of each row; without gradients in passes of rows of like length."""
        if packed:
            return self._packed(rows, prompt, read)
        if torch.is_grad_enabled() or len(rows) <= CHUNK or not self._shared(prompt):
            return self.read(rows, prompt, read)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for begin in range(0, len(order), CHUNK):
            some = order[begin : begin + CHUNK]
            for i, made in zip(some, self.read([rows[i] for i in some], prompt, read), strict=True):
                found[i] = made
        return found

    def _packed(self, rows: Sequence[Row], prompt: Prompt, read: str) -> list[Tensor]:
        """The states of responses, with several rows in one."""
        if self.kind != "causal" or read != "response":
            raise ValueError("packing is for responses of causal models: set method.reader.packing=false")
        longest = max(len(row.ids) for row in rows)
        # no more than fills the bins well: attention grows with the square of their length
        room = max(longest, min(2 * max(longest, 128), (self.room or 1024) - self.shift(prompt)))
        x, begins = self._together(rows, prompt, room)
        ends = zip(rows, begins, strict=True)
        return [x[b, at + row.begin - 1 : at + row.begin - 1 + len(row.answer)] for row, (b, at) in ends]

    def _looked_up(self, inputs: Passages, rows: Sequence[Row]) -> Tensor:
        """Features (B, E), each computed once, in passes of a fixed size: its bits don't depend on neighbours."""
        keys = [f"{item.key}|{inputs.shown(i)}|{item.cut}" for i, item in enumerate(inputs.items)]
        row_of = dict(zip(keys, rows, strict=True))
        collectives.divided(self.kept, keys, lambda wanted: self._computed({key: row_of[key] for key in wanted}))
        found = {key: kept for key in keys if (kept := self.kept.get(key)) is not None}
        found |= self._computed({key: row for key, row in row_of.items() if key not in found})
        return torch.stack([found[key] for key in keys])

    def _computed(self, rows: Mapping[str, Row]) -> dict[str, Tensor]:
        """The features of rows by their keys, which are kept."""
        found, widths = dict[str, Tensor](), dict[int, dict[str, Row]]()
        for key, row in rows.items():
            width = STEP * (len(row.ids) // STEP + 1)  # one pad at least, so that there always is a mask
            widths.setdefault(width if self.room is None else min(width, self.room), {})[key] = row
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for width, some in widths.items():
                named, each = list(some), list(some.values())
                for begin in range(0, len(each), CHUNK):
                    part = each[begin : begin + CHUNK]
                    filled = [*part, *[part[-1]] * (CHUNK - len(part))]
                    made = self._pooled(filled, self._hidden(filled, NOTHING, width)).float()
                    for key, feature in zip(named[begin : begin + CHUNK], made, strict=False):
                        found[key] = feature.clone()
                        self.kept.keep(key, found[key])
        return found

    @staticmethod
    def _shared(prompt: Prompt) -> bool:
        """Whether all rows have the same tokens and prefixes."""
        return all(len(t) == 1 for t in prompt.tokens.values()) and all(len(k) == 1 for k, _ in prompt.prefix.values())

    def _check(self, prompt: Prompt, read: str) -> None:
        if read not in READS:
            raise ValueError(f"a language model reads {', '.join(READS)}, not {read!r}")
        if any(layer != 0 for layer in prompt.tokens):
            raise ValueError(
                "a language model takes tokens at its first layer; later ones take a prefix (prefix_tuning)"
            )
        if strange := [layer for layer in prompt.prefix if layer not in self.places]:
            raise ValueError(
                f"the prompt has a prefix for layer {strange[0]!r}; this model's are {', '.join(map(str, self.layers))}"
            )
        if strange := [site for site in prompt.beside if site not in self.every]:
            raise ValueError(f"the prompt has a part at {strange[0]!r}, where this model has no map")
        if read == "mask" and not self.answers:
            raise ValueError(
                f"{self.spec} has no head over its vocabulary, so it fills no {{mask}}: read its feature by a "
                "linear head (method.reader=linear), or take a model with such a head"
            )

    def read(self, rows: Sequence[Row], prompt: Prompt, read: str) -> list[Tensor]:
        """What is read of each row: (1, E), or (r, E) of a response or of words."""
        x = self._hidden(rows, prompt)
        if self.kind == "seq2seq" and read in ("mask", "response"):
            return self._decoded(rows, prompt, x, read)
        if read == "pooled":
            return list(self._pooled(rows, x).split(1))
        where = {"mask": lambda row: [row.mask], "words": lambda row: [*row.words],
                 "response": lambda row: range(row.begin - 1, row.begin - 1 + len(row.answer))}[read]  # fmt: skip
        if read == "mask" and any(row.mask < 0 for row in rows):
            raise ValueError(
                "the template has no {mask}, no place for the answer: give one, such as '{text} It is {mask}.'"
            )
        if read == "response" and self.kind != "causal":
            raise ValueError(
                f"{self.spec} is an encoder and writes no response: take a causal model or an encoder-decoder"
            )
        counts = [len(where(row)) for row in rows]
        flat = torch.tensor([k for row in rows for k in where(row)], device=x.device)
        which = torch.repeat_interleave(torch.arange(len(rows), device=x.device), torch.tensor(counts, device=x.device))
        states = x[which, flat]
        return list((self.family.ready(self.net)(states) if read == "mask" else states).split(counts))

    def _pooled(self, rows: Sequence[Row], x: Tensor) -> Tensor:
        """(B, E); soft tokens never count."""
        if self.pool == "mean":
            own = torch.zeros(x.shape[:2], device=x.device)
            for i, row in enumerate(rows):
                own[i, : len(row.ids)] = 1
                own[i, row.soft] = 0
            return (x * own[..., None]).sum(1).div(own.sum(1, keepdim=True)).to(x.dtype)
        end = [row.begin - 1 if self.kind == "causal" else len(row.ids) - 1 for row in rows]
        if self.pool == "first":
            end = [next(k for k in range(len(row.ids)) if k not in set(row.soft)) for row in rows]
        return x[torch.arange(len(rows), device=x.device), torch.tensor(end, device=x.device)]

    # words

    def spelled(self, words: Sequence[str], template: str | None = None) -> list[list[int]]:
        """The tokens of each answer as they follow a text; ValueError for one that has none."""
        before = "" if template is None else template.partition("{mask}")[0]
        return self.writer.spelled(list(words), before[len(before.rstrip()) :] if before else None)

    def unembed(self, ids: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows (n, E) of the map into the vocabulary, and their biases (n,) where it has some; None: all."""
        if not self.answers:
            raise ValueError(
                f"{self.spec} has no head over its vocabulary: take method.reader=linear, or a model with one"
            )
        head = self.net.get_output_embeddings()
        head = getattr(head, "base_layer", getattr(head, "original_module", head))
        rows = slice(None) if ids is None else torch.as_tensor(ids, device=self.device)
        bias = getattr(head, "bias", None)
        return head.weight[rows], None if bias is None else bias[rows]

    def vocabulary(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """States (R, E) -> logits (R, n) of these tokens; None: of all."""
        head = self.net.get_output_embeddings() if self.answers else None
        if head is None or plain(head):
            weight, bias = self.unembed(ids)
            logits = F.linear(states.to(weight.dtype), weight, bias)
        else:  # an adapter is in it
            logits = head(states) if ids is None else head(states)[:, torch.as_tensor(ids, device=self.device)]
        cap = getattr(self.net.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def targets(self, inputs: Passages, prompt: Prompt = NOTHING) -> list[list[int]]:
        """The tokens of each response."""
        return [row.answer for row in self.rows(inputs, prompt)]

    def embedded(self, text: str) -> Tensor:
        """The embeddings (N, D) of a text's tokens, without special ones."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = torch.tensor(ids, dtype=torch.long, device=self.device)
        return self.net.get_input_embeddings().weight[places].detach().float().clone()

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """The embeddings (n, D) of words drawn from the vocabulary."""
        table = self.net.get_input_embeddings().weight
        ids = torch.randint(len(table), (n,), generator=generator)
        return table[ids.to(table.device)].detach().float().clone()

    def past(self, text: str, prompt: Prompt = NOTHING, after: bool = False) -> Prompt:
        """A text that everyone has read, as a prefix of every layer; causal models only. after: behind such a one."""
        return generation.past(self, text, prompt, after)

    def generate(self, inputs: Passages, prompt: Prompt = NOTHING, **settings: Any) -> list[str]:
        """What the model writes after each passage; settings: transformers' (max_new_tokens, num_beams ...)."""
        return generation.generate(self, inputs, prompt, **settings)

    def merged(self, prompt: Prompt) -> "LM":
        """A tower with the parts of the prompt in its weights; ValueError for those that can't be."""
        self._check(prompt, "pooled")
        return folded(self, prompt)

    def adapted(self, config: Mapping[str, Any], seed: int) -> Adapted:
        """The model with an adapter of PEFT; ValueError for what PEFT or this model can't do."""
        return Adapted(self, config, seed)

    def save(self, prompt: Prompt, folder: Path, told: Mapping[str, Any]) -> None:
        """A prompt as an adapter in PEFT's files; ValueError for what PEFT has no form for."""
        export.save(self, prompt, folder, told)

    def save_merged(self, prompt: Prompt, folder: Path) -> None:
        """The whole model in float32 with a prompt's parts in its weights, as transformers loads it."""
        self._check(prompt, "pooled")
        export.save_merged(self, prompt, folder)

    def copy(self) -> nn.Module:
        """A trainable copy, in float32: called as the tower is."""
        return Copy(self)


class Copy(nn.Module):
    """All of a model, to be trained."""

    def __init__(self, tower: LM):
        super().__init__()
        self.tower: LM
        if tower.base not in ("fp32", "bf16"):
            raise ValueError(f"the weights of {tower.spec} are quantised, so they can't be trained: take hf: instead")
        net = copy.deepcopy(tower.net).float().requires_grad_(True)
        # by their names, each once, for a model may use one tensor in two places
        self.weights = nn.ParameterDict({name.replace(".", "/"): p for name, p in net.named_parameters()})
        again = copy.copy(tower)
        again.lookup = False
        again.moved(net)
        object.__setattr__(self, "tower", again)

    def forward(self, inputs: Passages, prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        return self.tower(inputs, prompt, read)
