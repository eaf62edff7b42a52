"""Image towers: a walked ViT, or any network as it is. Called without a prompt they look features up."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprompt.backbones.cache.memory import Kept
from vlprompt.backbones.towers.input_size import by, check_numbers, check_patches, check_width, stretched
from vlprompt.backbones.towers.trainable import Upper, Whole, lower
from vlprompt.core.compute_options import PLAINLY
from vlprompt.core.images import Images, Look
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.block import Attend, Block, check, everyone, find_sites, step, walk
from vlprompt.layers.frozen_maps import Map, same
from vlprompt.layers.weight_merging import fold, merged_blocks
from vlprompt.runtime import collectives

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
ROWS = 512  # token rows of one pass on a CPU


class ImageTower:
    """What all image towers share: looks, and features that are computed once.

    `net` maps pixels (B, 3, h, w) to features (B, E), un-normalised. A feature is a pure function of the weights, the
    look, the item and its view: misses are computed in passes of one fixed size and by the kernels that are usual
    (whatever the caller chose), so its bits don't depend on its neighbours.
    """

    depth, dim, heads, head_dim, special, size = 0, 0, 0, 0, 0, 0  # size: frozen parameters
    grid: tuple[int, int] = (0, 0)
    asked = False  # whether the look was asked for, instead of the one that the weights were trained with
    notes: Mapping[str, str] = {}  # replaced, never written into
    how = PLAINLY  # how the blocks are computed

    def __init__(self, net: Map, width: int, look: Look, key: str, device: torch.device, tokens: int = 0):
        self.net, self.width, self.look, self.key, self.device = net, width, look, key, device
        self.spec = key.partition("#")[0]  # what `load` was asked for
        pass_size = max(1, ROWS // tokens) if tokens else 8
        self.pass_size = pass_size if device.type == "cpu" else 32 * pass_size
        self.kept, self.positions = Kept(), torch.empty(0, 0)

    def _refuse(self) -> ValueError:
        return ValueError(
            f"the image tower of {self.key.split('#')[0]} has no blocks that vlprompt can walk, so it takes no "
            "tokens, prefixes or parts, only its pooled feature can be read, and no block of it can be trained; "
            "use a ViT, for example open_clip:ViT-B-16/openai, timm:vit_base_patch16_224/orig_in21k or glyph-vit"
        )

    def __call__(self, images: Images, prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        """pooled: features (B, E). An opaque tower takes no prompt: ValueError."""
        if prompt or read != "pooled":
            raise self._refuse()
        return self.looked_up(images)

    def looked_up(self, images: Images) -> Tensor:
        collectives.divided(self.kept, images.keys, lambda keys: self._computed(images, keys))
        found: dict[str, Tensor] = {}
        missing: dict[str, int] = {}
        for i, key in enumerate(images.keys):
            if key is not None and (before := self.kept.get(key)) is not None:
                found[key] = before
            elif key is not None:
                missing.setdefault(key, i)
        if missing:
            found |= self._computed(images, missing)
        drawn = [i for i, key in enumerate(images.keys) if key is None]
        fresh = dict(zip(drawn, self.computed(images, drawn), strict=True)) if drawn else {}
        return torch.stack([fresh[i] if key is None else found[key] for i, key in enumerate(images.keys)])

    def _computed(self, images: Images, keys: Iterable[str]) -> dict[str, Tensor]:
        """The features of some of the images, which are kept."""
        place, wanted, found = {k: i for i, k in reversed([*enumerate(images.keys)])}, list(keys), dict[str, Tensor]()
        for begin in range(0, len(wanted), self.pass_size):
            some, after = (wanted[i : i + self.pass_size] for i in (begin, begin + self.pass_size))
            features = self.computed(images, [place[key] for key in some], [place[key] for key in after])
            for key, feature in zip(some, features, strict=True):
                found[key] = feature
                self.kept.keep(key, feature.clone())
        return found

    def computed(self, images: Images, places: list[int], after: Sequence[int] = ()) -> Tensor:
        """(len(places), E), through passes of one size, the last filled up; after: places whose decoding is started."""
        parts = []
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), sdpa_kernel(KERNELS):
            for begin in range(0, len(places), self.pass_size):
                some = places[begin : begin + self.pass_size]
                pixels = images.some(self.look, some, once=True).to(self.device)
                images.start(self.look, places[begin + self.pass_size :][: self.pass_size] or after, once=True)
                filled = torch.cat([pixels, pixels[-1:].expand(self.pass_size - len(some), -1, -1, -1)])
                parts.append(self.encode(filled)[: len(some)])
                check_numbers(parts[-1], self.spec)
        return torch.cat(parts)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, h, w) -> features (B, E), nothing kept."""
        return self.net(pixels)

    def at(self, look: Look) -> "ImageTower":
        """The same weights with another look; ValueError for a size that they can't take."""
        check_width(self.net, self.width, self.look, look, self.device, self.spec)
        return self._again(self.net, look, 0)

    def _again(self, net: Map, look: Look, tokens: int) -> Any:
        ImageTower.__init__(found := copy(self), net, self.width, look, self.key, self.device, tokens)
        found.spec, found.asked, found.kept = self.spec, True, self.kept.of(found)
        return found

    def sites(self, *names: str) -> dict[str, tuple[int, int]]:
        raise self._refuse()

    def merged(self, prompt: Prompt) -> "ImageTower":
        raise self._refuse()

    def cut(self, k: int) -> "tuple[ImageTower, nn.Module]":
        raise self._refuse()

    def copy(self) -> nn.Module:
        raise self._refuse()


class ViT(ImageTower):
    """An image tower that is walked block by block.

    unfold: pixels (B, 3, h, w) -> patches (B, N, 3 * patch²); embed: patches -> (B, N, D); special (S, D): class and
    register tokens; positions (S + N, D); pool: rows (B, r, D) -> (B, D); project: (B, D) -> (B, E). read: how many
    first rows the pool reads (None: all but the prompt's: they never count). norm_last: the last norm follows the pool.
    attention: between all rows of an image, where it is not the plain one (rotary positions).
    """

    def __init__(self, blocks: Sequence[Block], *, unfold: Map, embed: Map, special: Tensor, positions: Tensor,
                 pre: Map, norm: Map, pool: Map, project: Map, read: int | None, norm_last: bool, width: int,
                 patch: int, grid: tuple[int, int], look: Look, key: str, device: torch.device,
                 attention: Attend | None = None):  # fmt: skip
        super().__init__(same, width, look, key, device, len(positions))
        self.blocks, self.unfold, self.embed = blocks, unfold, embed
        self.class_tokens, self.positions = special, positions
        self.pre, self.norm, self.pool, self.project = pre, norm, pool, project
        self.read, self.norm_last, self.attention = read, norm_last, attention or everyone(causal=False)
        self.depth, self.dim, self.heads = len(blocks), positions.shape[1], blocks[0].heads
        self.head_dim, self.special, self.patch, self.grid = self.dim // self.heads, len(special), patch, grid
        self.own, self.turned = (look.size, grid, positions), attention is not None

    def at(self, look: Look) -> "ViT":
        """The same weights with another look; the patches' positions are interpolated where they are too few or many.

        They are always made from those that the weights came with. ValueError for a size that is no multiple of the
        patch, and for another size where positions are rotary.
        """
        (size, grid, positions), s = self.own, self.special
        notes = {k: how for k, how in self.notes.items() if k != "positions"}
        if look.size != size:
            check_patches(look.size, self.patch, self.spec)
            if self.turned:
                hint = "leave look out (look=null, where a recipe has one)"
                raise ValueError(f"{self.spec} has rotary positions, made for {by(size)} pixels: {hint}")
            grid = (look.size[0] // self.patch, look.size[1] // self.patch)
        if grid != self.own[1]:
            positions = torch.cat([positions[:s], stretched(positions[s:], self.own[1], grid)])
            notes["positions"] = f"of {by(self.own[1])} patches interpolated to {by(grid)}, as timm does"
        found = self._again(same, look, len(positions))
        found.positions, found.grid, found.notes = positions, grid, notes
        return found

    def sites(self, *names: str) -> dict[str, tuple[int, int]]:
        """{"0/q": (fan_in, fan_out), ...}.

        Kinds: patch, norm, and per layer q k v out up down norm1 norm2 attn mlp attn+ mlp+.
        """
        return find_sites(self.blocks, names, {"patch": (3 * self.patch**2, self.dim), "norm": (self.dim, self.dim)})

    def __call__(self, images: Images, prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        """pooled (B, E), un-normalised.

        Prompts (B, P, D) and tokens (B, N, D): rows after the last norm, unprojected.
        """
        if not prompt and read == "pooled":
            return self.looked_up(images)
        return self._pass(images.pixels(self.look).to(self.device), prompt, read)

    def _pass(self, pixels: Tensor, prompt: Prompt, read: str) -> Tensor:
        if read not in ("pooled", "prompts", "tokens"):
            raise ValueError(f"an image tower reads 'pooled', 'prompts' or 'tokens', not {read!r}")
        check(prompt, self.depth)
        if any(t.ndim != 3 for t in prompt.tokens.values()):
            raise ValueError(
                "an image tower takes tokens (R, P, D), one set per image or one for all; got one set per class"
            )
        if read == "prompts" and not prompt.length:
            raise ValueError("there are no prompt rows to read: the prompt has no tokens")
        return self.ended(*self.begun(pixels, prompt), read)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.ended(*self.begun(pixels, NOTHING), "pooled")

    def begun(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Prompt]:
        """Rows (B, N, D) for the first block, and the prompt, whose tokens for it have passed the first norm too."""
        patches = self.unfold(pixels)
        x = prompt.part("patch", patches, self.embed(patches))
        x = self.pre(torch.cat([self.class_tokens.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.positions)
        if 0 in prompt.tokens:
            tokens = {i: self.pre(t) if i == 0 else t for i, t in prompt.tokens.items()}
            prompt = Prompt(tokens, prompt.prefix, prompt.beside)
        return x, prompt

    def ended(self, x: Tensor, prompt: Prompt, read: str) -> Tensor:
        """Rows (B, N, D) through the blocks, and what is read of them."""
        s, few = self.special, self.read if read == "pooled" else None
        wanted = None if few is None else torch.arange(few, device=x.device)
        x = walk(self.blocks, x, prompt, attention=self.attention, slot=s, rows=wanted, prompts=read == "prompts",
                 by=self.how.by(step))  # fmt: skip
        if read == "pooled" and self.norm_last:
            x = self.pool(x)
        x = prompt.part("norm", x, self.norm(x))
        if read == "tokens":
            return x[:, s:]
        if read == "prompts":
            return x
        return self.project(x if self.norm_last else self.pool(x))

    def merged(self, prompt: Prompt) -> "ViT":
        """A tower with the parts of the prompt in its weights (of blocks, patches and the last norm).

        ValueError for tokens, prefixes, and parts that can't be folded (adapters).
        """
        if len(prompt.tokens) or len(prompt.prefix):
            raise ValueError("tokens and prefixes can't be folded into weights; only what stands beside a map can")
        check(prompt, self.depth)
        made = copy(self)
        made.blocks = merged_blocks(self.blocks, prompt)
        made.embed = fold("patch", self.embed, prompt.beside["patch"]) if "patch" in prompt.beside else self.embed
        made.norm = fold("norm", self.norm, prompt.beside["norm"]) if "norm" in prompt.beside else self.norm
        made.kept = self.kept.like(None, made)
        return made

    def cut(self, k: int) -> tuple[ImageTower, Upper]:
        """What comes before the last k blocks, whose rows (B, N, D) are kept as features are; and these, trainable."""
        if not 1 <= k <= self.depth:
            raise ValueError(f"a tower of {self.depth} blocks can be cut before its last 1 to {self.depth}, not {k}")
        rows = lower(self, self.depth - k)
        below = ImageTower(rows, self.dim, self.look, f"{self.key}/cut{k}", self.device, len(self.positions))
        below.kept = self.kept.of(below)
        return below, Upper(self, self.depth - k)

    def copy(self) -> Whole:
        """A trainable copy: pixels (B, 3, h, w) -> features (B, E)."""
        return Whole(self)
