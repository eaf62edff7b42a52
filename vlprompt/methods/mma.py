"""MMA: Yang, Zhang, Wang and Xie, "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024.

Pages 23826 to 23837 of the proceedings (arXiv: none). Beside each of the upper blocks of both towers stands a
bottleneck, which reads the block's input behind its frozen norm and is added to the block's output. Its middle layer is
shared by the two towers. Sites: block of the last 8 of 12 layers of both towers.

Differs from the authors' code in: class texts are encoded anew for each test (theirs are cached for good); float32.
Their adapters get 1 / scale times their gradient, as if the scale were 1, and so do these: with plain gradients the
rate would be a thousand times smaller. From the paper in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 83.20, new 76.80, harmonic mean 79.87.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlprompt.core.class_names import DEFAULT_TEMPLATE
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.methods._adaptation import require_positive
from vlprompt.methods._clip_adapters import ClipAdapterMethod, TowerName


def _make_layer(fan_in: int, fan_out: int, generator: Generator, device: torch.device) -> nn.Linear:
    """A linear layer with He's initial values by its outputs, and no bias at the start."""
    layer = nn.Linear(fan_in, fan_out)
    layer.weight.data.copy_(torch.randn(fan_out, fan_in, generator=generator) * (2 / fan_out) ** 0.5)
    layer.bias.data.zero_()
    return layer.to(device)


class _Bottleneck(NamedTuple):
    """outputs + scale * up(relu(shared(relu(down(inputs))))), of the weights and biases of three linear maps."""

    down: Tensor
    down_bias: Tensor
    shared: Tensor
    shared_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scale: float

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        hidden = F.linear(inputs, self.down, self.down_bias).relu()
        hidden = F.linear(hidden, self.shared, self.shared_bias).relu()
        return outputs + self.scale * F.linear(hidden, self.up, self.up_bias)


class MMA(ClipAdapterMethod):
    """Bottlenecks beside the blocks of both towers, with a shared layer.

    Args:
        clip: frozen CLIP.
        bottleneck_dim: width of the bottleneck and of its shared layer.
        layers: how many upper blocks of each tower have one, or their indices in both.
        scale: of what a bottleneck adds.
        template: of the class texts; default one for every dataset, as in the paper; None: the dataset's own.
        logit_scale: of the logits; default the CLIP's own.
    """

    tower_layers: Mapping[str, Sequence[int]]

    def __init__(
        self,
        clip: Clip,
        bottleneck_dim: int = 32,
        layers: int | tuple[int, ...] = 8,
        scale: float = 0.001,
        template: TemplateChoice = DEFAULT_TEMPLATE,
        logit_scale: float | None = None,
    ):
        super().__init__(clip, ("text", "image"), ("block",), None, logit_scale, template)
        self.bottleneck_dim, self.scale = bottleneck_dim, scale
        self.layers = layers if isinstance(layers, int) else tuple(layers)

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        if lesson.index:
            return
        self.require_at_least(bottleneck_dim=1)
        require_positive(self, "scale")
        self.tower_layers = self._choose_layers()
        hidden, device = self.bottleneck_dim, self.clip.device
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        for name, layers in self.tower_layers.items():
            width = getattr(self.clip, name).dim
            self.down[name] = nn.ModuleList(_make_layer(width, hidden, generator, device) for _ in layers)
            self.up[name] = nn.ModuleList(_make_layer(hidden, width, generator, device) for _ in layers)
        shared = (_make_layer(hidden, hidden, generator, device) for _ in self.tower_layers["text"])
        self.shared = nn.ModuleList(shared)

    def _choose_layers(self) -> Mapping[str, Sequence[int]]:
        """The blocks of each tower that have a bottleneck, as many in both."""
        towers = {"text": self.clip.text, "image": self.clip.image}
        for tower in towers.values():
            tower.require_blocks()
        depth = min(tower.depth for tower in towers.values())
        if isinstance(self.layers, int):
            n = self.clip_to_depth("layers", depth)
            return {name: range(tower.depth - n, tower.depth) for name, tower in towers.items()}
        return dict.fromkeys(towers, sorted(set(self.clip_layers("layers", depth))))

    def prompt(self, tower: TowerName) -> Prompt:
        layers = enumerate(self.tower_layers[tower])
        return Prompt(adapters={f"{i}/block": self._build_bottleneck(tower, index) for index, i in layers})

    def _build_bottleneck(self, tower: TowerName, index: int) -> _Bottleneck:
        lists = cast(nn.ModuleList, self.down[tower]), self.shared, cast(nn.ModuleList, self.up[tower])
        down, shared, up = (cast(nn.Linear, layers[index]) for layers in lists)
        weights = down.weight, down.bias, shared.weight, shared.bias, up.weight, up.bias
        return _Bottleneck(*weights, self.scale)

    def merge_gradients(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        return [g / self.scale for g in super().merge_gradients(grads)]
