"""Image towers: a walked ViT, or any network as it is. Called without a prompt they look features up."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprompt.prompt import NOTHING, Prompt
from vlprompt.stage import Images, Look
from vlprompt.tower import Attend, Block, Map, check, everyone, find_sites, insert, walk

KEPT = 2**31  # bytes of features that a tower remembers; the oldest go first
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
ROWS = 512  # token rows of one pass on a CPU


class ImageTower:
    """What all image towers share: looks, and features that are computed once.

    `net` maps pixels (B, 3, h, w) to features (B, E), un-normalised. A feature is a pure function of the weights, the
    look, the item and its view: misses are computed in passes of one fixed size and by the kernels that are usual
    (whatever the caller chose), so its bits don't depend on its neighbours.
    """

    depth, dim, heads, head_dim, special = 0, 0, 0, 0, 0

    def __init__(self, net: Map, width: int, look: Look, key: str, device: torch.device, tokens: int = 0):
        self.net, self.width, self.look, self.key, self.device = net, width, look, key, device
        pass_size = max(1, ROWS // tokens) if tokens else 8
        self.pass_size = pass_size if device.type == "cpu" else 32 * pass_size
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def __call__(self, images: Images, prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        """pooled: features (B, E). An opaque tower takes no prompt: ValueError."""
        if prompt or read != "pooled":
            raise ValueError(
                f"the image tower of {self.key.split('#')[0]} has no blocks that vlprompt can walk, so it takes no "
                "tokens, prefixes or parts, and only its pooled feature can be read; "
                'use a ViT, for example "open_clip:ViT-B-16/openai"'
            )
        return self.looked_up(images)

    def looked_up(self, images: Images) -> Tensor:
        found: dict[str, Tensor] = {}
        missing: dict[str, int] = {}
        for i, key in enumerate(images.keys):
            if key in self._kept:
                found[key] = self._kept[key]
            elif key is not None:
                missing.setdefault(key, i)
        for begin in range(0, len(missing), self.pass_size):
            some = list(missing.items())[begin : begin + self.pass_size]
            features = self._features(images, [i for _, i in some])
            for (key, _), feature in zip(some, features, strict=True):
                found[key] = feature
                self._keep(key, feature.clone())
        drawn = [i for i, key in enumerate(images.keys) if key is None]
        fresh = dict(zip(drawn, self._features(images, drawn), strict=True)) if drawn else {}
        return torch.stack([fresh[i] if key is None else found[key] for i, key in enumerate(images.keys)])

    def _features(self, images: Images, places: list[int]) -> Tensor:
        """(len(places), E), always through passes of pass_size images; the last pass is filled up."""
        parts = []
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), sdpa_kernel(KERNELS):
            for begin in range(0, len(places), self.pass_size):
                some = places[begin : begin + self.pass_size]
                pixels = images.some(self.look, some).to(self.device)
                filled = torch.cat([pixels, pixels[-1:].expand(self.pass_size - len(some), -1, -1, -1)])
                parts.append(self.net(filled)[: len(some)])
        return torch.cat(parts)

    def _keep(self, key: str, feature: Tensor) -> None:
        self._kept[key] = feature
        self._bytes += feature.nbytes
        while self._bytes > KEPT and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def sites(self, *names: str) -> dict[str, tuple[int, int]]:
        raise ValueError(
            f"the image tower of {self.key.split('#')[0]} has no blocks that vlprompt can walk, so no sites; use a ViT"
        )


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
        super().__init__(lambda pixels: self._pass(pixels, NOTHING, "pooled"), width, look, key, device, len(positions))
        self.blocks, self.unfold, self.embed, self.class_tokens, self.positions = (
            blocks,
            unfold,
            embed,
            special,
            positions,
        )
        self.pre, self.norm, self.pool, self.project = pre, norm, pool, project
        self.read, self.norm_last, self.attention = read, norm_last, attention or everyone(causal=False)
        self.depth, self.dim, self.heads = len(blocks), positions.shape[1], blocks[0].heads
        self.head_dim, self.special, self.patch, self.grid = self.dim // self.heads, len(special), patch, grid

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
        s, p = self.special, prompt.length
        patches = self.unfold(pixels)
        x = prompt.part("patch", patches, self.embed(patches))
        x = torch.cat([self.class_tokens.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.positions
        if 0 in prompt.tokens:
            x = insert(x, s, prompt.tokens[0], inside=False)
        prompts, wanted = torch.arange(s, s + p, device=x.device), None
        if read == "prompts":
            wanted = prompts
        elif read == "pooled" and self.read is not None:
            wanted = torch.arange(self.read, device=x.device)
        elif p:
            patch_rows = torch.arange(p + len(self.positions), device=x.device)
            wanted = torch.cat([patch_rows[:s], patch_rows[s + p :]])
        x = walk(self.blocks, self.pre(x), prompt, attention=self.attention, slot=s, rows=wanted)
        if read == "pooled" and self.norm_last:
            x = self.pool(x)
        x = prompt.part("norm", x, self.norm(x))
        if read == "tokens":
            return x[:, s:]
        if read == "prompts":
            return x
        return self.project(x if self.norm_last else self.pool(x))
