"""Any configuration of PEFT on a language model: Mangrulkar et al., "PEFT", 2022; LoRA and kin, arXiv:2106.09685 etc.

The library's own layers stand in a copy of the model's structure around the same frozen tensors, and its own prompt
encoders make tokens and prefixes: LoRA, rsLoRA, PiSSA, DoRA (arXiv:2402.09353), AdaLoRA (arXiv:2303.10512), VeRA
(arXiv:2310.11454), IA3 (arXiv:2205.05638), LN tuning (arXiv:2312.11420), LoHa, LoKr, OFT, BOFT, FourierFT, prompt
tuning, P-Tuning, prefix tuning. `vlprompt export` writes what is learned in PEFT's own files. Sites: the modules that
the configuration names; nothing is guessed.

Differs from PEFT in: dropout of the frozen model stays off; prompts are read where our readers read, never at a virtual
token; AdaLoRA's masks count steps from 1, and its last step ends masked; a prefix on an encoder-decoder is refused.

Expected (GLUE dev mean, DeBERTaV3-base; AdaLoRA's Table 1): full 88.09, LoRA 88.34, AdaLoRA 89.31.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower, Output, Terms
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Adapted, LanguageTower
from vlprompt.layers.verbalizers import Response, Words


class Peft(OnTower):
    """An adapter by PEFT.

    config: the arguments of PEFT's configuration class, with peft_type ({peft_type: LORA, r: 8, target_modules:
    [q_proj, v_proj]}), or {path: FOLDER} to start from an adapter that is there.
    """

    adapted: Adapted

    def __init__(self, lm: LanguageTower, reader: Reader, config: dict[str, Any]):
        super().__init__()
        self.lm = self.tower = lm
        self.reader, self.config = reader, config

    def build(self, generator: torch.Generator) -> None:
        self.register_buffer("seed", torch.randint(2**31, (), generator=generator))
        self._made()

    def _made(self) -> None:
        """The adapter by its seed; it is no part of this Module, only what it trains is."""
        adapted = self.lm.adapted(self.config, int(self.seed))
        object.__setattr__(self, "adapted", adapted)
        self.tower = adapted.tower
        self.trained = nn.ParameterDict({name.replace(".", "/"): p for name, p in adapted.trained.items()})
        for name, tensor in adapted.state.items():
            self.register_buffer(f"state/{name.replace('.', '/')}", tensor)
        if isinstance(self.reader, Words | Response):
            self.reader.lm = self.tower
        adapted.train(self.training)

    def restore(self, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
        for lesson in lessons:
            self.begin(lesson.empty(), torch.Generator())
        self.seed = state["seed"]  # what is drawn and not trained is drawn again
        self._made()
        self.load_state_dict(state)

    def train(self, mode: bool = True) -> "Peft":
        if "adapted" in vars(self):
            self.adapted.train(mode)
        super().train(mode)
        return self

    def prompt(self, images: int) -> Prompt:
        return self.adapted.prompt()

    def terms(self, batch: Batch, fixed: Any) -> tuple[Terms, Output]:
        found, out = super().terms(batch, fixed)
        if (penalty := self.adapted.penalty()) is not None:
            found["orthogonality"] = penalty, len(batch.labels)
        return found, out

    def end_step(self, step: int, steps: int) -> None:
        self.adapted.stepped(step, steps)
