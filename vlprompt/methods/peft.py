"""Any configuration of PEFT on a language model: Mangrulkar et al., "PEFT", 2022; LoRA and kin, arXiv:2106.09685 etc.

The library's layers are inserted into a copy of the model's structure around the same frozen tensors, and its prompt
encoders compute tokens and prefixes: LoRA, rsLoRA, PiSSA, DoRA (arXiv:2402.09353), AdaLoRA (arXiv:2303.10512), VeRA
(arXiv:2310.11454), IA3 (arXiv:2205.05638), LN tuning (arXiv:2312.11420), LoHa, LoKr, OFT, BOFT, FourierFT, prompt
tuning, P-Tuning, prefix tuning. `vlprompt export --to peft` writes what is learned in PEFT's own files. Sites: the
modules that the configuration names; nothing is guessed.

Differs from PEFT in: dropout of the frozen model stays off; our heads read the answer's position, never a virtual
token; AdaLoRA's masks count steps from 1, and its last step ends masked; a prefix on an encoder-decoder is refused.

Expected (GLUE dev mean, DeBERTaV3-base; AdaLoRA's Table 1): full 88.09, LoRA 88.34, AdaLoRA 89.31.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.head import Fixed, Head
from vlprompt.core.method import LossTerms, Output, TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AdaptedLanguageModel, LanguageTower
from vlprompt.layers.verbalizers import ResponseHead, Verbalizer


class Peft(TowerMethod[LanguageTower]):
    """An adapter of the PEFT library.

    Args:
        lm: frozen language model.
        head: maps features to class logits.
        config: arguments of PEFT's configuration class with peft_type ({peft_type: LORA, r: 8, target_modules:
            [q_proj, v_proj]}), or {path: FOLDER} to start from a saved adapter.
    """

    adapter: AdaptedLanguageModel

    def __init__(self, lm: LanguageTower, head: Head, config: dict[str, Any]):
        super().__init__()
        self.lm = self.tower = lm
        self.head, self.config = head, config

    def build(self, generator: torch.Generator) -> None:
        self.register_buffer("seed", torch.randint(2**31, (), generator=generator))
        self._build_adapter()

    def _build_adapter(self) -> None:
        adapted = self.lm.with_peft_adapter(self.config, int(self.seed))
        object.__setattr__(self, "adapter", adapted)  # not a submodule: only what it trains is part of this Module
        self.tower = adapted.tower
        self.trainable = nn.ParameterDict({n.replace(".", "/"): p for n, p in adapted.trainable_parameters.items()})
        for name, tensor in adapted.extra_state.items():
            self.register_buffer(f"state/{name.replace('.', '/')}", tensor)
        if isinstance(self.head, Verbalizer | ResponseHead):
            self.head.lm = self.tower
        adapted.train(self.training)

    def restore(self, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
        for lesson in lessons:
            self.begin_lesson(lesson.without_items(), torch.Generator())
        self.seed = state["seed"]  # what is drawn and not trained is drawn again
        self._build_adapter()
        self.load_state_dict(state)

    def train(self, mode: bool = True) -> "Peft":
        if "adapter" in vars(self):
            self.adapter.train(mode)
        super().train(mode)
        return self

    def prompt(self, n: int) -> Prompt:
        return self.adapter.prompt()

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        terms, out = super().loss_terms(batch, fixed)
        if (penalty := self.adapter.penalty()) is not None:
            terms["orthogonality"] = penalty, len(batch.labels)
        return terms, out

    def end_step(self, step: int, steps: int) -> None:
        self.adapter.end_step(step, steps)
