"""Methods of streams: L2P, DualPrompt and CODA-Prompt against the authors' numbers, all against twins written out."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from shared import OWN_GOLDEN, golden, golden_cases, golden_vit_of, images, relative, vit_tower_of

from vlprompt import methods as m
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.frozen_maps import identity
from vlprompt.layers.heads import CosineHead, LinearHead, TextHead
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(ClassName(f"class {i}", str(i)) for i in range(7))


@pytest.fixture(scope="module")
def trunk():
    return golden_vit_of(OWN_GOLDEN).requires_grad_(False)


@pytest.fixture(scope="module")
def tower(trunk):
    return vit_tower_of(trunk, "golden-vit")


@pytest.fixture(scope="module")
def pixels():
    return golden("vit-plain", OWN_GOLDEN)[1]["images"]


def lesson_of(names, index=0, total=2, each=4, **more):
    """Random pictures of these classes, `each` of a class, around a picture of the class and the lesson."""
    items, labels = [], []
    for c, name in enumerate(names):
        centre = torch.randn(3, 32, 32, generator=make_generator("class", name, index))
        for k in range(each):
            picture = centre + 0.5 * torch.randn(3, 32, 32, generator=make_generator("picture", name, index, k))
            items.append(ImageItem(f"{index}/{name}/{k}", lambda look, view, p=picture: p))
            labels.append(c)
    return Lesson(Split(tuple(items), tuple(labels), tuple(names)), index=index, total=total, **more)


def empty(names=NAMES, index=0, total=1, **more):
    return Lesson(Split((), (), tuple(names)), index=index, total=total, **more)


def learned(method, lessons, **options):
    options = {"epochs": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, **options}
    for lesson in lessons:
        method.begin_lesson(lesson, make_generator("stream", lesson.index))
        list(fit(method, lesson, TrainConfig(**options), seed=lesson.index))
        method.end_lesson(lesson)
    return method


def seen(pixels):
    """Images whose keys are made of their pixels: a tower that is shared stores their features by them."""
    return images(pixels, str(hash(pixels.numpy().tobytes())))


def answer(method, pixels, names=NAMES):
    method.eval()
    with torch.no_grad():
        return method(seen(pixels), method.prepare(names, method.precompute(names)))


STREAM = [lesson_of(NAMES[:4], 0), lesson_of(NAMES[4:], 1)]


# the authors' own numbers


def scattered(method, name):
    """[(our parameter, where in it, what of the authors' array stands there)] for one of their arrays."""
    parts = name.split(".")
    if parts[0] in ("head", "last"):
        return [(getattr(method.head, parts[1]), ..., lambda t: t)]
    if isinstance(method, m.L2P):
        return [(method.pool if parts[1] == "prompt" else method.keys, ..., lambda t: t)]
    if isinstance(method, m.CODAPrompt):
        held = {"p": method.components, "k": method.keys, "a": method.attention_vectors}[parts[1][2]]
        ends = torch.tensor([chunk.shape[1] for chunk in held]).cumsum(0).tolist()
        places = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        return [(p, int(parts[1][4:]), lambda t, w=w: t[w]) for p, w in zip(held, places, strict=True)]
    if name == "g_prompt":
        return [(method.general_prompts, ..., lambda t: t.flatten(3))]
    if name == "e_prompt.prompt":  # (layers, 2, M, P, H, Dh)
        if method.pool_size:
            return [(method.expert_prompts[0], ..., lambda t: t.flatten(4).movedim(2, 0))]
        return [(p, 0, lambda t, k=k: t[:, :, k].flatten(3)) for k, p in enumerate(method.expert_prompts)]
    if name == "e_prompt.prompt_key":
        if method.pool_size:
            return [(method.keys[0], ..., lambda t: t[:, None])]
        return [(p, (0, 0), lambda t, k=k: t[k]) for k, p in enumerate(method.keys)]
    kind, layer = parts[1][:3], int(parts[1][4:])  # DualPrompt of CODA's repository: keys, then values
    if kind == "g_p":
        return [(method.general_prompts, layer, lambda t: t.unflatten(0, (2, -1)))]
    if kind == "e_p":
        return [
            (p, (0, layer - 2), lambda t, k=k: t[k].unflatten(0, (2, -1))) for k, p in enumerate(method.expert_prompts)
        ]
    return [(p, (0, layer - 2), lambda t, k=k: t[k]) for k, p in enumerate(method.keys)]


def put(method, arrays, kind="param"):
    """Write the authors' values into the method."""
    for name in [k.removeprefix(f"{kind}.") for k in arrays if k.startswith(f"{kind}.")]:
        for p, where, of in scattered(method, name):
            p.data[where] = of(arrays[f"{kind}.{name}"])


def compare(method, arrays, kind, mine):
    """`mine` of each parameter against the authors' arrays of a kind."""
    for name in [k.removeprefix(f"{kind}.") for k in arrays if k.startswith(f"{kind}.")]:
        gold = arrays[f"{kind}.{name}"]
        for p, where, of in scattered(method, name):
            assert mine(p)[where].shape == of(gold).shape
            assert (mine(p)[where] - of(gold)).abs().max() <= 1e-4 * gold.abs().max().clamp(min=1e-12), (kind, name)


def grad_of(p):
    return torch.zeros_like(p) if p.grad is None else p.grad


def l2p(tower, h):
    return m.L2P(
        tower,
        LinearHead(),
        h["pool_size"],
        h["prompt_length"],
        h["top_k"],
        h["pull_constraint_coeff"],
        {"prompt": "prompts", "token": "pooled"}[h["head_type"]],
        add_position_embedding=True,
        init_range=(-1.0, 1.0),
    )


def dual(tower, h):
    size = None if h["use_prompt_mask"] else h["pool_size"]
    return m.DualPrompt(tower, LinearHead(), h["g_prompt_length"], h["prompt_length"], tuple(h["g_prompt_layer_idx"]),
                        tuple(h["e_prompt_layer_idx"]), size, h["pull_constraint_coeff"])  # fmt: skip


def coda(tower, h):
    size, length, ortho = h["prompt_param"]
    return m.CODAPrompt(tower, LinearHead(), size, length, 5, ortho)


def coda_dual(tower, h):
    _, expert, general = h["prompt_param"]
    return m.DualPrompt(tower, LinearHead(), general // 2, expert // 2, pull_weight=4.0, layer_specific_keys=True)


MAKE = {"l2p": l2p, "dualprompt": dual, "codarepo": coda_dual, "coda": coda}


def begun(tower, case, lessons=None, total=None):
    """The method of a golden vector after the beginning of its lessons, its class names, what the files say."""
    told, arrays = golden(case)
    h = told["hyperparameters"]
    names = tuple(ClassName(f"class {i}", str(i)) for i in range(told["num_classes"]))
    method = MAKE[case.partition("-")[0]](tower, h)
    lessons = h.get("task", h.get("task_id")) + 1 if lessons is None else lessons
    for k in range(lessons):
        method.begin_lesson(empty(names, k, total or h.get("n_tasks", max(lessons, 2))), make_generator(k))
    return method, names, h, arrays, told


@pytest.mark.parametrize("case", golden_cases(*MAKE))
def test_the_authors_numbers(authors_tower, case):
    method, names, h, arrays, told = begun(authors_tower, case)
    labels, x, is_codas_dual = arrays["labels"], arrays["images"], case.startswith("codarepo")
    if "class_mask" in arrays:
        kept = arrays["class_mask"].tolist()
    else:  # CODA's repository: the answers up to now, in training those of the lesson
        kept = list(range(*h["masked_in_training"][-1:], h["valid_classes"][1]))
    put(method, arrays)
    asked = tuple(names[i] for i in kept)
    whole = names[: arrays["eval.logits"].shape[1]]
    alone = not h.get("batchwise_prompt")  # else its answers come from a vote over the batch
    if alone and not is_codas_dual:
        assert relative(answer(method, x, whole).logits, arrays["eval.logits"]) < 1e-4
    batch = Batch(seen(x), torch.tensor([kept.index(i) for i in labels]), asked)
    method.train()
    out = method(batch.inputs, method.prepare(whole, method.precompute(whole)))
    assert relative(out.logits, arrays["train.logits"]) < 1e-4
    terms, _ = method.loss_terms(batch, method.precompute(asked))
    assert relative(terms["ce"][0], arrays["loss_ce"]) < 1e-4
    total = sum(value for value, _ in terms.values())
    layers = sum(name.startswith("param.prompt.e_k_") for name in arrays)
    constant = float(len(x) * layers) if is_codas_dual else 0.0  # 1 - cosine, over images and layers
    assert relative(total + constant, arrays["loss"]) < 1e-4
    total.backward()
    compare(method, arrays, "grad", grad_of)
    with torch.no_grad():
        for p in method.parameters():
            p -= told["sgd"]["lr"] * grad_of(p)
    compare(method, arrays, "after", lambda p: p.detach())
    if alone and not is_codas_dual:
        assert relative(answer(method, x, whole).logits, arrays["eval.logits_after"]) < 1e-4


ALONE = golden_cases("l2p", "dualprompt", suits=lambda told: not told["hyperparameters"]["batchwise_prompt"])


@pytest.mark.parametrize("case", ALONE)
def test_the_prompts_that_the_authors_code_chooses(authors_tower, case):
    method, names, _, arrays, _ = begun(authors_tower, case, 1, 1)
    put(method, arrays)
    used = answer(method, arrays["images"], names).prompt_usage
    chosen = arrays["eval.prompt_idx"]
    assert torch.equal(used, torch.zeros_like(used).scatter_(1, chosen, 1 / chosen.shape[1]))


@pytest.mark.parametrize("kind", ["", "_after"])
@pytest.mark.parametrize("case", golden_cases("codarepo"))
def test_a_choice_for_each_layer_at_test_is_that_of_codas_repository(authors_tower, case, kind):
    """There all keys of the pool can be chosen; here those of later lessons come with them."""
    size = golden(case)[0]["hyperparameters"]["prompt_param"][0]
    method, names, _, arrays, _ = begun(authors_tower, case, size, size)
    put(
        method,
        arrays if not kind else {k.replace("after.", "param."): v for k, v in arrays.items() if "param" not in k},
    )
    out = answer(method, arrays["images"], names[: arrays["eval.logits"].shape[1]])
    assert relative(out.logits, arrays[f"eval.logits{kind}"]) < 1e-4
    assert out.predicted_lesson is None
    assert torch.allclose(out.prompt_usage.sum(1), torch.ones(len(arrays["images"])))


@pytest.mark.parametrize("case", golden_cases("coda"))
def test_the_prefix_of_coda(authors_tower, case):
    method, _, h, arrays, _ = begun(authors_tower, case)
    put(method, arrays)
    weights = method.compute_weights(arrays["query"])
    prompts = (weights @ torch.cat(list(method.components), 1).flatten(2))[0]
    made = prompts.unflatten(-1, (2, h["prompt_param"][1] // 2, arrays["query"].shape[1]))
    assert relative(made[:, 0], arrays["eval.prefix_k.0"]) < 1e-4
    assert relative(made[:, 1], arrays["eval.prefix_v.0"]) < 1e-4


# twins


def naive(trunk, x, tokens):
    """timm's blocks written out for one image (1, 3, h, w): tokens (P, D) by layer stand behind the class token."""
    x, p = trunk._pos_embed(trunk.patch_embed(x)), 0
    for i, block in enumerate(trunk.blocks):
        if i in tokens:
            x = torch.cat([x[:, :1], tokens[i][None], x[:, 1 + p :]], 1)
            p = len(tokens[i])
        x = block(x)
    return trunk.norm(x)[:, 0]


@pytest.mark.parametrize(("general", "layers"), [(3, (2, 3)), (0, (1, 2))])
def test_the_prompt_form_of_dualprompt(tower, trunk, pixels, general, layers):
    method = m.DualPrompt(tower, LinearHead(), general, 3, (0, 1), layers, prompt_type="tokens", init_range=(-0.5, 0.5))
    learned(method, STREAM)
    out = answer(method, pixels)
    query = trunk(pixels)
    for i in range(len(pixels)):
        like = [float(F.cosine_similarity(query[i], key.detach()[0, 0], 0)) for key in method.keys]
        best = max(range(2), key=lambda k: like[k])
        assert out.predicted_lesson[i] == best
        tokens = {} if not general else {0: method.general_prompts[0, 0], 1: method.general_prompts[1, 0]}
        tokens |= {l: method.expert_prompts[best][0, k, 0] for k, l in enumerate(layers)}
        twin_of_it = F.linear(naive(trunk, pixels[i : i + 1], tokens), method.head.weight, method.head.bias)
        assert relative(out.logits[i : i + 1], twin_of_it) < 1e-4


def test_what_codas_two_products_stand_for(tower):
    method = m.CODAPrompt(tower, LinearHead(), pool_size=7, n_layers=2)
    for k in range(2):
        method.begin_lesson(empty(index=k, total=2), make_generator(k))
    method.double()
    query = torch.randn(5, 48, generator=make_generator("query"), dtype=torch.float64)
    keys, focus = torch.cat(list(method.keys), 1), torch.cat(list(method.attention_vectors), 1)
    assert [p.shape[1] for p in method.components] == [4, 3]  # the first lesson has what is left over
    written = F.cosine_similarity(query[None, :, None] * focus[:, None], keys[:, None], dim=-1)  # (2, 5, 7)
    assert (method.compute_weights(query) - written).abs().max() < 1e-14
    still = torch.zeros(1, 48, dtype=torch.float64)
    method.compute_weights(still).sum().backward()
    assert not method.compute_weights(still).any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_new_components_of_coda_are_orthogonal_to_all_earlier_ones(tower):
    method = learned(m.CODAPrompt(tower, LinearHead(), pool_size=20, prompt_length=4, n_layers=2), STREAM[:1], lr=1.0)
    method.begin_lesson(STREAM[1], make_generator("second"))
    for held in (method.components, method.keys, method.attention_vectors):
        old, new = (p.detach().flatten(2) for p in held)
        assert (new @ new.mT - torch.eye(10)).abs().max() < 1e-5
        assert (new @ F.normalize(old, dim=-1).mT).abs().max() < 1e-5
        assert (old @ old.mT - torch.eye(10)).abs().max() > 1e-3  # they were trained


def test_the_penalty_of_coda_is_for_training_alone(tower, pixels):
    method = m.CODAPrompt(tower, LinearHead(), pool_size=6, orthogonality_weight=0.5)
    method.begin_lesson(empty(), make_generator(0))
    prepared = method.prepare(NAMES, method.precompute(NAMES))
    assert float(method.train()(seen(pixels), prepared).penalty.detach()) < 1e-9  # it begins orthonormal
    method.keys[0].data *= 2
    assert float(method(seen(pixels), prepared).penalty.detach()) == pytest.approx(0.5 * 4 * 6 * 9 / 36, rel=1e-4)
    assert method.eval()(seen(pixels), prepared).penalty == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: m.CODAPrompt(t, LinearHead(), pool_size=6),
        lambda t: m.DualPrompt(t, LinearHead()),
        lambda t: m.DualPrompt(t, LinearHead(), layer_specific_keys=True, prompt_type="tokens"),
        lambda t: m.SPrompts(t, LinearHead(), n_centroids=2),
    ],
)
def test_what_a_past_lesson_made_is_not_touched(tower, make, optimizer):
    method = learned(make(tower), STREAM[:1], optimizer=optimizer, weight_decay=0.1)
    past = {n: p.detach().clone() for n, p in method.named_parameters() if ".0" in n}
    assert past
    learned(method, STREAM[1:], optimizer=optimizer, weight_decay=0.1)
    now = dict(method.named_parameters())
    assert all(torch.equal(now[n], p) and not now[n].requires_grad for n, p in past.items())
    assert all(now[n].requires_grad for n in now if ".1" in n)


def test_a_new_expert_begins_as_the_one_before_and_its_key_anew(tower):
    for inherit in (True, False):
        method = learned(m.DualPrompt(tower, LinearHead(), init_from_previous=inherit), STREAM[:1])
        method.begin_lesson(STREAM[1], make_generator("second"))
        assert torch.equal(*method.expert_prompts) == inherit
        assert not torch.equal(*method.keys)
        assert method.expert_prompts[0].shape == (1, 2, 2, 5, 48)
        assert method.clipped_settings == {"expert_layers": "clipped from [2, 3, 4] to [2, 3] (the tower has 4 layers)"}


def test_a_pool_of_experts_takes_a_stream_that_tells_nothing(tower):
    method = learned(
        m.DualPrompt(tower, LinearHead(), pool_size=4), [lesson_of(NAMES, has_task_boundaries=False)], epochs=1
    )
    assert method.expert_prompts[0].shape[0] == 4
    assert method.expert_prompts[0].requires_grad
    learned(method, [lesson_of(NAMES, 1)])
    assert len(method.expert_prompts) == 1
    assert answer(method, torch.randn(2, 3, 32, 32)).predicted_lesson is None


def test_choice_by_frequency_is_equation_4(tower, pixels):
    make = lambda on: m.L2P(tower, LinearHead(), 5, 2, 2, penalize_frequency=on, init_range=(-1.0, 1.0))  # noqa: E731
    method, plain = learned(make(True), STREAM[:1]), learned(make(False), STREAM[:1])
    assert torch.equal(method.keys, plain.keys)  # in the first lesson no prompt was chosen before
    assert float(method.selection_counts.sum()) == 2 * 16 * 2  # prompts, images, epochs
    method.begin_lesson(STREAM[1], make_generator(1))
    assert torch.equal(method.selection_frequencies, method.selection_counts / 64)
    method.selection_frequencies.copy_(torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0]))
    query = tower(seen(pixels))
    far = 1 - F.cosine_similarity(query[:, None], method.keys.detach(), dim=-1)
    chosen = []
    for i in range(len(pixels)):
        by_cost = sorted(range(5), key=lambda j: (float(far[i, j] * method.selection_frequencies[j]), float(far[i, j])))
        chosen.append(sorted(by_cost[:2]))
    assert chosen == [[3, 4]] * 4  # never chosen: they cost nothing
    found = method.train().select_prompts(1 - far)
    assert found.sort(1).values.tolist() == chosen
    assert found[:, 0].tolist() == [3 + int(far[i, 4] < far[i, 3]) for i in range(4)]  # the nearer first
    nearest = far.topk(2, largest=False).indices
    assert torch.equal(method.eval().select_prompts(1 - far), nearest)
    method.selection_frequencies.copy_(torch.tensor([0.9, 0.01, 0.3, 0.2, 0.5]))
    by_cost = (far * method.selection_frequencies).topk(2, largest=False).indices
    assert torch.equal(method.train().select_prompts(1 - far), by_cost)
    assert not torch.equal(by_cost, nearest)


def test_l2p_starts_between_its_bounds(tower):
    method = m.L2P(tower, LinearHead())
    method.begin_lesson(empty(), make_generator(0))
    for p in (method.pool.detach(), method.keys.detach()):
        assert 0 <= float(p.min()) < 0.0005
        assert 0.0095 < float(p.max()) <= 0.01


@pytest.mark.parametrize(
    "make",
    [
        lambda t: m.L2P(t, LinearHead(), top_k=0),
        lambda t: m.DualPrompt(t, LinearHead(), 0, 0),
        lambda t: m.CODAPrompt(t, LinearHead(), prompt_length=0),
        lambda t: m.SPrompts(t, LinearHead(), prompt_length=0),
    ],
)
def test_prompts_off_is_a_linear_head_on_the_bare_tower(tower, pixels, make):
    from vlprompt.backbones import load

    method, x = make(tower), tower(seen(pixels))
    method.begin_lesson(lesson_of(NAMES), make_generator(0))
    head = method.lesson_heads[0] if isinstance(method, m.SPrompts) else method.head
    assert len(list(method.parameters())) == 2
    assert torch.equal(answer(method, pixels).logits, F.linear(x, head.weight, head.bias))
    opaque = make(load("timm:test_resnet/random"))
    opaque.begin_lesson(lesson_of(NAMES), make_generator(0))
    assert answer(opaque, torch.randn(2, 3, 160, 160)).logits.shape == (2, 7)


@pytest.mark.parametrize("reader", [LinearHead, CosineHead])
@pytest.mark.parametrize("same_classes", [False, True])
def test_s_prompts(tower, trunk, same_classes, reader):
    lessons = [lesson_of(NAMES, 0), lesson_of(NAMES, 1)] if same_classes else STREAM
    method = learned(m.SPrompts(tower, reader(), prompt_length=3, n_centroids=3), lessons)
    x = torch.stack([item.pixels(None, None) for lesson in lessons for item in lesson.train.items[::3]])
    out, features = answer(method, x), F.normalize(trunk(x), dim=-1)
    assert method.centroids.shape == (2, 3, 48)
    for i in range(len(x)):
        far = [min(float((features[i] - c).abs().sum()) for c in centres) for centres in method.centroids]
        best = far.index(min(far))
        assert out.predicted_lesson[i] == best
        assert out.prompt_usage[i].tolist() == [best == 0, best == 1]
        head, place = method.lesson_heads[best], list(range(7)) if same_classes else [[0, 1, 2, 3], [4, 5, 6]][best]
        feature = naive(trunk, x[i : i + 1], {0: method.tokens[best]})
        made = head(feature, slice(None))[0]
        assert relative(out.logits[i, place], made) < 1e-4
        others = [c for c in range(7) if c not in place]
        assert (out.logits[i, others] == -math.inf).all()
    assert set(out.predicted_lesson.tolist()) == {0, 1}
    names = lessons[1].train.names
    own = method.train()(seen(x), method.prepare(names, method.precompute(names)))
    assert (own.predicted_lesson == 1).all()  # training is for the lesson's own tokens and head
    right = torch.tensor([k for k, lesson in enumerate(lessons) for _ in lesson.train.items[::3]])
    assert float((out.predicted_lesson == right).float().mean()) > 0.7


def test_s_prompts_asks_only_lessons_that_know_a_class(tower, pixels):
    method = learned(m.SPrompts(tower, LinearHead(), n_centroids=2), STREAM)
    out = answer(method, pixels, NAMES[4:])
    assert out.predicted_lesson.tolist() == [1] * 4
    assert out.logits.isfinite().all()
    with pytest.raises(ValueError, match="linear head: no weights for class 'yak'"):
        answer(method, pixels, (*NAMES, ClassName("yak")))


def test_the_centres_of_s_prompts_are_means_of_what_is_nearest(tower, trunk):
    method, lesson = m.SPrompts(tower, LinearHead(), n_centroids=3), lesson_of(NAMES)
    method.begin_lesson(lesson, make_generator(0))
    again = m.SPrompts(tower, LinearHead(), n_centroids=3)
    again.begin_lesson(lesson, make_generator(0))
    assert torch.equal(method.centroids, again.centroids)
    x = F.normalize(trunk(torch.stack([item.pixels(None, None) for item in lesson.train.items])), dim=-1)
    near = torch.cdist(x, method.centroids[0]).argmin(1)
    for k in range(3):
        assert torch.allclose(x[near == k].mean(0), method.centroids[0, k], atol=1e-5)
    few = m.SPrompts(tower, LinearHead(), n_centroids=5)
    few.begin_lesson(lesson_of(NAMES[:2], each=1), make_generator(0))
    assert len(few.centroids[0].unique(dim=0)) == 2
    assert few.centroids.shape == (1, 5, 48)


def ridge(x, y, penalty):
    return torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1]).double()) @ x.T @ y


@pytest.mark.parametrize("same_classes", [False, True])
def test_ranpac_over_a_stream_is_ridge_regression_on_all_data(tower, trunk, pixels, same_classes):
    lessons = [lesson_of(NAMES, 0), lesson_of(NAMES, 1)] if same_classes else STREAM
    method = learned(m.RanPAC(tower, 60, penalty=10.0), lessons)
    x = torch.stack([item.pixels(None, None) for lesson in lessons for item in lesson.train.items])
    names = [n for lesson in lessons for n in (lesson.train.names[i] for i in lesson.train.labels)]
    y = torch.tensor([[n == c for c in NAMES] for n in names]).double()
    h = (trunk(x).double() @ method.projection).relu()
    head = ridge(h, y, 10.0)
    assert relative(method.ridge_weights, head) < 1e-4
    new = (trunk(pixels).double() @ method.projection).relu()
    assert relative(answer(method, pixels).logits, (new @ head).float()) < 1e-4
    assert relative(answer(method, pixels, NAMES[2:4]).logits, (new @ head[:, 2:4]).float()) < 1e-4


@pytest.mark.parametrize("width", [20, 200])
def test_ranpac_searches_its_penalty_on_a_fifth(tower, width):
    """By the larger and the smaller side; features that are noisy, so that the best is inside the grid."""
    method = m.RanPAC(tower, width)
    method.begin_lesson(empty(), make_generator(0))
    x = torch.randn(100, 48, generator=make_generator("x"))
    y = F.one_hot((x[:, :7] + torch.randn(100, 7, generator=make_generator("noise"))).argmax(1), 7).double()
    order = torch.randperm(100, generator=make_generator("order"))
    h, right = (x[order].double() @ method.projection).relu(), y[order]
    found = method.compute_errors(x, y, make_generator("order"))
    assert list(found) == [10.0**e for e in range(-8, 9)]
    for penalty, error in found.items():
        made = h[80:] @ ridge(h[:80], right[:80], penalty)
        assert penalty < 1e-3 or error == pytest.approx(float((made - right[80:]).square().sum()), rel=1e-6)
    assert 1 < min(found, key=found.get) < 1e8


def test_ranpac_takes_the_best_penalty_of_its_last_lesson(tower, monkeypatch):
    heads = {e: learned(m.RanPAC(tower, 20, penalty=10.0**e), STREAM).ridge_weights for e in (2, 5)}
    monkeypatch.setattr(m.RanPAC, "compute_errors", lambda self, x, y, generator: {1e2: len(x) - 13.0, 1e5: 0.0})
    assert torch.equal(
        learned(m.RanPAC(tower, 20), STREAM).ridge_weights, heads[2]
    )  # the last has 12 images, the first 16


# the five of them


VARIANTS = {
    "l2p": lambda t: m.L2P(t, LinearHead(), 4, 2, 2, init_range=(-1.0, 1.0)),
    "l2p token": lambda t: m.L2P(
        t, CosineHead(), 4, 2, 2, output="pooled", penalize_frequency=True, add_position_embedding=True
    ),
    "dualprompt": lambda t: m.DualPrompt(t, LinearHead()),
    "dualprompt pool": lambda t: m.DualPrompt(t, LinearHead(), pool_size=4),
    "dualprompt own keys": lambda t: m.DualPrompt(t, LinearHead(), layer_specific_keys=True, prompt_type="tokens"),
    "dualprompt experts alone": lambda t: m.DualPrompt(t, LinearHead(), 0),
    "dualprompt general alone": lambda t: m.DualPrompt(t, LinearHead(), expert_length=0),
    "coda": lambda t: m.CODAPrompt(t, LinearHead(), pool_size=6),
    "s_prompts": lambda t: m.SPrompts(t, LinearHead(), 3, 2),
    "ranpac": lambda t: m.RanPAC(t, 50),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_two_lessons(tower, name):
    """State comes back without data, an answer does not depend on its batch, and shares add up."""
    method, again = learned(VARIANTS[name](tower), STREAM, epochs=8), VARIANTS[name](tower)
    again.restore(STREAM, copy.deepcopy(method.state_dict()))
    x = torch.stack([item.pixels(None, None) for lesson in STREAM for item in lesson.train.items])
    out, back = answer(method, x), answer(again, x)
    assert torch.equal(out.logits, back.logits)
    for i in range(0, len(x), 5):
        assert torch.allclose(answer(method, x[i : i + 1]).logits, out.logits[i : i + 1], atol=1e-4)
    if out.prompt_usage is not None:
        assert torch.allclose(out.prompt_usage.sum(1), torch.ones(len(x)))
    labels = torch.tensor([*STREAM[0].train.labels, *(4 + i for i in STREAM[1].train.labels)])
    late = out.logits[16:, 4:].argmax(1) == labels[16:] - 4
    assert float(late.float().mean()) > 0.6  # what was just learned, among its own classes


@pytest.mark.parametrize("name", ["l2p token", "dualprompt", "coda", "s_prompts"])
def test_class_texts_answer_where_the_feature_has_another_width(name, pixels):
    clip = build_tiny_clip(embed_dim=40)
    method = VARIANTS[name](clip.image)
    method.head = TextHead(clip)
    learned(method, STREAM)
    assert answer(method, pixels).logits.shape == (4, 7)
    assert answer(method, pixels, (*NAMES, ClassName("yak"))).logits[:, 7].isfinite().all()


def test_a_head_on_prompts_is_as_wide_as_they_are():
    clip = build_tiny_clip(embed_dim=40)
    method = learned(m.L2P(clip.image, LinearHead(), 4, 2, 2), STREAM)
    assert method.head.weight.shape == (7, 64)
    assert method.keys.shape == (4, 40)


BAD = {
    r"method\.top_k: expected at most 3 \(method\.pool_size\), got 5\. Lower method\.top_k": lambda t: m.L2P(
        t, LinearHead(), pool_size=3
    ),
    r"Set method\.output=pooled": lambda t: m.L2P(t, TextHead(build_tiny_clip())),
    r"method\.pull_weight: expected at least 0": lambda t: m.L2P(t, LinearHead(), pull_weight=-1.0),
    r"equal lengths of .* got method\.general_length=3 and method\.expert_length=4": lambda t: m.DualPrompt(
        t, LinearHead(), 3, 4, prompt_type="tokens"
    ),
    r"method\.expert_layers: expected layers 0 to 3 of the tower, got \[7, 8\]": lambda t: m.DualPrompt(
        t, LinearHead(), expert_layers=(7, 8)
    ),
    r"method\.general_layers: expected layers 0 to 3 of the tower, got \[-1, 0\]": lambda t: m.DualPrompt(
        t, LinearHead(), general_layers=(-1, 0)
    ),
    r"expected each layer once, got layer 2 twice": lambda t: m.DualPrompt(t, LinearHead(), general_layers=(0, 2)),
    r"method\.pool_size: expected at least 1": lambda t: m.DualPrompt(t, LinearHead(), pool_size=0),
    r"method\.prompt_length: expected an even number.* got 7\. Set an even": lambda t: m.CODAPrompt(
        t, LinearHead(), prompt_length=7
    ),
    r"method\.pool_size: expected at least 2, one component for each lesson, got 1": lambda t: m.CODAPrompt(
        t, LinearHead(), pool_size=1
    ),
    r"pool_size: expected at most 48, .* orthogonal, got 100\. Set method\.pool_size to at most 48": lambda t: (
        m.CODAPrompt(t, LinearHead())
    ),
    r"method\.n_centroids: expected at least 1": lambda t: m.SPrompts(t, LinearHead(), n_centroids=0),
    r"method\.penalty: expected a value above 0, or null .* got 0\.0": lambda t: m.RanPAC(t, 10, penalty=0.0),
    r"method\.projection_dim: expected at least 1": lambda t: m.RanPAC(t, 0),
}


@pytest.mark.parametrize("said", BAD)
def test_settings_that_make_no_sense(tower, said):
    with pytest.raises(ValueError, match=said):
        BAD[said](tower).begin_lesson(STREAM[0], make_generator(0))


def test_streams_that_a_method_cannot_take(tower):
    with pytest.raises(ValueError, match=r"got a stream without them.* Set method\.pool_size, for example 10"):
        m.DualPrompt(tower, LinearHead()).begin_lesson(empty(has_task_boundaries=False), make_generator(0))
    with pytest.raises(ValueError, match=r"got an unknown number. Use l2p, or dualprompt with method"):
        m.CODAPrompt(tower, LinearHead(), pool_size=6).begin_lesson(empty(total=None), make_generator(0))
    with pytest.raises(ValueError, match=r"got a rehearsal buffer\. Set task\.buffer=0"):
        m.SPrompts(tower, LinearHead()).begin_lesson(lesson_of(NAMES, memory=STREAM[0].train), make_generator(0))
    with pytest.raises(ValueError, match=r"got 'class 0' alone\. Set method\.solver=fit"):
        m.Linear(tower, LinearHead()).begin_lesson(lesson_of(NAMES[:1]), make_generator(0))


def test_towers_that_a_method_cannot_take():
    from vlprompt.backbones import load

    opaque = load("timm:test_resnet/random")
    for method in (m.L2P, m.DualPrompt, m.CODAPrompt, m.SPrompts):
        with pytest.raises(ValueError, match=r"expected a block-wise tower .*Use a ViT"):
            method(opaque, LinearHead()).begin_lesson(empty(), make_generator(0))
    assert len(list(m.RanPAC(opaque, 10).parameters())) == 0


def test_no_position_to_give(trunk):
    bare = build_timm_tower(
        copy.deepcopy(trunk), identity, 48, Preprocessing((32, 32)), "no class token", torch.device("cpu")
    )
    bare.n_special_tokens = 0
    with pytest.raises(
        ValueError, match=r"no class token with a position embedding\. Set method\.add_position_embedding=false"
    ):
        m.L2P(bare, LinearHead(), add_position_embedding=True).begin_lesson(empty(), make_generator(0))


def test_contexts_of_classes_that_come_again():
    method = m.CoOp(build_tiny_clip(), 2, class_specific=True)
    method.begin_lesson(empty(NAMES[:3]), make_generator(0))
    before = method.ctx.detach().clone()
    method.begin_lesson(empty(NAMES[:3], 1), make_generator(1))
    assert torch.equal(method.ctx, before)
    method.begin_lesson(empty(NAMES[1:5], 2), make_generator(2))
    assert torch.equal(method.ctx[:3], before)
    assert method.ctx.shape[0] == 5
