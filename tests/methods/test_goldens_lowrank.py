"""Streams of low-rank updates and prefixes against numbers that their authors' own code computed."""

import pytest
import torch
from shared import golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import LinearHead
from vlprompt.runtime.seeding import make_generator


def read(case):
    """The json and arrays of a vector, the class names of each of its lessons, and the lessons."""
    told, arrays = golden(case)
    sizes, begin, parts = told["hyperparameters"]["task_sizes"], 0, []
    for size in sizes:
        parts.append(tuple(ClassName(f"class {i}", str(i)) for i in range(begin, begin + size)))
        begin += size
    lessons = []
    for t, names in enumerate(parts):
        pixels, first = arrays[f"task{t}.images"], int(names[0].id)
        items = tuple(ImageItem(f"{case}/{t}/{i}", lambda look, view, p=p: p) for i, p in enumerate(pixels))
        labels = tuple(int(label) - first for label in arrays[f"task{t}.labels"])
        lessons.append(Lesson(Split(items, labels, names), index=t, total=len(parts)))
    return told["hyperparameters"], arrays, lessons


def batch_of(lesson):
    return next(lesson.train.batches(100))


def get(method, batch):
    method.train()
    return method.loss_terms(batch, method.precompute(batch.names))


def answer(method, pixels, names):
    method.eval()
    with torch.no_grad():
        tagged = images(pixels, str(hash(pixels.numpy().tobytes())))
        return method(tagged, method.prepare(names, method.precompute(names)))


def seen(lessons, t):
    return tuple(name for lesson in lessons[: t + 1] for name in lesson.train.names)


def take(method, pairs, arrays, prefix, lr, errors):
    """Compare the gradients of {their name: (our parameter, how theirs becomes ours)}, step, compare what came."""
    pairs = {name: pair for name, pair in pairs.items() if f"{prefix}.grad.{name}" in arrays}
    for name, (p, turn) in pairs.items():
        errors[f"{prefix}.grad.{name}"] = relative(p.grad, turn(arrays[f"{prefix}.grad.{name}"]))
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= (lr(p) if callable(lr) else lr) * p.grad
                p.grad = None
    for name, (p, turn) in pairs.items():
        errors[f"{prefix}.after.{name}"] = relative(p, turn(arrays[f"{prefix}.after.{name}"]))


def hold(case, errors):
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


def same(t):
    return t


# --- SD-LoRA ---


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("case", golden_cases("sdlora"))
def test_the_authors_numbers_of_sdlora(authors_tower, case, keep):
    h, arrays, lessons = read(case)
    method, errors = m.SDLoRA(authors_tower, LinearHead(), h["rank"], keep_magnitudes=keep), {}
    for t, lesson in enumerate(lessons):
        method.begin_lesson(lesson, make_generator(t))
        pairs = {f"head.{name}": (getattr(method.head, name), same) for name in ("weight", "bias")}
        for i, magnitude in enumerate(method.magnitudes):
            pairs[f"magnitude.{i}"] = magnitude, lambda x: x[0]
        for site, directions in method.directions.items():
            layer, kind = site.split("/")
            pairs |= {f"{layer}.A_{kind}": (directions.downs[t], same), f"{layer}.B_{kind}": (directions.ups[t], same)}
        assert {id(p) for p, _ in pairs.values()} == {id(p) for p in method.parameters() if p.requires_grad}
        for name, (p, turn) in pairs.items():
            p.data.copy_(turn(arrays[f"task{t}.param.{name}"]))
        terms, out = get(method, batch_of(lesson))
        errors[f"{t} loss"] = relative(terms["ce"][0], arrays[f"task{t}.loss"])
        errors[f"{t} logits"] = relative(out.logits, arrays[f"task{t}.train.logits"])
        terms["ce"][0].backward()
        take(method, pairs, arrays, f"task{t}", h["train_lr"], errors)
        out = answer(method, arrays["test.images"], seen(lessons, t))
        errors[f"{t} eval"] = relative(out.logits, arrays[f"task{t}.eval.logits"])
    errors["features"] = relative(out.image_features, arrays["test.features_raw"])
    hold(case, errors)


# --- InfLoRA ---


@pytest.mark.parametrize("case", golden_cases("inflora"))
def test_the_authors_numbers_of_inflora(authors_tower, case):
    h, arrays, lessons = read(case)
    method, errors = m.InfLoRA(authors_tower, LinearHead(), h["rank"], h["lamb"], h["lame"]), {}
    for t, lesson in enumerate(lessons):
        method.begin_lesson(lesson, make_generator(t))
        designed = torch.stack([arrays[f"task{t}.A.{i}"] for i in range(authors_tower.depth)])
        for mine, theirs in zip(method.down, designed, strict=True):
            errors[f"{t} A'A {len(errors)}"] = relative(mine.T @ mine, theirs.T @ theirs)
        method.down.copy_(designed)  # the signs of singular vectors are arbitrary
        rows = slice(2 * t, 2 * t + 2)
        for name in ("weight", "bias"):
            getattr(method.head, name).data[rows] = arrays[f"task{t}.param.head.{name}"]
        terms, out = get(method, batch_of(lesson))
        errors[f"{t} loss"] = relative(terms["ce"][0], arrays[f"task{t}.loss"])
        errors[f"{t} logits"] = relative(out.logits, arrays[f"task{t}.train.logits"])
        terms["ce"][0].backward()
        grads = {
            f"{i}.B_{kind}": method.up.grad[i, j] for i in range(authors_tower.depth) for j, kind in enumerate("kv")
        } | {f"head.{name}": getattr(method.head, name).grad[rows] for name in ("weight", "bias")}
        errors |= {f"{t} grad {name}": relative(g, arrays[f"task{t}.grad.{name}"]) for name, g in grads.items()}
        with torch.no_grad():
            for p in method.parameters():
                p -= h["train_lr"] * p.grad
        for i in range(authors_tower.depth):
            for j, kind in enumerate("kv"):
                errors[f"{t} after {i}{kind}"] = relative(method.up[i, j], arrays[f"task{t}.after.{i}.B_{kind}"])
        moments = method.collect_moments(lesson) / 17  # of 16 patches and the class token
        errors[f"{t} moment"] = relative(moments[0].float(), arrays[f"task{t}.moment.0"])
        method.end_lesson(lesson)
        columns, retains = arrays[f"task{t}.memory.columns"], arrays[f"task{t}.memory.retain"].bool()
        n_free = method.free.diagonal(dim1=1, dim2=2).sum(1).round().long()
        assert torch.equal(torch.where(retains, n_free, authors_tower.dim - n_free), columns)
        for i in (0, authors_tower.depth - 1):
            free = method.free[i].float()
            mine = free if retains[i] else torch.eye(authors_tower.dim) - free
            errors[f"{t} memory {i}"] = relative(mine, arrays[f"task{t}.memory.projector.{i}"])
        logits = answer(method, arrays["test.images"], seen(lessons, t)).logits
        errors[f"{t} eval"] = relative(logits, arrays[f"task{t}.eval.logits"])
    hold(case, errors)


# --- LAE ---

PREFIX = {
    "key.tokens": "keys",
    "val.tokens": "values",
    "key.scaler.scale": "key_scale",
    "val.scaler.scale": "value_scale",
}


@pytest.mark.parametrize("case", golden_cases("lae"))
def test_the_authors_numbers_of_lae(authors_tower, case):
    h, arrays, lessons = read(case)
    assert h["layers"] == [0, 1, 2]
    options = {"prompt_length": h["length"], "n_layers": 3, "decay": h["ema_decay"], "frozen_fraction": 0.0}
    method, errors = m.LAE(authors_tower, LinearHead(), "prefix", **options), {}
    for t, lesson in enumerate(lessons):
        method.begin_lesson(lesson, make_generator(t))
        pairs = {f"head.{name}": (getattr(method.head, name), same) for name in ("weight", "bias")}
        for i, prefix in enumerate(method.online):
            pairs |= {f"pets.{i}.{theirs}": (getattr(prefix, ours), same) for theirs, ours in PREFIX.items()}
        for name, (p, _) in pairs.items():
            if f"task{t}.param.{name}" in arrays:  # the online prefixes go on
                p.data.copy_(arrays[f"task{t}.param.{name}"])
        if not t:
            method.offline.load_state_dict(method.online.state_dict())
        terms, _ = get(method, batch_of(lesson))
        errors[f"{t} loss"] = relative(terms["ce"][0], arrays[f"task{t}.loss"])
        terms["ce"][0].backward()
        take(method, pairs, arrays, f"task{t}", h["train_lr"], errors)
        method.end_step(1, 1)
        for i, prefix in enumerate(method.offline):
            for theirs, ours in PREFIX.items():
                errors[f"{t} offline {i} {ours}"] = relative(
                    getattr(prefix, ours), arrays[f"task{t}.offline.{i}.{theirs}"]
                )
        names = seen(lessons, t)
        pixels = arrays["test.images"][arrays["test.labels"] < len(names)]
        errors[f"{t} eval"] = relative(answer(method, pixels, names).logits.exp(), arrays[f"task{t}.eval.answer"])
    hold(case, errors)


# --- HiDe-Prompt ---


def give(classes, noise, order):
    """Draw what a golden vector gives, instead of what a generator does."""

    def draw_epochs(rows, n, seed):
        assert noise.shape[:2] == (len(rows), n)
        features = torch.cat([classes.draw(row, z) for row, z in zip(rows, noise, strict=True)])
        yield features[order], torch.arange(len(rows)).repeat_interleave(n)[order]

    classes.draw_epochs = draw_epochs


def build_hideprompt(tower, h):
    return m.HiDePrompt(
        tower,
        LinearHead(),
        h["length"],
        h["layers"],
        h["prompt_momentum"],
        h["reg"],
        h["head_lr"] / h["train_lr"],
        h["tii_lr"] / h["train_lr"],
        h["mlp_hidden_times"],
        "covariance",
        alignment_epochs=1,
        alignment_lr=h["ca_lr"],
        alignment_weight_decay=0.0,
        draws=h["ca_samples_per_class"],
    )


def list_guesser(guesser):
    """Our parameters of the guesser by their names."""
    parts = {"mlp.norm": guesser.norm, "mlp.net.0.0": guesser.up, "mlp.net.1.0": guesser.down, "head": guesser.head}
    return {f"{name}.{kind}": getattr(part, kind) for name, part in parts.items() for kind in ("weight", "bias")}


def put_hideprompt(method, arrays, t, n_earlier):
    """Write the authors' start values of a lesson into the method: a guesser's row that is there already stays."""
    with torch.no_grad():
        for name, p in list_guesser(method.guesser).items():
            if not t or name.startswith("head"):
                rows = slice(n_earlier if name.startswith("head") else 0, len(p))
                p[rows] = arrays[f"tii.param.{name}"][rows]
        method.prompts[-1].copy_(arrays[f"task{t}.param.prompt"][:, :, t].flatten(3))
        for kind in ("weight", "bias"):
            p = getattr(method.head, kind)
            p.copy_(arrays[f"task{t}.param.head.{kind}"][: len(p)])


def compare_known(pairs, arrays, prefix):
    """The errors of what the arrays have of {name: ours}, in the rows of classes that have come."""
    return {
        f"{prefix}.{name}": relative(mine, arrays[f"{prefix}.{name}"][: len(mine)])
        for name, mine in pairs.items()
        if f"{prefix}.{name}" in arrays
    }


def step_hideprompt(method, batch, h, arrays, t):
    """The errors of the losses, their gradients, and a step."""
    terms, _ = get(method, batch)
    total = terms["ce"][0] + terms["contrast"][0]
    losses = {"loss": total, "loss_contrast": terms["contrast"][0] / h["reg"]}
    errors = compare_known(
        {name: value[None] for name, value in losses.items()}, {k: v[None] for k, v in arrays.items()}, f"task{t}"
    )
    errors[f"{t} tii loss"] = relative(terms["guesser"][0], arrays[f"tii.task{t}.loss"])
    (total + terms["guesser"][0]).backward()
    main = {f"head.{kind}": getattr(method.head, kind) for kind in ("weight", "bias")}
    guesser = list_guesser(method.guesser)
    errors |= compare_known({name: p.grad for name, p in main.items()}, arrays, f"task{t}.grad")
    errors |= compare_known({name: p.grad for name, p in guesser.items()}, arrays, f"tii.task{t}.grad")
    grad = arrays[f"task{t}.grad.prompt"][:, :, t].flatten(3)
    errors[f"{t} grad prompt"] = relative(method.prompts[-1].grad, grad)
    with torch.no_grad():
        for group in method.param_groups():
            for p in group["params"]:
                p -= h["train_lr"] * group["lr_factor"] * p.grad
                p.grad = None
    errors[f"{t} after"] = relative(method.prompts[-1], arrays[f"task{t}.after.prompt"][:, :, t].flatten(3))
    errors |= compare_known(main, arrays, f"task{t}.after")
    return errors | compare_known(guesser, arrays, f"tii.task{t}.after")


# -asis mixes up the axes of the prefixes, so that an answer depends on its batch
HIDEPROMPT = golden_cases("hideprompt", suits=lambda told: not told["name"].endswith("-asis"))


@pytest.mark.parametrize("case", HIDEPROMPT)
def test_the_authors_numbers_of_hideprompt(authors_tower, case):
    h, arrays, lessons = read(case)
    method, errors = build_hideprompt(authors_tower, h), {}
    for t, lesson in enumerate(lessons):
        method.begin_lesson(lesson, make_generator(t))
        names = seen(lessons, t)
        n_earlier, classes = len(names) - len(lesson.train.names), method.prompted_classes
        put_hideprompt(method, arrays, t, n_earlier)
        errors |= step_hideprompt(method, batch_of(lesson), h, arrays, t)
        if t:
            for part, kind in ((method.frozen_classes, "tii."), (classes, "")):
                give(part, arrays[f"{kind}task{t}.ca.z"], arrays[f"{kind}task{t}.ca.order"])
        method.end_lesson(lesson)
        for s, prompts in enumerate(method.prompts):
            errors[f"{t} stored {s}"] = relative(prompts, arrays[f"task{t}.stored.prompt"][:, :, s].flatten(3))
        errors[f"{t} mean"] = relative(classes.means[n_earlier:, 0], arrays[f"task{t}.mean"])
        errors[f"{t} cov"] = relative(classes.spreads[n_earlier], arrays[f"task{t}.cov"][0])
        errors |= compare_known(dict(method.head.named_parameters(prefix="head")), arrays, f"task{t}.ca.after")
        errors |= compare_known(list_guesser(method.guesser), arrays, f"tii.task{t}.final")
        guesses = method.guesser(authors_tower(images(arrays["test.images"], "tii")), slice(None))
        errors[f"{t} tii eval"] = relative(guesses, arrays[f"tii.task{t}.eval.logits"][:, : len(names)])
        out, known = answer(method, arrays["test.images"], names), arrays["test.labels"] < len(names)
        errors[f"{t} eval"] = relative(out.logits[known], arrays[f"task{t}.eval.logits"][:, : len(names)])
    errors["tii cov"] = relative(method.frozen_classes.spreads[0], arrays["tii.cov"][0])
    aligned = [name for name in errors if "final" in name or "ca.after" in name]
    assert len(aligned) == 8, aligned
    hold(case, errors)
