"""What every method must do: the checks of vlprompt.testing over all files of vlprompt/methods that take images.

A method needs no entry here. SMALL holds arguments that make the paper's sizes fit the tiny CLIP; STARTS_AS_ZERO_SHOT
those that begin as the identity and with which settings.
"""

from contextlib import nullcontext
from pathlib import Path
from unittest import SkipTest

import pytest

from vlprompt import methods
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.config.build import get_constructor_types, resolve_class
from vlprompt.config.resolve import resolve_grid
from vlprompt.core.batch import Batch
from vlprompt.engine.evaluate import iter_logits
from vlprompt.testing import MethodCase
from vlprompt.testing.answer_checks import check_starts_as_zero_shot
from vlprompt.testing.images import build_digits_lesson
from vlprompt.testing.learning_checks import collect_weights
from vlprompt.testing.suite import CHECKS, ON_TEXTS_ALONE
from vlprompt.testing.task_checks import SHORT_TRAINING, check_runs, check_runs_multi_label, choose_data

COOP = {"name": "coop", "n_ctx": 4}
SMALL = {
    "coop": {"n_ctx": 4},
    "cocoop": {"n_ctx": 4, "reduction": 4},
    "kgcoop": {"method": COOP},
    "prograd": {"method": COOP},
    "dept": {"method": COOP},
    "atprompt": {"method": COOP},
    "coprompt": {
        "method": {"name": "maple", "depth": 2},
        "weight": 1.0,
        "descriptions": str(Path(__file__).parent / "descriptions_of_digits.json"),
    },
    "promptsrc": {
        "method": {"name": "ivlp", "n_image_tokens": 2, "depth_text": 2, "depth_image": 3},
        "template": "imagenet-7",
    },
    "ivlp": {"depth_text": 2, "depth_image": 3},
    "maple": {"depth": 2},
    "vpt": {"head": {"name": "texts"}, "dropout": 0.0},
    "clip_lora": {"dropout": 0.0},
    "tip_adapter": {"finetune": True},
    "ape": {"finetune": True, "search_steps": [4, 3, 2]},
    "tpt": {"augmentations": 9, "train_context": True},
    "ctpt": {"augmentations": 4, "confident_fraction": 0.4, "train_context": True},
    "mta": {"augmentations": 5},
    "tps": {"augmentations": 5, "confident_fraction": 0.4, "scale": True},
    "zero": {"augmentations": 5, "confident_fraction": 0.5},
    "linear": {"solver": "fit"},
    "mlp": {"dropout": 0.0},
    "adapter": {"design": "houlsby"},
    "adaptformer": {"bottleneck_dim": 8, "dropout": 0.0},
    "convpass": {"bottleneck_dim": 4, "dropout": 0.0},
    "lora": {"rank": 2, "sites": ["q", "k", "v", "out", "up", "down"]},
    "lora_fa": {"rank": 2, "sites": ["q", "k", "v", "out", "up", "down"]},
    "l2p": {"pool_size": 4, "prompt_length": 2, "top_k": 2},
    "dualprompt": {"general_length": 2, "expert_length": 2},
    "coda_prompt": {"pool_size": 8, "prompt_length": 4},
    "s_prompts": {"prompt_length": 2, "n_centroids": 2},
    "ease": {"bottleneck_dim": 8, "dropout": 0.0},
    "mos": {"bottleneck_dim": 8, "dropout": 0.0, "align_epochs": 2, "align_samples": 20},
    "tuna": {"bottleneck_dim": 8, "dropout": 0.0, "align_epochs": 2, "align_samples": 20},
    "ranpac": {"projection_dim": 100},
    "sdlora": {"rank": 2},
    "inflora": {"rank": 2, "batch_size": 7},
    "lae": {"frozen_fraction": 0.25, "decay": 0.9},
    "hideprompt": {"prompt_length": 2, "n_centroids": 2, "alignment_epochs": 2, "draws": 10, "guesser_lr_factor": 1.0},
    "aper": {"method": {"name": "adaptformer", "bottleneck_dim": 8, "dropout": 0.0, "head": {"name": "cosine"}}},
    "slca": {"draws_per_class": 8, "tower_lr_factor": 0.5},
    "slcapp": {"draws_per_class": 8, "rank": 2},
    "dapl": {"n_ctx": 2, "n_domain_ctx": 2, "threshold": 0.0},
    "upl": {"method": COOP, "images_per_class": 4},
    "entropy": {"method": COOP},
    "damp": {"n_ctx": 2, "width": 16, "n_layers": 1, "dropout": 0.0, "threshold": 0.0},
    "promptstyler": {"n_styles": 3, "style_steps": 2, "epochs": 2},
    "pda": {"depth": 2, "coupled_depth": 1, "threshold": 0.0},
    "dann": {"bottleneck_dim": 8, "discriminator_dim": 16},
    "mma": {"bottleneck_dim": 8, "layers": 2, "scale": 0.1},
    "mmrl": {"dim": 16, "layers": 2},
    "mmrlpp": {"dim": 16, "layers": 2, "projection_rank": 8},
    "dualcoop": {"n_ctx": 4, "n_negative_ctx": 2, "class_specific": False},
    "tai_dpt": {"n_ctx": 4, "template": None, "repeats": 1},
    "decoop": {"n_ctx": 4, "share": 0.5},
    "locoop": {"method": COOP, "weight": 1.0},
    "nlprompt": {"method": COOP, "epsilon": 0.05},
    "plot": {"n_ctx": 4, "max_rounds": 10},
    "plotpp": {"max_rounds": 10},
    "tcp": {"depth": 1},
    "proof": {"n_exemplars": 2, "dropout": 0.0},
    "engine": {"descriptions": str(Path(__file__).parent / "pairs_of_digits.json")},
}
CONFIGS = Path(__file__).parents[1] / "configs"
PLAIN = "a photo of a {name}."
WORDS = {"init_text": "a photo of a", "context_template": "{ctx} {name}."}
START = {"name": "coop", **WORDS}
STARTS_AS_BARE_TOWER = ("adapter", "adaptformer", "bitfit", "convpass", "full", "lora", "lora_fa", "partial")
STARTS_AS_ZERO_SHOT = {
    "coop": WORDS,
    "zero_shot": {"template": PLAIN},
    "kgcoop": {"method": START},
    "prograd": {"method": START},
    "taskres": {"template": PLAIN},
    "clap": {"template": PLAIN},
    "cross_modal": {"template": PLAIN},
    "clip_lora": {},
    "clip_svd": {"template": PLAIN},
    "two_stage": {},
    **{name: {"head": {"name": "texts", "template": PLAIN}} for name in STARTS_AS_BARE_TOWER},
    **{name: {"lr": 1e-12} for name in ("tpt", "ctpt")},
    "tps": {"lr": 1e-12, "template": PLAIN},
}
ONLY_TRAINED_CLASSES = (  # without names
    *("nearest_mean", "ranpac", "simplecil", "aper", "fecam", "slca", "slcapp"),
    *("engine", "proof", "promptstyler"),
)
TEST_TIME = ("ctpt", "mta", "tps", "tpt", "zero")  # they need augmentations of a test image
REFUSED_BY_EXPORT = (*TEST_TIME, "tda")  # whose answers are no function of the pixels alone
LANGUAGE_METHODS = [
    name for name in methods.find_classes() if "lm" in get_constructor_types(resolve_class("method", name))
]  # texts: test_language_methods.py
IMAGE_METHODS = sorted(set(methods.find_classes()) - set(LANGUAGE_METHODS))
ONE_LABEL = [  # whatever their settings
    name
    for name in IMAGE_METHODS
    if True in (resolve_class("method", name).needs_single_labels, resolve_class("method", name).needs_unlabelled)
]
IMAGE_CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in CHECKS
    if check.__name__.removeprefix("check_") not in ON_TEXTS_ALONE
}
CHECKS_WITHOUT_RUNS = [name for name in IMAGE_CHECKS if not name.startswith("runs_")]  # those: with the papers' recipes
pytestmark = pytest.mark.filterwarnings("ignore:no confident pseudo-label for")  # a random CLIP knows no digits


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


@pytest.fixture(scope="module")
def build_case(clip):
    """Gives the case of a method; all share the CLIP and the lesson, and those with SMALL settings their training."""
    lesson, cases = build_digits_lesson(), {}

    def build(name, **changes):
        settings = {**SMALL.get(name, {}), **changes}
        if changes or name not in cases:
            case = MethodCase(resolve_class("method", name), settings, clip, lesson)
            return case if changes else cases.setdefault(name, case)
        return cases[name]

    return build


@pytest.mark.parametrize("check", CHECKS_WITHOUT_RUNS)
@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_check(name, check, build_case):
    IMAGE_CHECKS[check](build_case(name))


@pytest.mark.parametrize("name", sorted(STARTS_AS_ZERO_SHOT))
def test_identity_at_the_start(name, build_case):
    check_starts_as_zero_shot(build_case(name, **STARTS_AS_ZERO_SHOT[name]), PLAIN)


def list_recipe_cells():
    """Every method on every task; slow: tasks that few_shot and base_to_new are twins of, and a method without a recipe
    for lessons or domains, which `test_check` gives second lessons, unlabelled images and domains.
    """
    names = "continual", "domain", "multi_label"
    recipes = {task: {path.stem for path in (CONFIGS / task).rglob("*.yaml")} for task in names}
    for name in IMAGE_METHODS:
        for task in ("few_shot", "base_to_new", *names, "transfer", "online", "open_set"):
            if task == "multi_label" and name in ONE_LABEL:
                continue
            is_quick = task in ("few_shot", "base_to_new") or name in recipes.get(task, ())
            yield pytest.param(name, task, marks=[] if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "task"), list_recipe_cells())
def test_its_recipe_runs(name, task, clip, pictures):
    short = {
        **{key: ["method.augmentations=3", "train.micro_batch_size=50"] for key in TEST_TIME},
        "promptsrc": ["method.template=imagenet-7"],
        "tps": ["method.augmentations=3", "train.micro_batch_size=50", "method.template=imagenet-7"],
        "coda_prompt": ["method.pool_size=8"],
        "ranpac": ["method.projection_dim=100"],
        "aper": ["method.method=adaptformer"],
        "slca": ["method.draws_per_class=8"],
        "slcapp": ["method.draws_per_class=8"],
        "upl": ["method.method=coop"],
        "entropy": ["method.method=coop"],
        "dept": ["method.method=coop"],
        "nlprompt": ["method.method=coop"],
        "locoop": ["method.method=coop"],
        "atprompt": ["method.method=coop"],
        "coprompt": ["method.method=maple", f"method.descriptions={SMALL['coprompt']['descriptions']}"],
        "dapl": ["method.threshold=0.1"],
        "damp": ["method.n_ctx=4", "method.width=16", "method.threshold=0.1"],
        "promptstyler": ["method.n_styles=3", "method.style_steps=2"],
        "pda": ["method.threshold=0.1"],
        "promptkd": ["method.teacher.backbone=glyph/random"],
        "engine": [f"method.descriptions={SMALL['engine']['descriptions']}"],
    }.get(name, [])
    dataset, settings = choose_data(task)
    if task == "multi_label" and name in ("kgcoop", "prograd", "promptsrc"):  # without a recipe that names one
        short.append("method.method=coop")
    short += [*SHORT_TRAINING, *settings, *([f"task.targets=[{pictures}]"] if task == "transfer" else [])]
    [plan] = resolve_grid([name], [1], [1], dataset=dataset, task=task, backbone=clip.spec, overrides=short)
    arguments = {key: value for key, value in plan.method.items() if key != "name"}
    case, refusal = MethodCase(resolve_class("method", name), arguments, clip), None
    knows_no_names = name in ONLY_TRAINED_CLASSES or plan.method.get("head", {}).get("name") == "linear"
    if case.build().needs_unlabelled:
        refusal = None if task == "domain" or plan.task.get("unlabelled") else "un it with --source and --target"
    elif knows_no_names and task not in ("few_shot", "continual", "domain", "online", "open_set"):
        refusal = "no weights for class '"
    elif case.build().is_online and task != "online":
        refusal = "Set --task online"
    others = [setting for setting in short if not setting.startswith("method.")]
    if task == "multi_label":
        refusal = (
            "one label each" if any(getattr(p, "needs_single_labels", False) for p in case.build().modules()) else None
        )
    with pytest.raises(SkipTest, match=refusal) if refusal else nullcontext():
        check_runs_multi_label(case, others) if task == "multi_label" else check_runs(case, task, others)


@pytest.mark.parametrize("name", ONE_LABEL)
def test_a_method_that_needs_one_label_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=f"expected one that learns from several labels an item, got {name}, which"):
        resolve_grid([name], [1], [1], dataset="not/there.csv", task="multi_label")


def test_all_weights_are_compared(clip):
    assert len(collect_weights(clip)) > 60


def test_answers_leave_the_method_as_it_was(build_case):
    case = build_case("coop")
    method = case.begin()
    method.train()
    list(iter_logits(method, case.lesson.train))
    assert method.training
    batch = next(case.lesson.train.batches(3))
    assert isinstance(batch, Batch)
