"""Teachers: opened by their settings, asked once, compared on resume; their students never see a label."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import vlprompt
from vlprompt import methods as m
from vlprompt.config.build import build_task
from vlprompt.config.resolve import resolve_grid
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Preprocessing
from vlprompt.core.teacher import TeacherSettings
from vlprompt.core.towers import with_preprocessing
from vlprompt.data.loading import open_data
from vlprompt.experiments.learned.model_folder import save_prompt
from vlprompt.experiments.learned.prompt import build_run_method, load_prompt, open_teacher
from vlprompt.experiments.learned.teacher import OpenedTeacher, RunTeacher
from vlprompt.results.comparability import collect_protocol_facts, describe_protocol_differences
from vlprompt.results.run_folder import RunFolder
from vlprompt.results.run_inputs import ChangedInputsError
from vlprompt.runtime.errors import UnknownClassError
from vlprompt.tasks import BaseToNew, FewShot
from vlprompt.testing.images import write_digit_folders

CPU = torch.device("cpu")
SHORT = ("train.epochs=1", "train.batch_size=8", "train.warmup=0")
STUDENT = ("method.n_tokens=2", "method.depth=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digit_folders(tmp_path_factory.mktemp("data"))


def learn(folder, method, dataset, task="few_shot", *overrides, shots=None):
    """A run of a tiny random CLIP."""
    options = {"dataset": str(dataset), "task": task, "backbone": "glyph/random", "overrides": [*SHORT, *overrides]}
    [config] = resolve_grid([method], [shots], [1], **options)
    method = build_run_method(config.method, vlprompt.load("glyph/random"))
    return vlprompt.run(method, build_task(config.task), config, folder)


def distil(folder, dataset, teacher, task="few_shot", *overrides):
    settings = [{"method": {"teacher": {"backbone": None, "run": str(teacher)}}}]
    return learn(folder, "promptkd", dataset, task, *STUDENT, *settings, *overrides)


CLASS_SPECIFIC = ("method.init_text=null", "method.n_ctx=2", "method.class_specific=true", "task.base_only=true")
TEACHERS = {  # method, dataset, task and settings of runs that may teach
    "all": ("coop", "digits", "few_shot"),
    "base": ("coop", "digits", "base_to_new"),
    "transfer": ("coop", "looks", "transfer", "task.targets=[{digits}]"),
    "looks": ("coop", "looks", "few_shot"),
    "linear": ("linear", "digits", "few_shot"),
    "cocoop": ("cocoop", "digits", "few_shot"),
    "own": ("coop", "digits", "base_to_new", *CLASS_SPECIFIC),
}


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """Gives the folder of a run of TEACHERS, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("teachers")

    def find(name):
        if name in TEACHERS and not (folder / name).exists():
            method, dataset, task, *settings = TEACHERS[name]
            settings = [text.format(digits=data / "digits") for text in settings]
            learn(folder / name, method, data / dataset, task, *settings, shots=1)
        return folder / name

    return find


def test_a_student_of_a_run(data, teachers, tmp_path):
    """New classes are learned from without labels; the result says what was used, and the table marks it."""
    result = distil(tmp_path / "run", data / "digits", teachers("base"), "base_to_new")
    protocol = result.protocol
    assert protocol["uses"] == ["teacher", "unlabelled_images"]
    assert protocol["train_images"] == 0
    assert protocol["unlabelled_images"] == 20  # 2 of each of the 10 classes
    assert len(protocol["classes"]) == 10
    assert result.config["method"]["teacher"] == {"backbone": None, "run": str(teachers("base"))}
    [(setting, key)] = protocol["teachers"].items()
    assert setting == "method.teacher"
    assert key.startswith("glyph/random#")
    assert "|" in key  # and what was learned
    notes = describe_protocol_differences([collect_protocol_facts([result])])
    assert notes == ["uses teacher and unlabelled images: not comparable with rows that do not"]
    again = distil(tmp_path / "run", data / "digits", teachers("base"), "base_to_new")
    assert again.summary == result.summary


def test_labels_never_reach_the_method(data, tmp_path):
    opened = open_data(str(data / "digits"))
    order = torch.randperm(len(opened.train), generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = replace(opened.train, labels=tuple(opened.train.labels[i] for i in order))
    assert shuffled.labels != opened.train.labels
    states = []
    for train in (opened.train, shuffled):
        task = BaseToNew(replace(opened, train=train), shots=None, unlabelled=True)
        lesson = next(task.stages()).lesson
        assert not len(lesson.train)
        assert lesson.val is None
        for item in lesson.unlabelled.items:
            assert item.file is None
            assert not any(str(name) in item.key + item.name for name in lesson.train.names)
        clip = vlprompt.load("glyph/random")
        method = m.PromptKD(clip, open_teacher(TeacherSettings("glyph/random"), CPU), 2, 2)
        vlprompt.run(method, task, vlprompt.TrainConfig(epochs=2, batch_size=8, warmup=0), tmp_path / str(len(states)))
        states.append(method.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_labels_of_a_source_are_left_out(tiny, data):
    """Where a lesson has labelled images too, the student is trained on the others alone."""
    task = FewShot(str(data / "digits"), shots=None, unlabelled=True)
    labelled = FewShot(str(data / "digits"), shots=1).lesson
    method = m.PromptKD(tiny, open_teacher(TeacherSettings("glyph/random"), CPU))
    lesson = method.training_lesson(replace(labelled, unlabelled=task.lesson.unlabelled))
    assert (len(lesson.train), lesson.val, len(lesson.unlabelled)) == (0, None, 20)
    with pytest.raises(ValueError, match=r"Set task.unlabelled=true"):
        method.training_lesson(labelled)


class CountedZeroShot(m.ZeroShot):
    """Counts the images that it answers."""

    n_images = 0

    def forward(self, inputs, prepared):
        self.n_images += len(inputs)
        return super().forward(inputs, prepared)


def counted_teacher(clip):
    method = CountedZeroShot(clip)
    return RunTeacher(TeacherSettings(), CPU, lambda settings, device: OpenedTeacher(method, "")), method


def test_an_image_is_answered_once(tiny, data):
    """Each epoch after the first finds the answers; an answer has the same bits in any batch."""
    task = FewShot(str(data / "digits"), None, augment="none", unlabelled=True)
    images = task.lesson.unlabelled

    def ask(teacher, batch_size):
        return torch.cat([teacher.answer(batch.inputs, batch.names) for batch in images.batches(batch_size)])

    (teacher, method), (other, _) = counted_teacher(tiny), counted_teacher(tiny)
    answers = ask(teacher, 7)
    assert method.n_images == 25  # a blank one for the class texts, and passes of 8 with the last padded
    assert torch.equal(answers, ask(teacher, 4))
    assert torch.equal(answers, ask(other, 3))
    student = m.PromptKD(tiny, teacher, 2, 2)
    vlprompt.run(student, task, vlprompt.TrainConfig(epochs=3, batch_size=8))
    assert method.n_images == 25


@pytest.mark.slow
def test_answers_are_on_the_disk(data, tmp_path):
    lesson = FewShot(str(data / "digits"), shots=None, unlabelled=True).lesson
    answers, counts = [], []
    for _ in range(2):
        clip = vlprompt.load("glyph/random", cache_folder=tmp_path / "cache")
        teacher, method = counted_teacher(clip)
        answers.append(torch.cat([teacher.answer(b.inputs, b.names) for b in lesson.unlabelled.batches(8)]))
        counts.append(method.n_images)
        clip.image.feature_cache.flush()
    assert torch.equal(*answers)
    assert counts[1] < 10 < counts[0]  # the class texts, and the probe that tells computations apart


def test_other_preprocessing(tiny, data):
    """A teacher reads images with its own preprocessing, whatever the student's is."""
    size = tiny.image.preprocessing.size[0] * 2
    larger = with_preprocessing(tiny, Preprocessing((size, size), interpolation="bilinear"))
    batches = [
        next(FewShot(str(data / "digits"), None, unlabelled=True).lesson.unlabelled.batches(8)) for _ in range(2)
    ]
    teacher, method = counted_teacher(larger)
    student = m.PromptKD(tiny, teacher, 2, 2)
    student.begin_lesson(FewShot(str(data / "digits"), None).lesson, torch.Generator().manual_seed(0))
    student.loss_terms(replace(batches[0], unlabelled=None), student.precompute(batches[0].names))
    fixed = method.precompute(batches[1].names)
    expected = method(batches[1].inputs, fixed).logits
    torch.testing.assert_close(teacher.answer(batches[0].inputs, batches[0].names), expected)
    assert not torch.allclose(m.ZeroShot(tiny)(batches[1].inputs, fixed).logits, expected, atol=1e-3)


def test_a_step_of_one_image(tiny, data):
    lesson = FewShot(str(data / "digits"), None, unlabelled=True).lesson
    method = m.PromptKD(tiny, open_teacher(TeacherSettings("glyph/random"), CPU), 2, 2)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"train.batch_size: expected at least 2 images .* got 1"):
        method.loss_terms(next(lesson.unlabelled.batches(1)), method.precompute(lesson.train.names))


REFUSED = {  # name of the teacher -> task of the student, message
    "all": ("base_to_new", "expected a teacher that learned from labels of eight, five, four, nine, one alone, got"),
    "looks": ("few_shot", "expected a teacher that learned from .*digits, got one that learned from .*looks"),
    "linear": ("few_shot", "method.teacher: expected a method .*, got Linear"),
    "cocoop": ("few_shot", "expected a method with one text for each class, got CoCoOp"),
    "own": ("base_to_new", "expected a teacher that knows the classes of the student"),
    "nowhere": ("few_shot", r"method.teacher.run: expected the folder of a run, got .*, which does not exist"),
}


@pytest.mark.parametrize(
    "name",
    [name if name in ("all", "looks", "nowhere") else pytest.param(name, marks=pytest.mark.slow) for name in REFUSED],
)
def test_teachers_that_do_not_suit(name, data, teachers, tmp_path):
    task, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        distil(tmp_path / "run", data / "digits", teachers(name), task)
    assert not list(tmp_path.glob("run/result.json"))


@pytest.mark.slow
def test_a_teacher_of_a_transfer_may_learn_from_other_data(data, teachers, tmp_path):
    assert "accuracy" in distil(tmp_path / "run", data / "digits", teachers("transfer")).summary


def test_broken_and_unfinished_runs(data, teachers, tmp_path):
    for name in ("unfinished", "broken"):
        shutil.copytree(teachers("all"), tmp_path / name)
    (tmp_path / "unfinished" / "result.json").unlink()
    learned = RunFolder(tmp_path / "broken").learned_path
    learned.write_bytes(learned.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"method.teacher.run: .*unfinished.* expected a finished run"):
        distil(tmp_path / "run", data / "digits", tmp_path / "unfinished")
    with pytest.raises(ValueError, match=r"method.teacher.run: .*broken"):
        distil(tmp_path / "run", data / "digits", tmp_path / "broken")


def test_its_own_teacher(data, teachers, tmp_path):
    with pytest.raises(ValueError, match=r"method.teacher.run: expected another run, got the folder of this run"):
        distil(teachers("all"), data / "digits", teachers("all"))


def test_other_images_of_the_same_name(data, teachers, tmp_path):
    """The teacher may have learned from test images of another split."""
    shutil.copytree(data / "digits", tmp_path / "digits")
    for split, other in (("test", "spare"), ("train", "test"), ("spare", "train")):
        (tmp_path / "digits" / split).rename(tmp_path / "digits" / other)
    with pytest.raises(ValueError, match=r"expected a teacher that learned from the same split of"):
        distil(tmp_path / "run", tmp_path / "digits", teachers("all"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "method.teacher: expected a backbone or a run, got neither"),
        ({"backbone": "pixels"}, "method.teacher: backbone 'pixels:8': expected a text tower, got none"),
        ({"backbone": "glyph/randm"}, "method.teacher: .*glyph/randm"),
        ({"bckbone": "glyph"}, "unknown key 'method.teacher.bckbone'"),
    ],
)
def test_wrong_settings(settings, message, data, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        learn(tmp_path / "run", "promptkd", data / "digits", "few_shot", *STUDENT, {"method": {"teacher": settings}})


@pytest.mark.slow
def test_another_backbone_than_that_of_the_run(data, teachers, tmp_path):
    with pytest.raises(ValueError, match=r"method.teacher.backbone: expected the weights that .* was trained on"):
        distil(tmp_path / "run", data / "digits", teachers("all"), "few_shot", "method.teacher.backbone=glyph")


@pytest.mark.slow
def test_a_teacher_that_learned_something_else(data, teachers, tmp_path):
    """A run whose teacher has changed is not taken for the same."""
    shutil.copytree(teachers("all"), tmp_path / "teacher")
    distil(tmp_path / "run", data / "digits", tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher")
    learn(tmp_path / "teacher", "coop", data / "digits", "few_shot", "method.init_text=null", "method.n_ctx=3", shots=1)
    with pytest.raises(ChangedInputsError, match=r"what method.teacher.run has learned"):
        distil(tmp_path / "run", data / "digits", tmp_path / "teacher")


def test_a_student_answers_without_its_teacher(data, teachers, tmp_path):
    shutil.copytree(teachers("base"), tmp_path / "teacher")
    distil(tmp_path / "run", data / "digits", tmp_path / "teacher", "base_to_new")
    prompt, items = load_prompt(tmp_path / "run"), open_data(str(data / "digits")).test.items[:4]
    logits, new = prompt.answer(items).probabilities, (ClassName("yak"), prompt.names[3])
    assert prompt.answer(items, new).probabilities.shape == (4, 2)
    save_prompt(prompt, tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    shutil.rmtree(tmp_path / "teacher")
    for folder in ("run", "model"):
        alone = load_prompt(tmp_path / folder)
        assert torch.equal(alone.answer(items).probabilities, logits)
        with pytest.raises(UnknownClassError, match=r"no text of class 'yak'.* the teacher can't encode it"):
            alone.answer(items, new)


def test_paths_of_a_teachers_weights_are_not_shared(tmp_path):
    from vlprompt.experiments.learned.local_paths import shorten_settings

    method = {"name": "promptkd", "teacher": {"backbone": f"open_clip:ViT-L-14@{tmp_path}/w.pt", "run": str(tmp_path)}}
    assert str(tmp_path.parent) not in json.dumps(shorten_settings(method))
