"""Side-tuning: Zhang et al., "Side-Tuning: A Baseline for Network Adaptation", ECCV 2020, arXiv:1912.13503.

A small network reads the pixels too, and its feature is blended with the frozen one: a f(x) + (1 - a) W s(x), with
a = sigmoid(blend) learned from one half on. Sites: none; the frozen feature is computed once.

Differs from VPT's baseline (arXiv:2203.12119) in: the side network is four convolutions of our own, trained from
scratch, where that one is an AlexNet with ImageNet weights; it works on every backbone (there it is left out silently
on self-supervised ones).

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 58.21, 68.12, 23.41; FGVC 78.35 (Table 1 of
VPT, with AlexNet).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.images import Images
from vlprompt.core.method import TowerMethod
from vlprompt.core.towers import VisionTower
from vlprompt.layers.initial_values import make_linear


class SideTuning(TowerMethod[VisionTower]):
    """A small convolutional network whose feature is blended with that of an image tower.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        width: channels of the first convolution, doubled by each of the next three.
    """

    def __init__(self, tower: VisionTower, head: Head, width: int = 16):
        super().__init__()
        self.tower, self.head, self.width = tower, head, width

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(width=1)
        device, layers, channels = self.tower.device, list[nn.Module](), 3
        for i in range(4):
            conv = nn.Conv2d(channels, self.width * 2**i, 3, stride=2, padding=1, bias=False, device=device)
            fan_in = 9 * channels
            conv.weight.data.copy_(torch.randn(conv.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
            channels = self.width * 2**i
            layers += [conv, nn.GroupNorm(1, channels, device=device), nn.ReLU()]
        self.side_network = nn.Sequential(*layers)
        self.projection = make_linear(channels, self.tower.feature_dim, generator, device, bias=False)
        self.blend = nn.Parameter(torch.zeros((), device=device))

    def compute_features(self, inputs: Images, tower: VisionTower) -> Tensor:
        pixels, a = inputs.pixels(tower.preprocessing).to(tower.device), self.blend.sigmoid()
        return a * tower(inputs) + (1 - a) * self.projection(self.side_network(pixels).mean((2, 3)))
