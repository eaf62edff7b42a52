"""Teachers that configurations name: a CLIP as it is, or with what a run has learned on it; opened when first asked."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vlprompt.backbones.cache.disk import CacheNamespace
from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.core.class_names import Names, as_class_name, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method
from vlprompt.core.teacher import Teacher, TeacherSettings
from vlprompt.core.towers import Clip, find_input_tower
from vlprompt.experiments.learned.state import LearnedState, read_learned_state
from vlprompt.results.run_folder import RunFolder
from vlprompt.runtime.errors import UnknownClassError

if TYPE_CHECKING:
    from vlprompt.tasks import Task

IMAGES_PER_PASS = 8  # always, so that the bits of an answer do not depend on its batch


class OpenedTeacher(NamedTuple):
    """A method with all that it has learned, and what identifies that."""

    method: Method
    learned_hash: str


class RunTeacher(Teacher):
    """A teacher that settings name.

    Its class texts are computed once per list of classes, its logits once per image and list of classes: in memory, and
    on the disk where the features of its backbone are.

    Args:
        settings: its backbone and its run.
        device: where it computes.
        open_method: restores the method on its backbone, at the first question.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        device: torch.device,
        open_method: Callable[[TeacherSettings, str], OpenedTeacher],
    ):
        self.settings, self.device, self._open_method = settings, device, open_method
        self._prepared = dict[tuple[Names, Names], tuple[Any, Tensor]]()
        self._caches = dict[tuple[Names, Names], FeatureCache]()

    @cached_property
    def opened(self) -> OpenedTeacher:
        """The method; ValueError or OSError for what can't be opened, or is on no CLIP."""
        try:
            opened = self._open_method(self.settings, str(self.device))
        except (ValueError, OSError) as error:
            text = str(error).removeprefix("run: ").replace("--backbone", "method.teacher.backbone")
            raise type(error)(f"method.teacher: {text}") from error
        if not isinstance(opened.method.backbone, Clip):
            raise ValueError(
                f"method.teacher: expected a method on a CLIP, got {type(opened.method).__name__} on "
                f"{getattr(opened.method.backbone, 'spec', 'no backbone')}. Name the run of one such as promptsrc."
            )
        return opened

    @property
    def clip(self) -> Clip:
        backbone = self.opened.method.backbone
        assert isinstance(backbone, Clip), "`opened` refuses others"
        return backbone

    @property
    def key(self) -> str:
        return "|".join(filter(None, (find_input_tower(self.clip).key, self.opened.learned_hash)))

    def encode_classes(self, names: Names) -> Tensor:
        return self._prepare(names)[1]

    @torch.no_grad()
    def _prepare(self, names: Names) -> tuple[Any, Tensor]:
        """Return what the method computes of class names alone, and the features (C, E) of their texts."""
        key = names, class_ids(names)
        if key not in self._prepared:
            method = self.opened.method.eval()
            with torch.autocast(self.device.type, enabled=False):
                try:
                    prepared = method.prepare(names, method.precompute(names))
                except UnknownClassError as error:
                    raise UnknownClassError(
                        f"method.teacher: expected a teacher that knows the classes of the student, got one that does "
                        f"not ({error})"
                    ) from error
                except ValueError as error:
                    raise ValueError(f"method.teacher: {error}") from error
                texts = method(_draw_blank_images(), prepared).text_features
            if texts is None or texts.ndim != 2 or len(texts) != len(names):
                raise ValueError(
                    f"method.teacher: expected a method with one text for each class, got {type(method).__name__}. "
                    "Name the run of one such as coop, maple or promptsrc, or a backbone alone."
                )
            self._prepared[key] = prepared, texts.float()
        return self._prepared[key]

    @torch.no_grad()
    def answer(self, images: Images, names: Names) -> Tensor:
        key = names, class_ids(names)
        cache = self._caches[key] if key in self._caches else self._caches.setdefault(key, self._build_cache(names))
        known = cache.get_many(key for key in images.keys if key is not None)
        logits = {index: known[key] for index, key in enumerate(images.keys) if key is not None and key in known}
        missing = [index for index in range(len(images)) if index not in logits]
        for index, row in zip(missing, self._compute(images, missing, names), strict=True):
            logits[index] = row
            if (image_key := images.keys[index]) is not None:
                cache.add_computed(image_key, row.clone())
        return torch.stack([logits[index] for index in range(len(images))])

    def _compute(self, images: Images, indices: list[int], names: Names) -> Iterator[Tensor]:
        """Yield the logits (C,) of the images at these indices, in passes of one size, the last one padded."""
        method, prepared = self.opened.method.eval(), self._prepare(names)[0]
        for begin in range(0, len(indices), IMAGES_PER_PASS):
            current = indices[begin : begin + IMAGES_PER_PASS]
            padded = current + current[-1:] * (IMAGES_PER_PASS - len(current))
            with torch.autocast(self.device.type, enabled=False):
                yield from method(_select_images(images, padded), prepared).logits[: len(current)].float()

    def _build_cache(self, names: Names) -> FeatureCache:
        """Return a cache of logits among these classes, on the disk where the features of the backbone are."""
        cache, tower = FeatureCache(), find_input_tower(self.clip)
        namespace: CacheNamespace | None = getattr(getattr(tower, "feature_cache", None), "disk_namespace", None)
        if namespace is not None:
            classes = [(str(name), name.id, name.template) for name in map(as_class_name, names)]
            metadata = {
                **{name: value for name, value in namespace.metadata.items() if name != "probe"},
                "of": f"images, answered by {self.opened.learned_hash or 'a zero-shot teacher'}",
                "classes": blake2b(repr(classes).encode(), digest_size=16).hexdigest(),
            }
            probe = lambda: next(self._compute(_draw_blank_images(), [0], names))  # noqa: E731
            cache.disk_namespace = CacheNamespace(namespace.disk_cache, metadata, probe, self.device)
        return cache


def _select_images(images: Images, indices: list[int]) -> Images:
    """Return the images at these indices, some of them perhaps twice."""
    return Images(
        lambda preprocessing, places: images.decode(preprocessing, [indices[i] for i in places]),
        [images.keys[i] for i in indices],
        None,
    )


def _draw_blank_images() -> Images:
    """Return a batch of one grey image, whose features are not cached."""
    return Images(lambda preprocessing, places: torch.zeros(len(places), 3, *preprocessing.size), [None])


def find_teachers(method: Method) -> dict[str, Teacher]:
    """Return the teachers of a method and its parts, by the setting that names each."""
    return {
        f"method.{path}.{name}".replace("..", "."): value
        for path, part in method.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Teacher)
    }


def hash_teacher_runs(settings: Any, key: str = "method") -> dict[str, str]:
    """Return the hash of what each teacher's run has learned, by the setting that names the run.

    Args:
        settings: of a method, as a configuration has them.
        key: where they stand.
    """
    if not isinstance(settings, Mapping):
        return {}
    hashes = dict[str, str]()
    for name, value in settings.items():
        hashes |= hash_teacher_runs(value, f"{key}.{name}")
        if name == "teacher" and isinstance(value, Mapping) and isinstance(run := value.get("run"), str):
            hashes[f"{key}.teacher.run"] = hash_learned_state(_read_state(run))
    return hashes


def _read_state(run: str) -> LearnedState:
    try:
        return read_learned_state(run)
    except (ValueError, OSError) as error:
        raise type(error)(f"method.teacher.run: {str(error).removeprefix('run: ')}") from error


def hash_learned_state(state: LearnedState) -> str:
    """Hash what a run has learned: its tensors, its method, its classes and its backbone."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(state.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    facts = state.config["method"], [list(class_ids(state.names)), list(state.names)], state.backbone_key
    digest.update(repr(facts).encode(errors="surrogatepass"))
    return digest.hexdigest()


def require_teachers(method: Method, task: "Task", folder: Path | None) -> None:
    """Raise ValueError for a teacher whose run does not suit the data of a run, or is that run itself.

    A teacher may have learned from labels of the classes that the task gives labels of, and from the same split of the
    same dataset; or from another dataset if its own task was a transfer to this one.
    """
    for setting, teacher in find_teachers(method).items():
        if isinstance(teacher, RunTeacher) and (run := teacher.settings.run) is not None:
            if folder is not None and Path(run).expanduser().resolve() == folder.resolve():
                raise ValueError(f"{setting}.run: expected another run, got the folder of this run itself. Name one.")
            _require_same_data(f"{setting}.run", run, task)


def _require_same_data(setting: str, run: str, task: "Task") -> None:
    state = _read_state(run)
    theirs, ours = _read_protocol(run, state), task.protocol
    if not theirs:
        raise ValueError(
            f"{setting}: expected a run that says which data it learned from, got {run!r} without a result. Name the "
            "folder of a run, or a model folder that was saved with its result."
        )
    if theirs.get("dataset") != ours["dataset"]:
        if ours["dataset"] in theirs.get("targets", {}):
            return
        raise ValueError(
            f"{setting}: expected a teacher that learned from {ours['dataset']}, got one that learned from "
            f"{theirs.get('dataset')}. Name another run, or train this one by --task transfer with "
            f"{ours['dataset']} among its --targets."
        )
    hashes = theirs.get("dataset_hash"), ours.get("dataset_hash")
    if None not in hashes and hashes[0] != hashes[1]:
        raise ValueError(
            f"{setting}: expected a teacher that learned from the same split of {ours['dataset']}, got one of another "
            "split, which may have learned from test images of this one. Train it on these data."
        )
    labelled: Names = getattr(task, "labelled_names", state.names)
    known = class_ids(labelled)
    if other := [str(name) for name, i in zip(state.names, class_ids(state.names), strict=True) if i not in known]:
        raise ValueError(
            f"{setting}: expected a teacher that learned from labels of {', '.join(map(str, labelled[:5]))}"
            f"{' ...' * (len(labelled) > 5)} alone, got one that learned {other[0]!r} too. Train it by the task and "
            "the classes of this run."
        )


def _read_protocol(run: str, state: LearnedState) -> Mapping[str, Any]:
    """Return the protocol of the result of a run or model folder; {} where there is none."""
    if state.provenance:
        return (state.provenance.get("result") or {}).get("protocol", {})
    result = RunFolder(Path(run).expanduser()).read_result()
    return {} if result is None else result.protocol
