"""Methods on a bare image tower: VPT and SSF against the authors' numbers, the rivals against twins on timm's ViT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from shared import OWN_GOLDEN, golden, golden_cases, golden_vit_of, images, relative, vit_tower_of
from torch import nn

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import CosineHead, LinearHead
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(ClassName(f"class {i}", str(i)) for i in range(7))


@pytest.fixture(scope="module")
def trunk():
    return golden_vit_of(OWN_GOLDEN)


def as_tower(trunk, key="golden-vit"):
    return vit_tower_of(trunk, key)


@pytest.fixture(scope="module")
def tower(trunk):
    return as_tower(trunk)


@pytest.fixture(scope="module")
def pixels():
    return golden("vit-plain", OWN_GOLDEN)[1]["images"]


LABELS = torch.tensor([3, 0, 6, 1])


def begun(method, pixels=None, labels=LABELS, names=NAMES):
    pixels = golden("vit-plain", OWN_GOLDEN)[1]["images"] if pixels is None else pixels
    items = tuple(ImageItem(f"vit/{i}", lambda look, view, i=i: pixels[i]) for i in range(len(pixels)))
    method.begin_lesson(Lesson(Split(items, tuple(labels.tolist()), names)), make_generator(0))
    return method.train()


def loss_of(method, pixels, labels=LABELS, tag="vit", names=NAMES):
    terms, out = method.loss_terms(Batch(images(pixels, tag), labels, names), method.precompute(names))
    return sum(value for value, _ in terms.values()), out


def answer(method, pixels, tag="vit", names=NAMES):
    method.eval()
    with torch.no_grad():
        return method(images(pixels, tag), method.prepare(names, method.precompute(names))).logits


def shaken(method):
    """Away from where it starts, so that nothing is zero."""
    g = make_generator("shaken")
    for p in method.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    return method


def naive(trunk, x, attn=lambda i, x, y, a: a, mlp=lambda i, x, y, a: a):
    """timm's blocks written out: x the stream, y the normalised input, a what the sub-layer gave -> the feature."""
    x = trunk._pos_embed(trunk.patch_embed(x))
    for i, block in enumerate(trunk.blocks):
        y = block.norm1(x)
        x = x + attn(i, x, y, block.attn(y))
        y = block.norm2(x)
        x = x + mlp(i, x, y, block.mlp(y))
    return trunk.norm(x)[:, 0]


def head(method, features):
    return F.linear(features, method.head.weight, method.head.bias)


def test_the_plain_tower(authors_tower):
    _, gold = golden("vit-plain")
    inputs = images(gold["images"], "plain")
    assert relative(authors_tower(inputs), gold["cls"]) < 1e-5
    assert relative(authors_tower(inputs, output="tokens"), gold["tokens"][:, 1:]) < 1e-5


# the authors' own numbers


def put(method, arrays, kind, check=None):
    """Write the authors' arrays of a kind into the method, or compare with them."""
    for theirs in [k.removeprefix(f"{kind}.") for k in arrays if k.startswith(f"{kind}.")]:
        gold, parts = arrays[f"{kind}.{theirs}"], theirs.split(".")
        if parts[-1] == "prompt_embeddings":
            places = [(method.tokens, slice(0, 1))]
        elif parts[-1] == "deep_prompt_embeddings":
            places, gold = [(method.tokens, slice(1, None))], gold[:, None]
        elif "prompt_proj" in parts:
            places = [(getattr(method.projection, parts[-1]), slice(None))]
        elif "head" in parts:
            places = [(getattr(method.head, parts[-1]), slice(None))]
        else:
            places = ssf_places(method, parts)
        each = gold.chunk(len(places))
        gold_k = gold.abs().max()
        for (p, where), value in zip(places, each, strict=True):
            if check is None:
                p.data[where] = value.reshape(p.data[where].shape)
            else:
                mine = check(p)[where]
                assert (mine - value.reshape(mine.shape)).abs().max() < 1e-4 * gold_k, (kind, theirs)


def ssf_places(method, parts):
    """q, k and v are one vector there."""
    what, n = parts[-1].split("_")[1:]
    layer = parts[1] if parts[0] == "blocks" else None
    if layer is None:
        sites = ["patch"] if parts[0] == "patch_embed" else ["norm"]
    elif "attn" in parts:
        sites = [f"{layer}/{s}" for s in ("qkv" if n == "1" else ("out",))]
    else:
        names = ("up", "down") if "mlp" in parts else ("norm1", "norm2")
        sites = [f"{layer}/{names[int(n) - 1]}"]
    return [(getattr(method.adapters[s], what), slice(None)) for s in sites]


@pytest.mark.parametrize("name", golden_cases("vpt", "ssf"))
def test_golden(authors_tower, name):
    told, arrays = golden(name)
    h, x, labels = told["hyperparameters"], arrays["images"], arrays["labels"].long()
    names = tuple(ClassName(f"class {i}", str(i)) for i in range(told["num_classes"]))
    if name.startswith("ssf"):
        method = m.SSF(authors_tower, LinearHead())
    else:
        method = m.VPT(authors_tower, LinearHead(), h["NUM_TOKENS"], h["DEEP"], 0.0, h.get("PROJECT"))
    begun(method, x, labels, names)
    put(method, arrays, "param")
    assert relative(answer(method, x, name, names), arrays["logits"]) < 1e-4
    loss, _ = loss_of(method.train(), x, labels, name, names)
    assert relative(loss, arrays["loss"]) < 1e-4
    loss.backward()
    put(method, arrays, "grad", lambda p: p.grad)
    for p in method.parameters():
        p.data -= told["sgd"]["lr"] * p.grad
    put(method, arrays, "after", lambda p: p.detach())
    assert relative(answer(method, x, name, names), arrays["logits_after"]) < 1e-4


def test_vpt_starts_as_the_authors_say(tower):
    method = begun(m.VPT(tower, LinearHead("kaiming", -4.595), n_tokens=50))
    bound = (6 / (3 * 8 * 8 + 48)) ** 0.5
    assert method.tokens.shape == (4, 1, 50, 48)
    assert 0.98 * bound < method.tokens.abs().max() <= bound
    assert float(method.head.weight.detach().std()) == pytest.approx((2 / 7) ** 0.5, rel=0.1)
    assert torch.equal(method.head.bias, torch.full((7,), -4.595))
    assert method.param_groups()[1]["weight_decay"] == 0.0
    assert method.param_groups()[1]["params"][0] is method.head.bias
    narrow = begun(m.VPT(tower, LinearHead(), n_tokens=50, token_dim=10))
    bound = (6 / (3 * 8 * 8 + 10)) ** 0.5
    assert 0.98 * bound < narrow.tokens.abs().max() <= bound
    assert float(narrow.projection.weight.detach().std()) == pytest.approx((2 / 48) ** 0.5, rel=0.1)


def test_prompt_dropout_draws_a_mask_for_each_image_and_rests_at_test(tower, pixels):
    method = begun(m.VPT(tower, LinearHead(), n_tokens=5, dropout=0.5))
    tokens = method.prompt(3).tokens[1]
    assert tokens.shape == (3, 5, 48)
    assert not torch.equal(tokens[0] == 0, tokens[1] == 0)
    assert 0.3 < (tokens == 0).float().mean() < 0.7
    assert torch.equal(method.eval().prompt(3).tokens[1], method.tokens[1])


def test_vpt_and_bias_is_vpt_on_a_tower_with_those_biases(tower, trunk, pixels):
    method = shaken(begun(m.VPT(tower, LinearHead(), n_tokens=3, dropout=0.0, bias=True)))
    moved = copy.deepcopy(trunk)
    shift_biases(moved, method.shifts)
    plain = begun(m.VPT(as_tower(moved, "moved"), LinearHead(), n_tokens=3, dropout=0.0))
    plain.tokens.data, plain.head = method.tokens.data, method.head
    assert relative(answer(method, pixels), answer(plain, pixels)) < 1e-4


class AllRows(nn.Module):
    """A part that changes nothing and has every row computed, those of the tokens too."""

    mixes_rows = True

    def forward(self, given, made):
        return made


@pytest.mark.parametrize("rows", [1, 4])
def test_tokens_that_are_keys_and_values_only_give_what_whole_rows_give(tower, pixels, rows):
    """With a prefix in front of them, a shift beside them, a layer that keeps them, and one set for all or for each."""
    g = make_generator("whole")
    draw = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    tokens = {0: draw(rows, 3, 48), 1: draw(rows, 3, 48), 3: draw(rows, 3, 48)}
    prefix = {i: (draw(r, 3, 2, 16), draw(r, 3, 2, 16)) for i, r in ((0, 1), (1, 4), (3, 4))}
    part = m.BitFit(tower, LinearHead(), sites=("norm1", "k", "v", "up"))
    beside = dict(shaken(begun(part)).shifts.items())
    few = tower(images(pixels, "few"), Prompt(tokens, prefix, beside))
    whole = tower(images(pixels, "whole"), Prompt(tokens, prefix, beside | {"0/attn": AllRows()}))
    assert relative(few, whole) < 1e-5
    assert relative(few, tower(images(pixels, "without"), Prompt(tokens, adapters=beside))) > 1e-3


# twins of the rivals


def shift_biases(trunk, shifts):
    with torch.no_grad():
        trunk.patch_embed.proj.bias += shifts["patch"].bias
        trunk.norm.bias += shifts["norm"].bias
        for i, b in enumerate(trunk.blocks):
            b.attn.qkv.bias += torch.cat([shifts[f"{i}/{s}"].bias for s in "qkv"])
            pairs = {"norm1": b.norm1, "norm2": b.norm2, "out": b.attn.proj, "up": b.mlp.fc1, "down": b.mlp.fc2}
            for site, layer in pairs.items():
                layer.bias += shifts[f"{i}/{site}"].bias


def test_bitfit(tower, trunk, pixels):
    method, twin = shaken(begun(m.BitFit(tower, LinearHead()))), copy.deepcopy(trunk)
    shift_biases(twin, method.shifts)
    logits = head(method, naive(twin, pixels))
    F.cross_entropy(logits, LABELS).backward()
    loss, out = loss_of(method, pixels)
    loss.backward()
    assert relative(out.logits, logits) < 1e-4
    for i, b in enumerate(twin.blocks):
        mine = torch.cat([method.shifts[f"{i}/{s}"].bias.grad for s in "qkv"])
        assert relative(mine, b.attn.qkv.bias.grad) < 1e-4
        assert relative(method.shifts[f"{i}/norm2"].bias.grad, b.norm2.bias.grad) < 1e-4
        assert relative(method.shifts[f"{i}/up"].bias.grad, b.mlp.fc1.bias.grad) < 1e-4
    assert relative(method.shifts["patch"].bias.grad, twin.patch_embed.proj.bias.grad) < 1e-4
    assert relative(method.shifts["norm"].bias.grad, twin.norm.bias.grad) < 1e-4


@pytest.mark.parametrize(("scaling", "scale"), [("alpha/r", 3 / 2), ("alpha/sqrt(r)", 3 / 2**0.5)])
def test_lora(tower, trunk, pixels, scaling, scale):
    sites = ("q", "v", "out", "up", "down")
    method = shaken(begun(m.LoRA(tower, LinearHead(), 2, 3.0, sites, layers=(1, 3), scaling=scaling)))
    assert set(method.adapters) == {f"{i}/{s}" for i in (1, 3) for s in sites}
    twin = copy.deepcopy(trunk)
    with torch.no_grad():
        for site, part in method.adapters.items():
            i, kind = site.split("/")
            b = twin.blocks[int(i)]
            rows = {"q": slice(0, 48), "v": slice(96, 144)}.get(kind, slice(None))
            layer = {"out": b.attn.proj, "up": b.mlp.fc1, "down": b.mlp.fc2}.get(kind, b.attn.qkv)
            layer.weight[rows] += scale * part.up @ part.down
    assert relative(loss_of(method, pixels)[1].logits, head(method, naive(twin, pixels))) < 1e-4


@pytest.mark.parametrize("design", ["houlsby", "pfeiffer"])
def test_adapter(tower, trunk, pixels, design):
    method = begun(m.Adapter(tower, LinearHead(), design, reduction=4))
    assert all(not p.up.weight.any() and p.down.weight.any() for p in method.adapters.values())
    shaken(method)

    def behind(kind):
        def f(i, x, y, a):
            part = method.adapters[f"{i}/{kind}"]
            hidden = F.gelu(a @ part.down.weight.T + part.down.bias)
            assert hidden.shape[-1] == 12
            return a + hidden @ part.up.weight.T + part.up.bias

        return f

    more = {"attn": behind("attn")} if design == "houlsby" else {}
    assert len(method.adapters) == (8 if more else 4)
    logits = head(method, naive(trunk, pixels, mlp=behind("mlp"), **more))
    assert relative(loss_of(method, pixels)[1].logits, logits) < 1e-4


def test_adaptformer(tower, trunk, pixels):
    method = shaken(begun(m.AdaptFormer(tower, LinearHead(), bottleneck_dim=6, scale=0.3, dropout=0.0)))

    def beside(i, x, y, a):
        part = method.adapters[f"{i}/mlp+"]
        return a + 0.3 * (F.relu(x @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias)

    assert relative(loss_of(method, pixels)[1].logits, head(method, naive(trunk, pixels, mlp=beside))) < 1e-4


def test_convpass(tower, trunk, pixels):
    method = begun(m.Convpass(tower, LinearHead(), bottleneck_dim=6, scale=0.5, dropout=0.0))
    first = method.adapters["0/attn"]
    x = torch.randn(2, 17, 6)
    kernel = first.conv.weight.detach()
    assert torch.equal(kernel[:, :, 1, 1], torch.eye(6))
    assert float(kernel.abs().sum()) == 6
    assert x.shape[1] == 1 + first.grid[0] * first.grid[1]
    shaken(method)

    def bypass(kind):
        def f(i, x, y, a):
            p = method.adapters[f"{i}/{kind}"]
            act = lambda t: t * torch.sigmoid(1.702 * t)  # noqa: E731
            h = act(F.linear(y, p.down.weight, p.down.bias))
            square = h[:, 1:].reshape(len(h), 4, 4, 6).permute(0, 3, 1, 2)
            square = p.conv(square).permute(0, 2, 3, 1).reshape(len(h), 16, 6)
            one = (
                p.conv(h[:, :1].reshape(len(h), 1, 1, 6).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(len(h), 1, 6)
            )
            return a + 0.5 * F.linear(act(torch.cat([one, square], 1)), p.up.weight, p.up.bias)

        return f

    logits = head(method, naive(trunk, pixels, attn=bypass("attn"), mlp=bypass("mlp")))
    F.cross_entropy(logits, LABELS).backward()
    want = {n: p.grad.clone() for n, p in method.named_parameters()}
    method.zero_grad()
    loss, out = loss_of(method, pixels)
    loss.backward()
    assert relative(out.logits, logits) < 1e-4
    assert all(relative(p.grad, want[n]) < 1e-4 for n, p in method.named_parameters())


def test_mlp(tower, trunk, pixels):
    method = begun(m.MLP(tower, LinearHead(), n_layers=3, dropout=0.0))
    net = nn.Sequential(*(nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.BatchNorm1d(48)) for _ in range(2)))
    theirs = [p for block in net for p in (*block[0].parameters(), *block[2].parameters())]
    for a, b in zip(theirs, method.hidden_layers.parameters(), strict=True):
        a.data = b.data.clone()
    for _ in range(2):  # the running means too
        x = net(naive(trunk, pixels))
        assert relative(loss_of(method, pixels)[1].logits, head(method, x)) < 1e-4
    assert relative(answer(method, pixels), head(method, net.eval()(naive(trunk, pixels)))) < 1e-4
    with pytest.raises(ValueError, match=r"at least 2 images.* normalises over a batch, got a batch of 1. Set another"):
        loss_of(method.train(), pixels[:1], LABELS[:1])


def test_side_tuning(tower, trunk, pixels):
    method = begun(m.SideTuning(tower, LinearHead(), width=4))
    assert not method.blend.any()
    shaken(method)
    x = pixels
    for conv, norm in zip(method.side_network[::3], method.side_network[1::3], strict=True):
        x = F.conv2d(x, conv.weight, stride=2, padding=1)
        x = F.relu(F.group_norm(x, 1, norm.weight, norm.bias))
    side = x.mean((2, 3)) @ method.projection.weight.T
    a = float(method.blend.detach().sigmoid())
    logits = head(method, a * naive(trunk, pixels) + (1 - a) * side)
    assert relative(loss_of(method, pixels)[1].logits, logits) < 1e-4


def test_cosine_head(tower, trunk, pixels):
    method = begun(m.Linear(tower, CosineHead(8.0), solver="fit"))
    x, w = naive(trunk, pixels), method.head.weight
    assert relative(loss_of(method, pixels)[1].logits, 8.0 * F.cosine_similarity(x[:, None], w[None], dim=-1)) < 1e-4
    assert {n for n, _ in method.named_parameters()} == {"head.weight", "head.gain"}
    with pytest.raises(ValueError, match=r"got 'lbfgs', which solves a linear head. Set method.solver=fit"):
        begun(m.Linear(tower, CosineHead()))


def gradients_of_twin(twin, method, pixels):
    F.cross_entropy(head(method, naive(twin, pixels)), LABELS).backward()
    head_grads = method.head.weight.grad.clone()
    method.zero_grad()
    loss, out = loss_of(method, pixels)
    loss.backward()
    assert relative(method.head.weight.grad, head_grads) < 1e-4
    return out


def check_block(mine, theirs):
    pairs = {"norm1": theirs.norm1, "qkv": theirs.attn.qkv, "out": theirs.attn.proj, "norm2": theirs.norm2,
             "up": theirs.mlp.fc1, "down": theirs.mlp.fc2}  # fmt: skip
    assert set(mine.maps) == set(pairs)
    for name, layer in pairs.items():
        assert relative(mine.maps[name].weight.grad, layer.weight.grad) < 1e-4
        assert relative(mine.maps[name].bias.grad, layer.bias.grad) < 1e-4


@pytest.mark.parametrize("k", [1, 3])
def test_partial(tower, trunk, pixels, k):
    method, twin = begun(m.Partial(tower, LinearHead(), n_blocks=k)), copy.deepcopy(trunk)
    assert len(method.upper.layers) == k
    gradients_of_twin(twin, method, pixels)
    for mine, theirs in zip(method.upper.layers, twin.blocks[4 - k :], strict=True):
        check_block(mine, theirs)
    assert relative(method.upper.norm.weight.grad, twin.norm.weight.grad) < 1e-4
    trained = sum(p.numel() for b in twin.blocks[4 - k :] for p in b.parameters()) + 2 * 48
    assert sum(p.numel() for p in method.upper.parameters()) == trained
    with pytest.raises(ValueError, match=r"method\.n_blocks: expected at most 4, the blocks of the tower, got 9"):
        begun(m.Partial(tower, LinearHead(), n_blocks=9))


def test_partial_keeps_what_comes_before_its_cut(tower, pixels, monkeypatch):
    method, passes = begun(m.Partial(tower, LinearHead(), n_blocks=1)), []
    encode = method.lower.encode
    monkeypatch.setattr(method.lower, "encode", lambda x, *output: passes.append(1) or encode(x, *output))
    for _ in range(3):
        loss_of(method, pixels, tag="kept")
    assert len(passes) == 1
    assert method.lower.key != tower.key  # what is kept are other things than features


def test_full(tower, trunk, pixels):
    method, twin = begun(m.Full(tower, LinearHead())), copy.deepcopy(trunk)
    gradients_of_twin(twin, method, pixels)
    for mine, theirs in zip(method.trained_tower.layers, twin.blocks, strict=True):
        check_block(mine, theirs)
    assert relative(method.trained_tower.embed.weight.grad, twin.patch_embed.proj.weight.grad.flatten(1)) < 1e-4
    assert relative(method.trained_tower.position_embeddings.grad, twin.pos_embed.grad[0]) < 1e-4
    assert relative(method.trained_tower.special_tokens.grad, twin.cls_token.grad[0]) < 1e-4
    assert sum(p.numel() for p in method.trained_tower.parameters()) == sum(p.numel() for p in twin.parameters())
    before = tower(images(pixels, "before full"))
    for p in method.trained_tower.parameters():
        p.data -= p.grad
    assert not torch.allclose(answer(method, pixels), head(method, before))
    assert torch.equal(tower(images(pixels, "after full")), before)


# folding


@pytest.mark.parametrize("make", [m.SSF, m.BitFit, lambda t, r: m.LoRA(t, r, 2, sites=("q", "k", "v", "out", "up"))])
def test_parts_fold_into_the_weights(trunk, pixels, make):
    """In float64 the merged tower and the parts beside the bare one give the same; a test uses the merged one."""
    tower = as_tower(copy.deepcopy(trunk).double(), "double")
    method = shaken(begun(make(tower, LinearHead())).double())
    x = pixels.double()
    beside = tower(images(x, "beside"), method.prompt(4))
    merged = tower.merged(method.prompt(4))
    assert float((merged(images(x, "merged")) - beside).detach().abs().max()) < 1e-12
    assert float((tower(images(x, "bare")) - beside).detach().abs().max()) > 1e-3
    prepared = method.eval().prepare(NAMES, method.precompute(NAMES))
    assert prepared[0] is tower
    with torch.no_grad():
        assert method.prepare(NAMES, method.precompute(NAMES))[0] is not tower
    assert torch.allclose(answer(method, x), head(method, beside).detach(), atol=1e-10)


def test_decay_spares_vectors(tower):
    """SSF's scales would shrink the tower's signal; the authors' optimizers spare them too."""
    for method in (m.SSF(tower, LinearHead()), m.BitFit(tower, LinearHead()), m.Full(tower, LinearHead())):
        matrices, vectors = begun(method).param_groups()
        assert vectors["weight_decay"] == 0.0
        assert all(p.ndim < 2 for p in vectors["params"])
        assert all(p.ndim > 1 for p in matrices["params"])
        assert len(matrices["params"]) + len(vectors["params"]) == len(list(method.parameters()))


@pytest.mark.parametrize("method", [m.SSF, m.BitFit])
def test_sites_that_cannot_be_folded_are_said_before_training(tower, method):
    with pytest.raises(ValueError, match=r"0/attn: expected a linear map or a norm, got a map without weights"):
        begun(method(tower, LinearHead(), sites=("attn",)))


def test_what_is_kept_stays_of_use_when_there_is_not_room_for_all():
    """Epoch after epoch in one order: what went at random leaves some, where the oldest would leave nothing."""
    from vlprompt.backbones.cache.memory import FeatureCache
    from vlprompt.runtime.bounded_cache import ENTRY_OVERHEAD_BYTES

    kept, hits = FeatureCache(max_bytes=20 * (4 + ENTRY_OVERHEAD_BYTES)), 0
    for _ in range(20):
        for i in range(30):
            if not kept.get_many([str(i)]):
                kept.add_computed(str(i), torch.zeros(1))
            else:
                hits += 1
    assert len(kept) == 20
    assert kept.used_bytes == 20 * (4 + ENTRY_OVERHEAD_BYTES)
    assert hits > 20 * 30 * 0.3


def test_layers_that_the_tower_has_not_are_refused(tower):
    with pytest.raises(ValueError, match=r"method\.layers: expected layers 0 to 3 of the tower, got 99"):
        begun(m.LoRA(tower, LinearHead(), layers=(0, 99)))


def test_what_cannot_be_folded_is_refused(tower):
    with pytest.raises(ValueError, match=r"_SequentialAdapter can't be merged into weights \(site 0/mlp\)"):
        tower.merged(begun(m.Adapter(tower, LinearHead())).prompt(1))
    with pytest.raises(ValueError, match=r"got tokens or prefixes, which can't be merged into weights. Leave them out"):
        tower.merged(Prompt(tokens={0: torch.zeros(1, 2, 48)}))
    with pytest.raises(ValueError, match=r"method\.sites: expected linear maps \(q k v .*\), got 'norm1'"):
        begun(m.LoRA(tower, LinearHead(), sites=("norm1",)))


@pytest.mark.parametrize("images_in_a_batch", [1, 4])
def test_constant_prompts_cost_keys_and_values_once(tower, pixels, images_in_a_batch):
    """The forward pass of a batch does as many operations for the tokens as that of one image, attention apart."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(n):
        method = begun(m.VPT(tower, LinearHead(), n_tokens=n, dropout=0.0)).eval().requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            x = images(pixels[:images_in_a_batch], f"flops{n}")
            method(x, method.prepare(NAMES, method.precompute(NAMES)))
        found = counted.get_flop_counts()["Global"]
        return sum(v for k, v in found.items() if "attention" not in str(k))

    assert count(25) - count(5) == 4 * 20 * 2 * (2 * 48 * 48)  # layers x tokens x (keys, values) x a product


# runs, as a user types them

VISION = ("adapter", "adaptformer", "bitfit", "convpass", "dualprompt", "full", "l2p", "linear", "lora", "mlp",
          "nearest_mean", "partial", "s_prompts", "side_tuning", "ssf", "vpt")  # fmt: skip


@pytest.mark.parametrize(
    "backbone",
    ["glyph-vit/random", pytest.param("timm:test_vit/random", marks=pytest.mark.slow), "timm:test_vit3/random"],
)
def test_every_rival_runs_on_bare_towers(type_in, pictures, backbone):
    names = ",".join(VISION)
    status, said = type_in("run", names, pictures, "--backbone", backbone, "--shots", "2", "train.epochs=1",
                           "train.iterations=null")  # fmt: skip
    assert status == 0, said
    assert all(f" {name} 2 " in said for name in VISION)


def test_a_method_on_a_network_without_blocks_says_what_it_lacks(type_in, pictures):
    for name in ("vpt", "lora", "partial", "full"):
        status, said = type_in("run", name, pictures, "--backbone", "timm:test_resnet/random", "--shots", "2")
        assert status == 2
        assert "timm:test_resnet/random: expected a block-wise tower" in said
    status, said = type_in("run", "mlp,nearest_mean,side_tuning", pictures, "--backbone", "timm:test_resnet/random",
                           "--shots", "2", "train.epochs=1", "train.iterations=null")  # fmt: skip
    assert status == 0, said


def test_more_prompts_than_there_is_memory_for_is_said(type_in, pictures):
    status, said = type_in("run", "vpt", pictures, "--backbone", "glyph-vit/random", "--shots", "2",
                           "method.n_tokens=100000000000")  # fmt: skip
    assert status == 2
    assert "memory: expected enough for this run" in said
    assert "method.n_tokens" in said


def test_a_head_for_other_classes_is_refused(type_in, pictures, tmp_path):
    assert type_in("run", "lora", pictures, "--backbone", "glyph-vit/random", "--shots", "2", "train.epochs=1")[0] == 0
    run = next((tmp_path / "runs").glob("lora-*"))
    status, said = type_in("eval", run, "digits")
    assert status == 2
    assert "linear head: no weights for class" in said


def test_a_table_tells_heads_apart_by_their_names(type_in, pictures):
    words = ("run", "linear", pictures, "--backbone", "glyph-vit/random", "--shots", "2", "method.solver=fit")
    for reader in ("linear", "cosine", "{name: cosine, scale: 4.0}"):
        assert type_in(*words, "train.epochs=1", f"method.head={reader}")[0] == 0
    said = type_in("table", "runs")[1]
    assert "(head=linear)" in said
    assert "(head={'name': 'cosine', 'scale': 4.0})" in said


def test_show_tells_the_heads(type_in):
    from vlprompt.config.sources import HEADS

    said = type_in("show", "ssf")[1]
    assert f"head: Head = linear ({', '.join(HEADS)})" in said
    assert "tower" not in said.partition("Arguments")[2].partition("Recipe")[0]


def test_weights_that_are_no_numbers_are_told(type_in, pictures, tmp_path):
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("test_vit", num_classes=0).state_dict()
    state["norm.weight"][0] = float("nan")
    save_file(state, str(tmp_path / "nan.safetensors"))
    backbone = f"timm:test_vit@{tmp_path / 'nan.safetensors'}"
    status, said = type_in("run", "linear", pictures, "--backbone", backbone, "--shots", "2")
    assert status == 2
    assert (
        "nan.safetensors: expected finite weights, got NaN or infinite values in 'norm.weight'. Its weights are" in said
    )


def test_more_blocks_than_there_are_is_said_of_the_setting(type_in, pictures):
    words = ("run", "partial", pictures, "--backbone", "glyph-vit/random", "--shots", "2", "method.n_blocks=99")
    assert "method.n_blocks: expected at most 3, the blocks of the tower, got 99" in type_in(*words)[1]


def test_a_table_tells_rows_apart_by_the_method_alone_where_that_is_enough(type_in, pictures):
    """The same at all shots, also where only one number of shots has two of them."""
    words = ("run", "vpt", pictures, "--backbone", "glyph-vit/random", "train.iterations=null")
    assert type_in(*words, "--shots", "1,2", "train.epochs=1")[0] == 0
    assert type_in(*words, "--shots", "2", "train.epochs=2", "train.lr=0.01", "method.deep=false")[0] == 0
    said = type_in("table", "runs", "--markdown", "t.md")[1]
    assert "vpt (deep=True)" in said
    assert "vpt (deep=False)" in said
    assert "epochs" not in said
