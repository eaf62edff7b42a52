"""Trace where a method enters the towers: begin a lesson on small ones, answer a batch, note what is injected."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from docs.small_towers import build_small_clip, build_small_language_model
from vlprompt.config.build import get_constructor_types, is_adaptation_method, resolve_class
from vlprompt.config.resolve import complete_arguments
from vlprompt.config.sources import LayeredConfig
from vlprompt.core.batch import Batch, Split, Unlabelled
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextItem
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.runtime.seeding import make_generator

N_CLASSES, N_ITEMS = 2, 4
PICTURE_SETTINGS: dict[str, dict[str, Any]] = {  # what has no default, or none that can be drawn
    "peft": {"config": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"]}},
    "chain_of_thought": {"max_new_tokens": 2, "max_answer_tokens": 2},
    "p_tuning": {"template": "{ctx} {text} {ctx} {mask}"},
    "in_context": {"shots": 2},
    **{name: {"augmentations": 4} for name in ("ctpt", "mta", "tps", "tpt", "zero")},
    "tip_adapter": {"finetune": True},
    "linear": {"solver": "fit"},
    "ranpac": {"projection_dim": 16},
    "kgcoop": {"method": {"name": "coop"}},
    "prograd": {"method": {"name": "coop"}},
    "dept": {"method": {"name": "coop"}},
    "atprompt": {"method": {"name": "coop"}},
    "coprompt": {"method": {"name": "maple"}},
    "promptkd": {"teacher": {"backbone": "glyph/random"}},
    "engine": {"text_weight": 0.0, "rerank_weight": 0.0},
    "promptsrc": {"method": {"name": "ivlp"}, "template": "a photo of a {name}."},
    "aper": {"method": {"name": "adaptformer"}},
    "upl": {"method": {"name": "coop"}},
    "entropy": {"method": {"name": "coop"}},
    "locoop": {"method": {"name": "coop"}},
    "nlprompt": {"method": {"name": "coop"}},
    "vpt": {"dropout": 0.0},
    "coda_prompt": {"pool_size": 8},
}


@dataclass
class TowerTrace:
    """What one tower was given.

    Args:
        name: "text", "image" or "language model".
        depth: its blocks.
        tokens: layer -> number of soft tokens that are inserted or replaced there.
        prefix: layer -> length of the keys and values that attention sees before its own.
        adapters: layer (None: outside of the blocks) -> kinds of sites.
        trained_blocks: blocks of which a trainable copy was made.
        trains_all: whether the copy holds the embedding too.
        per_input: whether each input has a prompt of its own.
    """

    name: str
    depth: int
    tokens: dict[int, int] = field(default_factory=dict)
    prefix: dict[int, int] = field(default_factory=dict)
    adapters: dict[int | None, list[str]] = field(default_factory=dict)
    trained_blocks: tuple[int, ...] = ()
    trains_all: bool = False
    per_input: bool = False

    @property
    def is_changed(self) -> bool:
        """Whether anything enters the tower."""
        return bool(self.tokens or self.prefix or self.adapters or self.trained_blocks)


@dataclass
class Trace:
    """Where a method enters.

    Args:
        towers: those that took inputs, in order of the picture.
        inside: trained parameters that a prompt or a copy is made of, name -> shape.
        outside: all other trained parameters: they stand above the features (heads, vectors, keys of a pool).
        settings: arguments other than the defaults.
    """

    towers: list[TowerTrace]
    inside: dict[str, tuple[int, ...]]
    outside: dict[str, tuple[int, ...]]
    settings: dict[str, Any]

    def tower(self, name: str) -> TowerTrace | None:
        """Return the trace of a tower by its name, None for one that took nothing."""
        return next((tower for tower in self.towers if tower.name == name), None)


class _Recorder:
    """Notes the prompts that towers take while a method runs."""

    def __init__(self) -> None:
        self.towers: dict[str, TowerTrace] = {}
        self.injected: list[Any] = []  # tensors and modules

    @contextmanager
    def record(self, name: str, tower: Any) -> Iterator[None]:
        """Note each call of a tower inside the with-block."""
        original = type(tower)
        trace = TowerTrace(name, tower.depth)
        overrides: dict[str, Callable[..., Any]] = {
            method: self._wrap(getattr(original, method), method, name, trace)
            for method in ("__call__", "trainable_copy", "split_at", "encode_prefix", "with_peft_adapter", "generate")
            if hasattr(original, method)
        }
        tower.__class__ = type(original.__name__, (original,), overrides)
        try:
            yield
        finally:
            tower.__class__ = original

    def _wrap(self, function: Callable[..., Any], method: str, name: str, trace: TowerTrace) -> Callable[..., Any]:
        def wrapped(tower: Any, *args: Any, **options: Any) -> Any:
            self.towers[name] = trace
            result = function(tower, *args, **options)
            if method in ("__call__", "generate"):
                prompt = args[1] if len(args) > 1 else options.get("prompt")
                self._note_prompt(trace, prompt)
            elif method == "trainable_copy":
                self._note_copy(trace, 0, result)
            elif method == "split_at":
                self._note_copy(trace, trace.depth - args[0], result[1])
            elif method == "with_peft_adapter":
                self._note_peft(trace, result)
            return result

        return wrapped

    def _note_copy(self, trace: TowerTrace, first_block: int, copy: nn.Module) -> None:
        trace.trained_blocks, trace.trains_all = tuple(range(first_block, trace.depth)), not first_block
        self.injected.append(copy)

    def _note_peft(self, trace: TowerTrace, adapted: Any) -> None:
        """Note the modules of PEFT, whose names hold the layer and the map."""
        for name in adapted.trainable_parameters:
            parts = name.split(".")
            if "layers" in parts:
                layer = int(parts[parts.index("layers") + 1])
                kind = next(part for part in parts if part.endswith("_proj"))
                kinds = trace.adapters.setdefault(layer, [])
                kinds += [kind] if kind not in kinds else []
        self.injected += list(adapted.trainable_parameters.values())

    def _note_prompt(self, trace: TowerTrace, prompt: Any) -> None:
        if not prompt:
            return
        for layer, tokens in prompt.tokens.items():
            trace.tokens[layer] = tokens.shape[-2]
            trace.per_input = trace.per_input or tokens.shape[0] > 1
        for layer, entry in prompt.prefix.items():
            trace.prefix[int(str(layer).split("/")[-1])] = entry[0].shape[-2]
            trace.per_input = trace.per_input or entry[0].shape[0] > 1
        for site in prompt.adapters:
            layer, _, kind = site.rpartition("/")
            kinds = trace.adapters.setdefault(int(layer) if layer else None, [])
            kinds += [kind] if kind not in kinds else []
        self.injected += [*prompt.tokens.values(), *(t for entry in prompt.prefix.values() for t in entry)]
        self.injected += [prompt.adapters[site] for site in prompt.adapters]


def _build_images() -> tuple[ImageItem, ...]:
    def decode(index: int) -> Callable[..., Tensor]:
        def pixels(preprocessing: Any, augmentation: Any) -> Tensor:
            draw = torch.Generator().manual_seed(index)
            return torch.randn(3, *preprocessing.size, generator=draw)

        return pixels

    return tuple(ImageItem(f"random {i}", decode(i)) for i in range(N_ITEMS))


def _build_texts() -> tuple[TextItem, ...]:
    rows = [("the film was so good", "so good . therefore good"), ("the film was bad", "so bad . therefore bad")]
    return tuple(
        TextItem(f"text {i}", {"text": rows[i % 2][0], "rationale": rows[i % 2][1]}, "{text} It was {mask}", "{text}")
        for i in range(N_ITEMS)
    )


def _build_lesson(has_texts: bool, needs_unlabelled: bool) -> Lesson:
    names = (ClassName("bad", words=("bad",)), ClassName("good", words=("good",)))
    items = _build_texts() if has_texts else _build_images()
    labels = tuple(1 - i % N_CLASSES for i in range(N_ITEMS))
    unlabelled = Unlabelled(items, names) if needs_unlabelled else None
    domains = ("source", "target") if needs_unlabelled else ()
    split = Split(items, labels, names, domains=(0,) * N_ITEMS if domains else None)
    return Lesson(split, None, unlabelled, domains=domains)


def find_tower_kind(name: str) -> str:
    """Return what a method is for: "CLIP", "image tower", "language model", or "tower" for image or language."""
    cls = resolve_class("method", name)
    types = get_constructor_types(cls)
    for annotation in types.values():
        kind = getattr(annotation, "__name__", "AnyTower" if "LanguageTower" in str(annotation) else "")
        if kind in ("Clip", "VisionTower", "LanguageTower", "AnyTower"):
            return {"Clip": "CLIP", "VisionTower": "image tower", "LanguageTower": "language model"}.get(kind, "tower")
    return "CLIP"  # it wraps a method


@cache
def trace_method(name: str) -> Trace:
    """Build a method on small towers, begin one lesson, answer one batch, and return what the towers were given."""
    cls, has_texts = resolve_class("method", name), find_tower_kind(name) == "language model"
    backbone = build_small_language_model() if has_texts else build_small_clip()
    settings = PICTURE_SETTINGS.get(name, {})
    arguments = complete_arguments("method", cls, settings, LayeredConfig([]))
    recorder = _Recorder()
    lesson = _build_lesson(has_texts, is_adaptation_method(name))
    towers = {"language model": backbone} if has_texts else {"text": backbone.text, "image": backbone.image}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "qlora":
            backbone.weight_precision = "nf4"  # the sites are the same; quantising a random model shows nothing
        method = build_run_method({"name": name, **arguments}, backbone)
        with _record_all(recorder, towers):
            _run_once(method, lesson)
    inside, outside = _split_parameters(method, recorder.injected)
    return Trace(list(recorder.towers.values()), inside, outside, settings)


@contextmanager
def _record_all(recorder: _Recorder, towers: dict[str, Any]) -> Iterator[None]:
    name, *rest = towers
    with recorder.record(name, towers[name]):
        if rest:
            with _record_all(recorder, {key: towers[key] for key in rest}):
                yield
        else:
            yield


def _run_once(method: Any, lesson: Lesson) -> None:
    """Begin a lesson and answer a batch as at test, with gradients; methods that adapt compute a step's losses."""
    method.begin_lesson(lesson, make_generator(0))
    method.eval()
    split = lesson.train
    batch = next(split.batches(N_ITEMS))
    if lesson.unlabelled is not None and any(True for _ in method.parameters()):
        inner = next(lesson.unlabelled.batches(N_ITEMS))
        batch = Batch(batch.inputs, batch.labels, batch.names, batch.domains, inner)
        method.loss_terms(batch, method.precompute(split.names))
    else:
        method(batch.inputs, method.prepare(split.names, method.precompute(split.names)))


def _split_parameters(method: Any, injected: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the trained parameters that what was injected depends on, and the others."""
    named = {name: p for name, p in method.named_parameters() if p.requires_grad}
    modules = [value for value in injected if isinstance(value, nn.Module)]
    inside_ids = {id(p) for module in modules for p in module.parameters()}
    inside_ids |= {id(value) for value in injected if isinstance(value, nn.Parameter)}
    tensors = [value for value in injected if isinstance(value, Tensor) and value.requires_grad]
    if tensors and named:
        total = sum(tensor.float().sum() for tensor in tensors)
        grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        inside_ids |= {id(p) for p, g in zip(named.values(), grads, strict=True) if g is not None}
    shapes = {name: tuple(p.shape) for name, p in named.items()}
    inside = {name: shapes[name] for name, p in named.items() if id(p) in inside_ids}
    return inside, {name: shape for name, shape in shapes.items() if name not in inside}
