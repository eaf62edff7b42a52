"""All of a transformers model, trained: the exception that is asked for by name (tower.copy())."""

import copy
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vlprompt.passages import Passages
from vlprompt.prompt import NOTHING, Prompt

if TYPE_CHECKING:
    from vlprompt.backbones.hf.tower import LM


class Copy(nn.Module):
    """All of a model, to be trained."""

    def __init__(self, tower: "LM"):
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
