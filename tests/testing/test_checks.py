"""Each check of vlprompt.testing fails for a method that breaks its contract, and says what to change."""

import itertools
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import vlprompt
from vlprompt import Clip, Head, LanguageTower, Method, Output, Prompt, TowerMethod
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.testing import CheckFailure, check_method, iter_checks
from vlprompt.testing.suite import CHECKS


class Sound(Method):
    """A learned context: keeps every contract."""

    def __init__(self, clip: Clip, n_ctx: int = 2):
        super().__init__()
        self.clip, self.n_ctx = clip, n_ctx

    def begin_lesson(self, lesson, generator):
        if not lesson.index:
            self.ctx = nn.Parameter(self.clip.text.init_context(self.n_ctx, None, generator))

    def precompute(self, names):
        return fill_class_texts("{ctx} {name}.", names, self.n_ctx)

    def prepare(self, names, fixed):
        return self.clip.text(fixed, Prompt(tokens={0: self.ctx[None]}))[0]

    def forward(self, inputs, prepared):
        return Output(self.clip.logits(self.clip.image(inputs), prepared))


class WritesIntoTheBackbone(Sound):
    def loss_terms(self, batch, fixed):
        self.clip.image.position_embeddings.add_(1e-3)
        return super().loss_terms(batch, fixed)


class HasAnUnusedParameter(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        self.unused = nn.Parameter(torch.zeros(3))


class LearnsNothing(Sound):
    def prepare(self, names, fixed):
        return super().prepare(names, fixed).detach()


class HasAZeroGradient(Sound):
    def loss_terms(self, batch, fixed):
        terms, out = super().loss_terms(batch, fixed)
        return {name: (mean.detach() + 0 * mean, rows) for name, (mean, rows) in terms.items()}, out


class CancelsInHalfPrecision(Sound):
    def forward(self, inputs, prepared):
        out = super().forward(inputs, prepared)
        return out._replace(penalty=1e4 * ((self.ctx @ self.ctx.T + 1000) - 1000).mean())


class SumsItsLoss(Sound):
    def loss_terms(self, batch, fixed):
        terms, out = super().loss_terms(batch, fixed)
        return {name: (mean * rows, 1.0) for name, (mean, rows) in terms.items()}, out


class DrawsFromTheGlobalState(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, None)
        self.ctx.data += torch.randn(self.ctx.shape)


class DrawsAnew(Sound):
    def loss_terms(self, batch, fixed):
        terms, out = super().loss_terms(batch, fixed)
        return {name: (mean + random.random(), rows) for name, (mean, rows) in terms.items()}, out


class HasASeedOfItsOwn(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, torch.Generator().manual_seed(0))

    def training_lesson(self, lesson):
        return lesson

    def loss_terms(self, batch, fixed):
        terms, out = super().loss_terms(batch, fixed)
        return {"ce": (0 * terms["ce"][0], terms["ce"][1])}, out


class ShiftsByItsSteps:
    """Adds a number of steps to its logits that no state holds."""

    shift = 0.0

    def end_step(self, step, steps):
        self.shift = self.shift + 1.0

    def forward(self, inputs, prepared):
        out = super().forward(inputs, prepared)
        return out._replace(logits=out.logits + self.shift * torch.arange(out.logits.shape[1]))


class LearnsOutsideOfItsState(ShiftsByItsSteps, Sound):
    pass


class ShapesByItems(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        self.register_buffer("labels", torch.tensor(lesson.train.labels))


class CentresItsBatch(Sound):
    def forward(self, inputs, prepared):
        image = self.clip.image(inputs)
        return Output(self.clip.logits(image - image.mean(0), prepared))


class IgnoresNames(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        self.names = lesson.train.names

    def precompute(self, names):
        return super().precompute(self.names)


class SortsNames(Sound):
    def precompute(self, names):
        return super().precompute(tuple(sorted(names)))


class RefusesWithoutAName(IgnoresNames):
    def precompute(self, names):
        if not set(names) <= set(self.names):
            raise ValueError("something is wrong")
        return Sound.precompute(self, names)


class CentresItsBatchLater(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        self.index = lesson.index

    def forward(self, inputs, prepared):
        image = self.clip.image(inputs)
        return Output(self.clip.logits(image - image.mean(0) if self.index else image, prepared))


class ForgetsTheFirstClasses(IgnoresNames):
    """One that answers about the last lesson's classes alone."""

    def forward(self, inputs, prepared):
        return Sound.forward(self, inputs, prepared)


class NeverRestarts(Sound):
    def begin_lesson(self, lesson, generator):
        if not hasattr(self, "ctx"):
            super().begin_lesson(lesson, generator)


class HasParametersAtOnce(Sound):
    def __init__(self, clip: Clip, n_ctx: int = 2):
        super().__init__(clip, n_ctx)
        self.scale = nn.Parameter(torch.ones(1))


class DoublesASetting(Sound):
    def __init__(self, clip: Clip, n_ctx: int = 2):
        super().__init__(clip, 2 * n_ctx)


class StoresNothing(Sound):
    def __init__(self, clip: Clip, width: int = 2):
        super().__init__(clip)


class CantAnswerMany(Sound):
    """One that fails in the test of a run alone, which has more images than any other batch."""

    def forward(self, inputs, prepared):
        if not self.training and len(inputs) > 6:
            raise IndexError("too many images")
        return super().forward(inputs, prepared)


class RemembersInSilence(Sound):
    """One whose answers move the class texts for the later ones, a batch at a time."""

    def prepare(self, names, fixed):
        return super().prepare(names, fixed) + 0

    def forward(self, inputs, prepared):
        output = super().forward(inputs, prepared)
        if not self.training:
            prepared += 0.3 * self.clip.image(inputs).mean(0)
        return output


class AnswersABatchAtOnce(RemembersInSilence):
    is_online = True


class BeginsNoStream(Sound):
    """An online one that goes on where the last evaluation ended."""

    is_online = True

    def forward(self, inputs, prepared):
        self.n_answers = getattr(self, "n_answers", 0) + len(inputs)
        output = super().forward(inputs, prepared)
        return output._replace(logits=output.logits * self.n_answers)


class SaysItNeedsUnlabelled(Sound):
    needs_unlabelled = True


class SoundTokens(TowerMethod[LanguageTower]):
    """Soft tokens before a text: keeps every contract."""

    def __init__(self, lm: LanguageTower, head: Head, n_tokens: int = 2):
        super().__init__()
        self.lm = self.tower = lm
        self.head, self.n_tokens = head, n_tokens

    def build(self, generator):
        self.tokens = nn.Parameter(self.lm.sample_token_embeddings(self.n_tokens, generator))

    def prompt(self, n):
        return Prompt(tokens={0: self.tokens[None]})


class CountsPasses(SoundTokens):
    """One whose adapters give another value when they are recomputed."""

    def build(self, generator):
        super().build(generator)
        self.passes = itertools.count()

    def prompt(self, n):
        sites = self.lm.sites("q")
        change = lambda inputs, outputs: outputs * (1 + next(self.passes) / 10)  # noqa: E731
        return Prompt(tokens={0: self.tokens[None]}, adapters=dict.fromkeys(sites, change))


class ScoresOutsideOfItsState(ShiftsByItsSteps, SoundTokens):
    pass


class ReadsOneLabel(Sound):  # and drops some logits
    def loss_terms(self, batch, fixed):
        first = batch.labels.argmax(1) if batch.labels.ndim == 2 else batch.labels
        out = self(batch.inputs, self.prepare(batch.names, fixed))
        logits = nn.functional.dropout(out.logits, 0.1, self.training)
        return {"ce": (nn.functional.cross_entropy(logits, first), len(first))}, out


class MarksUnknownAsAbsent(Sound):
    def loss_terms(self, batch, fixed):
        return super().loss_terms(replace(batch, labels=batch.labels.clamp(min=0)), fixed)


class WritesIntoTheBackboneOfLabels(Sound):
    def loss_terms(self, batch, fixed):
        if batch.labels.ndim == 2:
            self.clip.image.position_embeddings.add_(1e-3)
        return super().loss_terms(batch, fixed)


class WeighsByItsSteps(Sound):
    n_steps = 0

    def end_step(self, step, steps):
        self.n_steps += 1

    def loss_terms(self, batch, fixed):
        terms, out = super().loss_terms(batch, fixed)
        return {name: ((1 + self.n_steps) * value, n) for name, (value, n) in terms.items()}, out


class SaysItNeedsOneLabel(Sound):
    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        self.needs_single_labels = True


class CantAnswerManyTexts(SoundTokens):
    def forward(self, inputs, prepared):
        if not self.training and len(inputs) > 10:
            raise IndexError("too many texts")
        return super().forward(inputs, prepared)


BROKEN = [  # (class, the check that fails, what it says)
    (HasParametersAtOnce, "constructor", "expected no parameters, got scale. Create them in begin_lesson"),
    (DoublesASetting, "constructor", "expected its arguments as they are, got other values in n_ctx"),
    (StoresNothing, "constructor", "expected a constructor that stores its argument width"),
    (DrawsFromTheGlobalState, "initial_values", "got others in ctx. Write torch.randn(..., generator=generator)"),
    (HasAnUnusedParameter, "gradients", "got none for unused. Use them in the loss"),
    (LearnsNothing, "gradients", "got a constant. Use them in prepare or forward, without torch.no_grad()"),
    (WritesIntoTheBackbone, "backbone_unchanged", "that changed (image.position_embeddings"),
    (HasAZeroGradient, "learns", "expected it to fall in 8 steps"),
    (DrawsAnew, "reproducible", "expected two trainings with the seed 0 to be the same"),
    (DrawsFromTheGlobalState, "reproducible", "expected two trainings with the seed 0 to be the same"),
    (HasASeedOfItsOwn, "reproducible", "expected another training with another seed, got the same losses"),
    (SumsItsLoss, "micro_batches", "got others in ctx. Return each loss term as a mean"),
    (CountsPasses, "activation_checkpointing", "expected the parameters of a training without it"),
    (CancelsInHalfPrecision, "bf16", "expected losses within 5 % of float32's"),
    (ReadsOneLabel, "several_labels", "expected one that depends on all labels (B, C), got the same"),
    (MarksUnknownAsAbsent, "several_labels", "expected one that does not depend on unknown labels, got another"),
    (WritesIntoTheBackboneOfLabels, "several_labels", "expected the frozen backbone as it was, without gradients"),
    (WeighsByItsSteps, "several_labels", "expected the losses of the training when it goes on after a step"),
    (LearnsOutsideOfItsState, "state_restores", "Register what is learned as nn.Parameter or by register_buffer"),
    (ShapesByItems, "state_restores", "shapes that follow from the class names alone"),
    (CentresItsBatch, "batch_independence", "expected the same answer to an input in any batch"),
    (RemembersInSilence, "order_of_answers", "expected the same answer whatever was answered before"),
    (AnswersABatchAtOnce, "order_of_answers", "expected the same answers to a stream one by one"),
    (BeginsNoStream, "order_of_answers", "expected the same answers to the same stream"),
    (IgnoresNames, "class_order", "expected one column for each of 3 names, got logits of the shape (3, 10)"),
    (SortsNames, "class_order", "expected the same logit for a class wherever its name stands"),
    (IgnoresNames, "new_class_names", "expected logits of the shape (2, 3) for 3 new names, got (2, 10)"),
    (RefusesWithoutAName, "new_class_names", "expected a refusal that names 'snow leopard', got something is wrong"),
    (ScoresOutsideOfItsState, "text_evaluation", "state_dict: expected the same logits after loading"),
    (CentresItsBatchLater, "second_lesson_same_classes", "expected the same answer to an input in any batch"),
    (ForgetsTheFirstClasses, "second_lesson_new_classes", "expected logits of the shape (6, 10)"),
    (NeverRestarts, "first_lesson_restarts", "got another state than a new object's (ctx)"),
    *((CantAnswerMany, f"runs_{task}", "got IndexError: too many images")
      for task in ("few_shot", "base_to_new", "transfer", "continual", "domain", "online", "multi_label")),
    (SaysItNeedsUnlabelled, "runs_few_shot", "expected a refusal of the task few_shot, got a run"),
    (CantAnswerManyTexts, "runs_text", "got IndexError: too many texts"),
]  # fmt: skip


def find_check(cls, name, **options):
    [check] = [check for check in iter_checks(cls, **options) if check.name == name]
    return check


@pytest.mark.parametrize(
    ("cls", "name", "message"),
    BROKEN,
    ids=[f"{cls.__name__}-{name}" for cls, name, _ in BROKEN],
)
def test_a_broken_method_fails_its_check(cls, name, message):
    result = find_check(cls, name).run()
    assert result.status == "failed"
    assert message in result.reason


def test_there_is_a_broken_method_for_every_check():
    assert {name for _, name, _ in BROKEN} == {check.__name__.removeprefix("check_") for check in CHECKS}


@pytest.mark.slow
def test_a_sound_method_passes():
    results = check_method(Sound, {"n_ctx": 3}, build_tiny_clip())
    assert {result.status for result in results} == {"passed"}
    assert len(results) == 24


@pytest.mark.parametrize(
    "head", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("verbalizer", "tags", "response"))]
)
def test_a_sound_method_on_texts_passes(head):
    results = check_method(SoundTokens, {"head": head})
    assert {result.status for result in results} <= {"passed", "skipped"}
    skipped = {result.name for result in results if result.status == "skipped"}
    free_form = {
        "batch_independence",
        "order_of_answers",
        "class_order",
        "new_class_names",
        "second_lesson_same_classes",
    }
    assert skipped == (free_form if head in ("tags", "response") else set())


def test_all_failures_are_listed_at_once(monkeypatch):
    names = ("constructor", "gradients", "class_order")
    chosen = tuple(check for check in CHECKS if check.__name__.removeprefix("check_") in names)
    monkeypatch.setattr("vlprompt.testing.suite.CHECKS", chosen)
    with pytest.raises(CheckFailure) as error:
        check_method(IgnoresNames)
    assert str(error.value).startswith("IgnoresNames: 1 of 3 checks failed.\nclass_order: class names: expected one")


def test_what_is_no_method():
    with pytest.raises(ValueError, match=r"expected a subclass of vlprompt.Method, got builtins:dict"):
        check_method(dict)

    class Local(Sound):
        pass

    with pytest.raises(ValueError, match=r"expected a class at the top of a module that can be imported, got .*Local"):
        check_method(Local)
    with pytest.raises(ValueError, match=r"unknown key 'method.n_context'; did you mean 'n_ctx'"):
        find_check(Sound, "constructor", settings={"n_context": 3})()


@pytest.mark.slow
def test_pytest_and_transformers_are_not_needed():
    """They are imported when a decorator or a language model is asked for, and by nothing else."""
    code = """
import sys
sys.modules["pytest"] = sys.modules["transformers"] = None  # an import of them fails
from vlprompt.methods import CoOp
from vlprompt.testing import iter_checks
print([check.run().status for check in iter_checks(CoOp, {"n_ctx": 2})][:3])
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "['passed', 'passed', 'passed']\n", done.stderr


def test_pytest_is_imported_by_nothing_else():
    for path in Path(vlprompt.testing.__file__).parent.rglob("*.py"):
        imports = [line for line in path.read_text("utf-8").splitlines() if line.startswith(("import", "from"))]
        assert not [line for line in imports if "pytest" in line], path


def test_every_check_says_what_it_holds():
    for check in CHECKS:
        sentence = (check.__doc__ or "").splitlines()[0]
        assert sentence.endswith("."), check
        assert len(sentence) > 30, check
