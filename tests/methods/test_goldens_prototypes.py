"""SimpleCIL, APER, FeCAM, SLCA and SLCA++ against numbers that their authors' own code computed."""

import pytest
import torch
from shared import GOLDEN, golden, golden_cases, golden_vit_of, images, relative, vit_tower_of

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import CosineHead
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(ClassName(f"class {i}", str(i)) for i in range(7))


def hold(case, errors):
    print(case, max(errors.items(), key=lambda pair: pair[1]))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


def lessons_of(case, told, arrays):
    """The lessons of a golden vector, and the classes that are known behind each."""
    sizes = told["hyperparameters"]["task_sizes"]
    for k in range(len(sizes)):
        first, last = sum(sizes[:k]), sum(sizes[: k + 1])
        pixels, labels = arrays[f"task{k}.images"], arrays[f"task{k}.labels"] - first
        items = tuple(ImageItem(f"{case}/{k}/{i}", lambda look, view, p=p: p) for i, p in enumerate(pixels))
        yield (
            Lesson(Split(items, tuple(labels.tolist()), NAMES[first:last]), index=k, total=len(sizes)),
            NAMES[:last],
        )


def batch_of(lesson):
    return next(lesson.train.batches(len(lesson.train)))


def answer(method, pixels, names, tag="test"):
    with torch.no_grad():
        return method.eval()(images(pixels, tag), method.prepare(names, method.precompute(names)))


def step(method, batch):
    """The loss, the training logits, and the gradients."""
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    loss = sum(value for value, _ in terms.values())
    method.zero_grad()
    loss.backward()
    return loss, out.logits


def descend(method, lr):
    """One step of plain SGD, with each group's factor of the learning rate."""
    for group in method.param_groups():
        for p in group["params"]:
            p.data -= lr * group.get("lr_factor", 1.0) * (0 if p.grad is None else p.grad)


# --- SimpleCIL and APER ---


@pytest.mark.parametrize("case", golden_cases("simplecil"))
def test_the_authors_simplecil(authors_tower, case):
    told, arrays = golden(case)
    method, errors = m.SimpleCIL(authors_tower, told["hyperparameters"]["sigma"]), {}
    for k, (lesson, names) in enumerate(lessons_of(case, told, arrays)):
        method.begin_lesson(lesson, make_generator(k))
        errors[f"prototypes {k}"] = relative(method.prototypes.get(names), arrays[f"task{k}.prototypes"])
        out = answer(method, arrays["test.images"], names)
        errors[f"logits {k}"] = relative(out.logits, arrays[f"task{k}.eval.logits"])
        errors[f"features {k}"] = relative(out.image_features, arrays["test.features_raw"])
    hold(case, errors)


def tuning(tower, h):
    head = CosineHead(h["sigma_init"])
    if "ffn_num" in h:
        return m.AdaptFormer(tower, head, h["ffn_num"], h["adapter_scale"], 0.0)
    return m.VPT(tower, head, h["prompt_token_num"], h["vpt_type"] == "deep", 0.0)


def tuned(method, theirs):
    """Our parameter of the tuning method that is the authors' `theirs`, and the shape in which they have it."""
    parts = theirs.split(".")
    if parts[0] == "fc":
        return method.head.gain if parts[1] == "sigma" else method.head.weight
    if theirs == "Prompt_Tokens":
        return method.tokens
    return getattr(getattr(method.adapters[f"{parts[1]}/mlp+"], parts[3].removesuffix("_proj")), parts[4])


def tune(method, case, lesson, arrays, h):
    """Put the authors' initial values in, take their step in the first lesson, and return the errors."""
    theirs = [key.removeprefix("task0.param.") for key in arrays if key.startswith("task0.param.")]
    pairs = {name: tuned(method, name) for name in theirs}
    assert {id(p) for p in pairs.values()} == {id(p) for p in method.parameters()}
    for name, p in pairs.items():
        p.data.copy_(arrays[f"task0.param.{name}"].view_as(p))
    loss, logits = step(method, batch_of(lesson))
    errors = {"loss": relative(loss, arrays["task0.loss"])}
    if "task0.train.logits" in arrays:
        errors["train logits"] = relative(logits, arrays["task0.train.logits"])
    errors |= {f"grad {k}": relative(p.grad, arrays[f"task0.grad.{k}"].view_as(p)) for k, p in pairs.items()}
    torch.optim.SGD(method.parameters(), h["train_lr"]).step()
    return errors | {f"after {k}": relative(p, arrays[f"task0.after.{k}"].view_as(p)) for k, p in pairs.items()}


@pytest.mark.parametrize("case", golden_cases("aper"))
def test_the_authors_aper(authors_tower, case):
    told, arrays = golden(case)
    h, errors = told["hyperparameters"], {}
    method = m.APER(tuning(authors_tower, h))
    for k, (lesson, names) in enumerate(lessons_of(case, told, arrays)):
        method.begin_lesson(lesson, make_generator(k))
        if not k:
            errors |= tune(method.method, case, lesson, arrays, h)
        assert any(p.requires_grad for p in method.parameters()) == (not k)
        method.end_lesson(lesson)
        errors[f"prototypes {k}"] = relative(method.prototypes.get(names), arrays[f"task{k}.prototypes"])
        out = answer(method, arrays["test.images"], names)
        errors[f"logits {k}"] = relative(out.logits, arrays[f"task{k}.eval.logits"])
    errors["features"] = relative(out.image_features, arrays["test.features_raw"])
    hold(case, errors)


# --- FeCAM ---


class TunedTower:
    """A tower with the prompt of a method in it."""

    def __init__(self, tower, method):
        self.tower, self.method, self.feature_dim, self.device = tower, method, tower.feature_dim, tower.device

    def __call__(self, inputs):
        with torch.no_grad():
            return self.method.eval().compute_features(inputs, self.tower)


class PilotFeCAM(m.FeCAM):
    """FeCAM as LAMDA-PILOT has it: statistics of features that are not normalised, and a correlation of columns."""

    def __init__(self, tower, alpha):
        super().__init__(tower)
        self.alpha = alpha

    def compute_features(self, inputs):
        return self.tower(inputs)

    def correlate(self, covariance):
        return torch.corrcoef(covariance + self.alpha * torch.eye(len(covariance)))

    def invert_correlation(self, covariance):
        return torch.linalg.pinv(self.correlate(covariance))


@pytest.mark.parametrize("case", golden_cases("fecam"))
def test_the_distances_of_pilots_fecam(authors_tower, case):
    """What is not PILOT's own in its form: means, covariances and the distance between unit vectors."""
    told, arrays = golden(case)
    h, errors = told["hyperparameters"], {}
    inner = tuning(authors_tower, h)
    method = PilotFeCAM(TunedTower(authors_tower, inner), h["alpha"])
    for k, (lesson, names) in enumerate(lessons_of(case, told, arrays)):
        if not k:
            inner.begin_lesson(lesson, make_generator(k))
            errors |= tune(inner, case, lesson, arrays, h)
        method.begin_lesson(lesson, make_generator(k))
        errors[f"means {k}"] = relative(method.gaussians.get_means(names), arrays[f"task{k}.prototypes"])
        first = method.gaussians.get_rows(lesson.train.names[:1])
        corr = method.correlate(method.gaussians.spreads[first][0])
        errors[f"correlation {k}"] = relative(corr[None], arrays[f"task{k}.corr"])
        out = answer(method, arrays["test.images"], names)
        errors[f"distance {k}"] = relative(-out.logits, arrays[f"task{k}.eval.distance"])
    hold(case, errors)


# --- SLCA and SLCA++ ---


@pytest.fixture(scope="module")
def fresh_norm_tower():
    """The authors put a new norm in the place of the last one of the weights."""
    trunk = golden_vit_of(GOLDEN)
    trunk.norm = torch.nn.LayerNorm(trunk.embed_dim, eps=1e-5)
    return vit_tower_of(trunk, "authors-vit-fresh-norm")


def slca(tower, h):
    return m.SLCA(tower, h["tower_lr_scale"], h["ca_samples_per_class"], 1, h["ca_lr"], 0.0, h["ca_logit_norm"])


def slcapp(tower, h):
    assert h["tower_lr_scale"] == h["lora_lr_scale_later"]
    return m.SLCApp(
        tower,
        h["lora_rank"],
        h["tower_lr_scale"],
        h["lora_lr_scale_first_task"],
        h["sce_a"],
        h["sce_b"],
        h["fc_scale_mu"],
        h["ca_samples_per_class"],
        1,
        h["ca_lr"],
        0.0,
        h["ca_logit_norm"],
    )


MAKE = {"slca": slca, "slcapp": slcapp}
SITES = {"attn.proj": "out", "mlp.fc1": "up", "mlp.fc2": "down", "norm1": "norm1", "norm2": "norm2"}


def slow(method, theirs):
    """Our parameter that is the authors' `theirs`, and what it is added to."""
    parts, copied = theirs.split("."), getattr(method, "trained_tower", None)
    if parts[0] == "head":
        return getattr(method, parts[1]), 0
    if theirs == "cls_token":
        if copied is not None:
            return copied.special_tokens, 0
        return method.class_token, method.tower.special_tokens
    if parts[0] == "norm":
        return getattr(copied.norm if copied is not None else method.norms["norm"], parts[1]), 0
    if parts[0] == "patch_embed":
        return copied.embed.bias, 0
    layer, name, kind = int(parts[1]), ".".join(parts[2:-1]), parts[-1]
    if copied is not None:
        return getattr(copied.layers[layer].maps[SITES.get(name, "qkv")], kind), 0
    if kind.startswith("lora"):
        return getattr(method.updates[layer], {"lora_A": "down", "lora_B": "up"}[kind]), 0
    if name == "attn.qkv":
        block = method.tower.blocks[layer]
        return method.updates[layer].bias, block.qkv.bias
    site = f"{layer}/{SITES[name]}"
    if site in method.norms:
        return getattr(method.norms[site], kind), 0
    return method.shifts[site].bias, method.tower.frozen_map(site).bias


def compare(method, arrays, k, kind, value):
    """What ours has of each array of the authors' of a kind."""
    start, errors = f"task{k}.{kind}.", {}
    for name in [key.removeprefix(start) for key in arrays if key.startswith(start)]:
        gold, (p, start_value) = arrays[start + name], slow(method, name)
        errors[f"{kind} {k} {name}"] = relative(value(p, start_value).view_as(gold), gold)
    return errors


def draw(method, arrays, k):
    """The features that the authors drew: of given noise, in their order."""
    z, order = arrays[f"task{k}.ca.z"], arrays[f"task{k}.ca.order"]
    factors = [method.compute_mean_factor(lesson) for lesson in method.lessons.tolist()]
    x = torch.cat([method.gaussians.draw(row, noise, factors[row]) for row, noise in enumerate(z)])
    labels = torch.arange(len(z)).repeat_interleave(z.shape[1])
    noise = arrays.get(f"task{k}.ca.rand", torch.full(z.shape[:2], torch.nan)).flatten()
    return method.scale_draws(x, k - method.lessons[labels], noise)[order], labels[order]


@pytest.mark.parametrize("case", golden_cases(*MAKE))
def test_the_authors_slow_learners(fresh_norm_tower, case):
    told, arrays = golden(case)
    method, errors = MAKE[case](fresh_norm_tower, told["hyperparameters"]), {}
    for k, (lesson, names) in enumerate(lessons_of(case, told, arrays)):
        method.begin_lesson(lesson, make_generator(k))
        for key in [key for key in arrays if key.startswith(f"task{k}.param.")]:
            name = key.removeprefix(f"task{k}.param.")
            p, _ = slow(method, name)
            if name.endswith("lora_A"):  # as the authors' but for signs
                errors[f"start {name}"] = relative(p.T @ p, arrays[key].T @ arrays[key])
            p.data.copy_(arrays[key])
        loss, logits = step(method, batch_of(lesson))
        errors[f"loss {k}"] = relative(loss, arrays[f"task{k}.loss"])
        errors[f"train logits {k}"] = relative(logits, arrays[f"task{k}.train.logits"])
        errors |= compare(method, arrays, k, "grad", lambda p, start: p.grad)
        descend(method, told["hyperparameters"]["head_lr"])
        errors |= compare(method, arrays, k, "after", lambda p, start: p.detach() + start)
        with torch.no_grad():
            features = method.eval().encode(images(arrays["test.images"], f"{case} {k}"))
        errors[f"features {k}"] = relative(features, arrays[f"task{k}.test.features_raw"])
        method.draw_epochs = lambda k=k: [draw(method, arrays, k)]
        method.end_lesson(lesson)
        rows = method.gaussians.get_rows(lesson.train.names)
        errors[f"mean {k}"] = relative(method.gaussians.get_means(lesson.train.names), arrays[f"task{k}.mean"])
        errors[f"covariance {k}"] = relative(method.gaussians.spreads[rows[:1]], arrays[f"task{k}.cov"])
        for j in range(k + 1 if k else 0):
            for kind in ("weight", "bias"):
                aligned = getattr(method, f"aligned_{kind}")[method.lessons == j]
                errors[f"aligned {kind} {k} {j}"] = relative(aligned, arrays[f"task{k}.ca.after.head{j}.{kind}"])
        out = answer(method, arrays["test.images"], names, f"{case} {k}")
        errors[f"logits {k}"] = relative(out.logits, arrays[f"task{k}.eval.logits"])
    hold(case, errors)
