"""Convpass: Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", arXiv:2207.07039.

A bottleneck with a 3 x 3 convolution over the grid of patches runs beside attention and beside the MLP of every block,
on the normalised input; class and register rows are convolved as pictures of one pixel. Sites: attn and mlp.

Differs from the authors' code in: the last epoch is tested, where theirs reports the best of every tenth on the test
images; in towers with layer scale the bypass joins before it; no stochastic depth. For some of VTAB's
sets theirs has bypasses beside attention only, or starts the convolution otherwise; here all sets have the same.

Expected (VTAB-1k, ViT-B/16 of IN-21k): mean of the group means 76.56, where VPT has 71.96 and full fine-tuning 68.96
(the authors' README).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import dense


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class _Bypass(nn.Module):
    """made + scale * up(dropout(act(conv(act(down(given)))))), given (B, S + h w, D) with S rows before the patches."""

    mixes_rows = True

    def __init__(self, width: int, hidden: int, scale: float, dropout: float, special: int, grid: tuple[int, int],
                 generator: torch.Generator, device: torch.device):  # fmt: skip
        super().__init__()
        self.scale, self.special, self.grid, self.dropout = scale, special, grid, nn.Dropout(dropout)
        self.down, self.up = dense(width, hidden, generator, device), nn.Linear(hidden, width, device=device)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, device=device)
        bound = (6 / (width + hidden)) ** 0.5  # Xavier's
        self.down.weight.data.copy_((torch.rand(hidden, width, generator=generator) * 2 - 1) * bound)
        for tensor in (self.down.bias, self.up.weight, self.up.bias, self.conv.weight, self.conv.bias):
            assert tensor is not None, "this convolution has a bias"
            tensor.data.zero_()
        self.conv.weight.data[:, :, 1, 1] = torch.eye(hidden, device=device)

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        x = quick_gelu(self.down(given))
        alone, patches = x[:, : self.special], x[:, self.special :]
        patches = self.conv(patches.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)
        alone = nn.functional.linear(alone, self.conv.weight[:, :, 1, 1], self.conv.bias)  # a picture of one pixel
        x = self.dropout(quick_gelu(torch.cat([alone, patches], 1)))
        return made + self.scale * self.up(x)


class Convpass(OnTower):
    """Convolutional bypasses in an image tower.

    hidden: their width; scale: of what they add (the paper searches 0.01 to 100 for each dataset); dropout: inside.
    """

    def __init__(self, tower: VisionTower, reader: Reader, hidden: int = 8, scale: float = 1.0, dropout: float = 0.1):
        super().__init__()
        self.tower, self.reader, self.hidden, self.scale, self.dropout = tower, reader, hidden, scale, dropout

    def build(self, generator: torch.Generator) -> None:
        self.at_least(hidden=1, dropout=0)
        found, where = self.tower.sites("attn", "mlp"), (self.tower.special, self.tower.grid)
        more = (self.hidden, self.scale, self.dropout, *where, generator, self.tower.device)
        self.parts = nn.ModuleDict({site: _Bypass(out, *more) for site, (_, out) in found.items()})

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.parts)
