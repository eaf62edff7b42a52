"""Two processes that torchrun starts come to what one comes to, and end together when something goes wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import several
import small_models
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.methods import CoOp
from vlprompt.runtime import collectives, distributed

BIN, TESTS = Path(sys.executable).parent, Path(__file__).parents[1]
TORCHRUN = [BIN / "torchrun", "--standalone", "--no-python", "--nproc-per-node"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "VLPROMPT_FEATURE_CACHE": "none"}
SMALL = ["train.epochs=2", "train.batch_size=5", "train.warmup=0", "train.drop_last=false"]  # 5 images can't be halved
STREAM = {"task": "continual", "shots": None, "backbone": "glyph-vit/random"}
# few images, so that little but the processes' start takes time; digits has 9 batches to be tested
FOLDER = {"dataset": "{folder}/paper", "shots": 4}
QUICK = [
    {"method": "coop", "overrides": SMALL, **FOLDER},
    {
        "method": "l2p",
        "overrides": [
            *SMALL,
            "task.stages=2",
            "method.penalize_frequency=true",
            "method.init_range=[-1,1]",
            "task.shots=6",
            "method.pool_size=6",
            "method.top_k=2",
        ],
        **STREAM,
    },
    {
        "method": "dapl",
        "dataset": "{folder}",
        "source": "paper",
        "target": "night",
        "task": "domain",
        "overrides": [
            *SMALL,
            "train.lr=0.05",
            "method.n_ctx=2",
            "method.threshold=0.1",
            "method.n_domain_ctx=2",
            "train.model_selection=entropy",
        ],
    },
]


STREAM_SMALL = [*SMALL, "task.stages=2", "task.shots=6"]
HEAD = {**FOLDER, "backbone": "glyph-vit/random"}
ADAPT = {"dataset": "{folder}", "source": "paper", "target": "night", "task": "domain"}
SLOW = [
    {"method": "cocoop", "overrides": [*SMALL, "train.micro_batch_size=2", "train.optimizer=adam", "train.lr=0.01"],
     **FOLDER},
    {"method": "vpt", "backbone": "glyph-vit/random", "overrides": [*SMALL, "method.dropout=0", "task.augment=crop"]},
    {"method": "tip_adapter", "overrides": ["method.finetune=true", "train.epochs=1", "train.batch_size=1",
     "train.lr=0.01"], **FOLDER, "shots": 1},
    *({"method": name, "overrides": [], **FOLDER} for name in ("zero_shot", "tip_adapter", "nearest_mean", "linear")),
    *({"method": name, "overrides": [*SMALL, "task.augment=crop"], **FOLDER}
      for name in ("kgcoop", "prograd", "clap", "cross_modal", "taskres", "clip_adapter")),
    {"method": "promptsrc", "overrides": [*SMALL, "train.batch_size=2"], **FOLDER},
    {"method": "coop", "overrides": [*SMALL, "train.model_selection=val", "train.grad_clip=0.1"], **FOLDER},
    {"method": "tpt", "overrides": ["method.augmentations=3"], **FOLDER},
    # Adam would make steps of what is left of a gradient that is zero, that of the keys' bias
    *({"method": name, "overrides": [*SMALL, "train.optimizer=sgd"], **HEAD}
      for name in ("lora", "partial", "bitfit", "side_tuning")),
    {"method": "ranpac", "overrides": ["method.projection_dim=50", "task.stages=2", "task.shots=6"], **STREAM},
    *({"method": name, "overrides": STREAM_SMALL, **STREAM} for name in ("dualprompt", "s_prompts")),
    {"method": "coda_prompt", "overrides": [*STREAM_SMALL, "method.pool_size=6"], **STREAM},
    {"method": "upl", "backbone": "glyph", "overrides": [*SMALL, "method.method=coop"], **ADAPT},
    {"method": "dann", "overrides": [*SMALL, "method.head=linear"], **ADAPT},
    {"method": "entropy", "overrides": [*SMALL, "method.method=coop"], **ADAPT},
]  # fmt: skip


def together(*words, many=2, seconds=600, **environment):
    """What torchrun comes to: its exit status and all that was written."""
    done = subprocess.run([*TORCHRUN, str(many), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False, timeout=seconds, env={**ENVIRONMENT, **environment})  # fmt: skip
    return done.returncode, done.stdout


def told(folder):
    """result.json, the steps and the learned state of the one run in a folder."""
    [path] = folder.glob("*/result.json")
    steps = [json.loads(line) for line in (path.parent / "steps.jsonl").read_text().splitlines()]
    return json.loads(path.read_text()), steps, load_file(path.parent / "prompt.safetensors")


def assert_same(one, two):
    """Of one process and of two: the same to rounding; every file was written once and is whole."""
    (a, losses, learned), (b, others, also) = one, two
    assert a["config"] == b["config"]
    assert (a["environment"]["processes"], b["environment"]["processes"]) == (1, 2)
    assert len(losses) == len(others)
    for x, y in zip(losses, others, strict=True):
        assert x.keys() == y.keys()
        assert all(x[k] == pytest.approx(y[k], rel=1e-4, abs=1e-6) for k in x), (x, y)
    for x, y in zip(a["scores"], b["scores"], strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name] == pytest.approx(y[name], rel=1e-3, abs=0.15), name  # one of 900 images may tip over
    assert learned.keys() == also.keys()
    for name, tensor in learned.items():
        assert torch.allclose(tensor.float(), also[name].float(), rtol=1e-3, atol=2e-5), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """domain/class/image: two looks of handwritten digits, three classes of 12 each."""
    root = tmp_path_factory.mktemp("domains")
    digits = load_digits()
    for k, (domain, change) in enumerate({"paper": lambda x: x, "night": lambda x: 255 - x}.items()):
        for label, name in enumerate(("zero", "one", "two")):
            (root / domain / name).mkdir(parents=True)
            for i, array in enumerate(digits.images[digits.target == label][12 * k : 12 * k + 12]):
                Image.fromarray(change(array * 15).astype(np.uint8)).resize((32, 32)).save(
                    root / domain / name / f"{i:02}.png"
                )
    return root


def both(tmp_path, plans, folder):
    """Runs of one process (this one) and of two, the second of which fails at the end.

    Pair by pair; then how many features, and trained texts, each process has computed; and what the two have written.
    """
    plans = json.loads(json.dumps(plans).replace("{folder}", str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLPROMPT_FEATURE_CACHE", "none")  # a store would have each process make its own fixed input
        computed = several.make(tmp_path / "one", plans)
    status, said = together(sys.executable, TESTS / "several.py", tmp_path / "two", json.dumps(plans), 1)
    assert len(list((tmp_path / "two").glob("*/*/result.json"))) == len(plans), said
    assert status, said
    pairs = [(told(tmp_path / "one" / str(k)), told(tmp_path / "two" / str(k))) for k in range(len(plans))]
    shares = [json.loads((tmp_path / "two" / f"computed-{k}").read_text()) for k in range(2)]
    return pairs, [*zip(computed, *shares, strict=True)], said


def test_two_processes_come_to_what_one_comes_to_and_end_together(tmp_path, folder):
    pairs, [(alone, *shares), _], said = both(tmp_path, QUICK, folder)
    for one, two in pairs:
        assert_same(one, two)
    assert sum(shares) == alone, "every feature is computed once in the world"
    assert min(shares) > 0.4 * alone
    assert pairs[1][1][2]["selection_counts"].sum() == 2 * 2 * 60  # prompts an image, epochs, images
    assert not list((tmp_path / "two").glob("*/*/last.safetensors"))
    assert said.count("ValueError: process 1 can't go on") == 1  # and nobody waits, nor tells of lost connections
    assert "Lost" not in said


@pytest.mark.slow
def test_a_stream_of_test_images_is_the_same_in_two_processes(tmp_path, folder):
    plan = {"method": "tda", "overrides": ["task.orders=2"], "task": "online", "shots": 1, "backbone": "glyph"}
    [(one, two)], _, _ = both(tmp_path, [plan], folder)
    assert_same(one, two)
    assert one[0]["scores"] == two[0]["scores"]  # of nine batches, each with what all before it left
    assert one[0]["summary"]["order_std"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_every_kind_of_method_comes_to_the_same(tmp_path, folder, half):
    pairs, [(alone, *shares), _], _ = both(tmp_path, SLOW[half::2], folder)
    for one, two in pairs:
        assert_same(one, two)
    assert sum(shares) == alone


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 70 classes of three images each, whose texts are worth dividing."""
    root, digits = tmp_path_factory.mktemp("many"), load_digits()
    for k in range(70):
        (root / f"kind {k}").mkdir()
        for i in range(3):
            image = Image.fromarray((digits.images[3 * k + i] * 15).astype(np.uint8)).resize((32, 32))
            image.save(root / f"kind {k}" / f"{i}.png")
    return root


SGD = ["train.epochs=1", "train.batch_size=35", "train.warmup=0", "train.optimizer=sgd", "train.lr=0.01"]


def check_many_classes(tmp_path, many, plans, share):
    plans = [{"dataset": str(many), "shots": 1, **plan, "overrides": [*SGD, *plan["overrides"]]} for plan in plans]
    pairs, [_, (alone, *shares)], _ = both(tmp_path, plans, many)
    for one, two in pairs:
        assert_same(one, two)
    assert max(shares) <= share * alone, "each process trains on its share of the texts"


def test_two_processes_divide_the_texts_of_many_classes(tmp_path, many):
    check_many_classes(tmp_path, many, [{"method": "coop", "overrides": []}], 0.51)


@pytest.mark.slow
def test_every_kind_of_text_is_divided(tmp_path, many):
    plans = [
        {"method": "coop", "overrides": ["method.class_specific=true"]},
        {"method": "coop", "overrides": ["train.text_micro_batch=9", "train.grad_clip=0.1"]},
        *({"method": name, "overrides": []} for name in ("kgcoop", "prograd", "maple", "promptsrc", "tcp", "mmrl")),
        {"method": "clip_lora", "overrides": ["method.dropout=0"]},
    ]
    check_many_classes(tmp_path, many, plans, 0.51)


@pytest.mark.slow
def test_what_cannot_be_divided_is_made_by_each_process(tmp_path, many):
    plans = [
        {"method": "cocoop", "overrides": ["train.batch_size=2"]},  # contexts of images
        {"method": "coop", "overrides": ["train.micro_batch_size=9"]},
    ]
    check_many_classes(tmp_path, many, plans, 1.0)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of rated texts, and the folder of a tiny language model."""
    root = tmp_path_factory.mktemp("texts")
    words = ("terrible", "great")
    rows = [{"text": f"The {n} film was {w}.", "label": w} for n in ("first", "next", "last", "new", "old", "red",
            "long", "short", "loud", "other") for w in words]  # fmt: skip
    (root / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "rated.jsonl", small_models.written("llama", root / "llama")


@pytest.mark.slow
def test_language_models(tmp_path, texts):
    data, model = texts
    text = {"dataset": str(data), "backbone": f"hf:{model}", "task": "text", "shots": 5}
    small = ["train.epochs=2", "train.batch_size=3", "train.warmup=0", "train.lr=0.01"]
    plans = [
        {"method": "prefix_tuning", "overrides": [*small, "method.dropout=0"], **text},
        {"method": "lora", "overrides": [*small, "method.head=verbalizer"], **text},
        {"method": "linear", "overrides": [], **text},
    ]
    for one, two in both(tmp_path, plans, "")[0]:
        assert_same(one, two)


# what goes wrong

METHODS = """
import os, signal, time
import torch
from vlprompt.runtime import distributed
from vlprompt.methods import CoOp

class Dropped(CoOp):  # draws random numbers, and ends its torchrun at a step
    def prepare(self, names, fixed):
        text = super().prepare(names, fixed)
        return torch.nn.functional.dropout(text, 0.1, self.training)

    def loss_terms(self, batch, fixed):
        stops = "STOP_BY" in os.environ and distributed.get_rank() == 0
        if stops and batch.step == 20:
            time.sleep(0.2)  # longer than --save-every: the state after this step is saved
        if stops and batch.step == 30:
            parent = os.getppid()
            os.kill(parent, int(os.environ["STOP_BY"]))
            while os.getppid() == parent:  # until torchrun is gone, or has ended this process
                time.sleep(0.01)
        return super().loss_terms(batch, fixed)

class Broken(CoOp):
    def loss_terms(self, batch, fixed):
        if batch.step == 3 and distributed.get_rank() == 1 and os.environ["HOW"] == "error":
            raise ValueError("this process can't go on")
        if batch.step == 3 and distributed.get_rank() == 1 and os.environ["HOW"] == "bug":
            raise KeyError("a mistake of ours")
        if batch.step == 3 and distributed.get_rank() == 0 and os.environ["HOW"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["HOW"] == "nan":
            found, out = super().loss_terms(batch, fixed)
            bad = float("nan") if batch.step == 3 and distributed.get_rank() == 1 else 1.0
            return {name: (mean * bad, rows) for name, (mean, rows) in found.items()}, out
        return super().loss_terms(batch, fixed)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "mine.py").write_text(METHODS)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS.parent)])}


def command(folder, method, *more):
    about = "--backbone glyph/random --shots 4 --seed 1 --device cpu train.batch_size=8 train.warmup=0 method.n_ctx=2"
    return ["run", method, "digits", *about.split(), "--out", folder, *more]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "wanted"), [
    ("error", "expected no error, got ValueError: this process can't go on"),
    ("bug", "expected no error, got KeyError: 'a mistake of ours'"),
    ("kill", "error: processes: expected 2, got fewer: another one has ended"),
    ("nan", "error: ce: expected a finite value at step 4"),
])  # fmt: skip
def test_what_goes_wrong_in_one_process_ends_both_and_is_told_once(tmp_path, home, how, wanted):
    words = command(tmp_path / "runs", "mine:Broken", "train.epochs=4")
    status, said = together(BIN / "vlprompt", *words, HOW=how, **home)
    assert status
    assert said.count(wanted) == 1, said
    assert said.count("error: ") == 1, said
    assert not list(tmp_path.glob("runs/*/result.json"))
    if how == "nan":  # all find it together, and what was good is kept
        assert list(tmp_path.glob("runs/*/last.safetensors"))


def bits(folder):
    """What a run leaves that must not depend on how often it was stopped."""
    result, steps, learned = told(folder)
    return result["scores"], steps, {name: tensor.tolist() for name, tensor in learned.items()}


@pytest.mark.slow
def test_a_killed_torchrun_takes_its_processes_along_and_the_command_goes_on(tmp_path, home):
    more = ["train.epochs=40", "--save-every", "0.1", "--processes", "2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    status, said = together(BIN / "vlprompt", *command(whole, "mine:Dropped", *more), **home)
    assert list(whole.glob("*/result.json")), (status, said)
    words = [*TORCHRUN, "2", BIN / "vlprompt", *command(stopped, "mine:Dropped", *more)]
    stop = {"STOP_BY": str(int(signal.SIGKILL))}
    process = subprocess.Popen([*map(str, words)], env={**ENVIRONMENT, **home, **stop}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)  # fmt: skip
    said = process.communicate(timeout=600)[0]  # until its processes have closed what they write to
    assert process.returncode == -signal.SIGKILL, said
    assert list(stopped.glob("*/last.safetensors"))
    assert said.count("torchrun: expected a running parent process, got none") == 1, said
    assert not list(stopped.glob("*/result.json"))
    status, said = together(BIN / "vlprompt", *command(stopped, "mine:Dropped", *more), **home)
    assert list(stopped.glob("*/result.json")), (status, said)
    assert bits(stopped) == bits(whole)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(tmp_path, home, monkeypatch, type_in):
    folder, more = tmp_path / "runs", ["train.epochs=40", "--save-every", "0.1"]
    words = [*TORCHRUN, "2", BIN / "vlprompt", *command(folder, "mine:Dropped", *more)]
    stop = {"STOP_BY": str(int(signal.SIGTERM))}
    process = subprocess.Popen([*map(str, words)], env={**ENVIRONMENT, **home, **stop}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.wait(600)
    assert list(folder.glob("*/last.safetensors"))
    monkeypatch.syspath_prepend(tmp_path)
    status, said = type_in(*command(folder, "mine:Dropped", *more))
    assert not status, said
    result, steps, _ = told(folder)
    assert [step["step"] for step in steps] == list(range(1, 201))
    assert result["environment"]["processes"] == 1


# a world that is not the one that was asked for


@pytest.fixture
def environment(monkeypatch):
    def make(**told):
        for name in ("WORLD_SIZE", *distributed.REQUIRED_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for name, value in told.items():
            monkeypatch.setenv(name, value)

    make()
    return make


FULL = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(("told", "words", "wanted"), [
    ({}, "run coop digits --processes 2", r"--processes: expected 2, got one process. Give torchrun "
     "--no-python --nproc-per-node 2 vlprompt"),
    ({"WORLD_SIZE": "1"}, "run coop digits --processes 3", "--nproc-per-node 3"),
    (FULL, "run coop digits --processes 3", "--processes: expected 3, got 2 processes. Give"),
    ({"WORLD_SIZE": "2"}, "run coop digits",
     "expected RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT with it, got WORLD_SIZE=2 alone. Start the processes by"),
    ({"WORLD_SIZE": "two"}, "run coop digits", "WORLD_SIZE: expected a number of processes, got two. Unset it."),
    ({"WORLD_SIZE": "2"}, "search linear digits", "WORLD_SIZE: expected RANK"),
    (FULL, "search linear digits", "vlprompt search: expected one process, got 2. Give the command without torchrun."),
    (FULL, "eval runs/x", "vlprompt eval: expected one process"),
    (FULL, "predict runs/x a.png", "vlprompt predict: expected one process"),
    (FULL, "run coop digits --device cuda:1", "which can't share a GPU, got cuda:1. Set --device cuda"),
    (FULL, "run coop digits --device mps",
     "--device: expected cpu or cuda for several processes, got mps. Set --device cpu."),
])  # fmt: skip
def test_another_world_than_was_asked_for(environment, type_in, told, words, wanted):
    environment(**told)
    status, said = type_in(*words.split())
    assert status == 2
    assert wanted in said
    assert said.count("error: ") == 1
    environment(**{**told, "RANK": "1"})  # the second process leaves it to the first one to say so
    if told == FULL:
        assert type_in(*words.split()) == (2, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_more_processes_than_gpus(environment, type_in):
    environment(**FULL, LOCAL_WORLD_SIZE="2")
    status, said = type_in("run", "coop", "digits", "--device", "cuda")
    assert (status, "for each of the 2 processes of this machine, got 0 CUDA devices. Start no" in said) == (2, True), (
        said
    )


def test_one_process_of_one_is_alone(environment, type_in, tmp_path):
    """Some clusters set WORLD_SIZE=1 for every job."""
    environment(WORLD_SIZE="1")
    words = ("run", "zero_shot", "digits", "--backbone", "glyph/random", "--device", "cpu", "--processes", "1")
    assert not type_in(*words)[0]
    assert not torch.distributed.is_initialized()


# what would not come to the same


class Drifting(CoOp):
    """Keeps a mean of what it has seen."""

    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        self.register_buffer("mean", torch.zeros(()))

    def loss_terms(self, batch, fixed):
        self.mean.mul_(0.9).add_(0.1 * batch.labels.float().mean())
        return super().loss_terms(batch, fixed)


@pytest.mark.slow
def test_methods_that_need_the_whole_batch_are_refused(tmp_path, folder):
    plans = {
        "mlp": "--processes: expected 1 for MLP, which normalises over the whole batch, got 2. Train",
        "test_distributed:Drifting": "--processes: expected 1 for Drifting, which changes its buffer mean",
    }
    for method, wanted in plans.items():
        plan = {"method": method, "dataset": f"{folder}/paper", "overrides": SMALL}
        plan |= {"backbone": "glyph-vit/random"} if method == "mlp" else {}
        paths = {"PYTHONPATH": os.pathsep.join([str(TESTS / "runtime"), str(TESTS), str(TESTS.parent)])}
        status, said = together(sys.executable, TESTS / "several.py", tmp_path / method, json.dumps([plan]), **paths)
        assert status
        assert said.count(f"ValueError: {wanted}") == 1, said


def test_a_store_says_what_is_new_and_takes_what_others_have():
    mine, other = FeatureCache(), FeatureCache()
    collectives.collect_new_features([mine])
    mine.add_computed("a", torch.ones(3))
    mine.add_computed("b", torch.zeros(3))
    mine.add_computed("c", torch.zeros(2, 2))
    told = collectives.collect_new_features([mine])
    assert [(some.keys, tuple(some.tensors.shape)) for some in told[0]] == [(["a", "b"], (2, 3)), (["c"], (1, 2, 2))]
    assert collectives.collect_new_features([mine]) == [[]]
    collectives.add_remote_features([other], [[[]], told])  # the first is its own
    assert torch.equal(other.get_many(["a"])["a"], torch.ones(3))
    assert collectives.collect_new_features([other]) == [[]], "what was heard is not told again"
