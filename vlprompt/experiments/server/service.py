"""Learned prompts with the thread that runs them, and what each route does with a request."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from vlprompt.core.batch import Item
from vlprompt.core.class_names import Names, class_ids
from vlprompt.experiments.server import answers, uploads
from vlprompt.experiments.server.batching import (
    BatchingWorker,
    ClassNamesError,
    QueueFullError,
    require_answerable,
)
from vlprompt.experiments.server.guard import Access
from vlprompt.experiments.server.limits import BodyReader, Limits, RefusedError
from vlprompt.experiments.server.metrics import Metrics
from vlprompt.experiments.server.models import ServedModel, ServedModels
from vlprompt.experiments.server.neighbours import TrainingImages
from vlprompt.runtime.threads import count_workers

T = TypeVar("T")


@dataclass(frozen=True)
class ServerSettings:
    """How a server answers.

    Args:
        limits: of requests and clients.
        access: who may ask.
        models_folder: where `POST /models` may load from; None for nowhere.
        batch_size: images up to which requests are joined.
        batch_wait: milliseconds that the first request of a batch waits for others.
    """

    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    models_folder: Path | None = None
    batch_size: int = 64
    batch_wait: float = 2.0


class Server:
    """Learned prompts with the thread that runs them.

    Args:
        models: loaded, at least one.
        settings: how to answer.
        training_images: by model, where they are shown.
        threads: of torch in the model's thread; None for as many as torch has.
    """

    def __init__(
        self,
        models: ServedModels,
        settings: ServerSettings,
        training_images: Mapping[str, TrainingImages] | None = None,
        threads: int | None = None,
    ):
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self.training_images = dict(training_images or {})
        self.bodies = BodyReader(settings.limits)
        self.worker = BatchingWorker(settings.batch_size, settings.batch_wait / 1000, self.metrics.count_batch, threads)
        self.decoders = ThreadPoolExecutor(max(1, count_workers()), "vlprompt-upload")

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self.worker.close()
        self.decoders.shutdown(cancel_futures=True)

    def find_model(self, name: str | None) -> ServedModel:
        """Return a model by name, or the only one; RefusedError (404, 422) where there is none."""
        by_name = self.models.by_name
        if name is None and len(by_name) == 1:
            return next(iter(by_name.values()))
        choices = ", ".join(by_name) or "none is loaded"
        if name is None:
            raise RefusedError(422, f"model: expected the name of a model ({choices}), got none. Name one.")
        if name not in by_name:
            raise RefusedError(404, f"model: expected one of the models ({choices}), got {name[:100]!r}. Name one.")
        return by_name[name]

    def find_classes(self, model: ServedModel, settings: uploads.PredictSettings) -> Names | None:
        """Return the classes that a request chooses from; None for those that the model was trained on."""
        if settings.classes_id:
            if settings.classes is not None:
                raise RefusedError(422, "classes_id: expected one list of classes, got an id and names. Leave one out.")
            if settings.classes_id not in model.class_lists:
                raise RefusedError(404, "classes_id: expected the id of a stored list, got another. POST it again.")
            return model.class_lists[settings.classes_id]
        if settings.classes is None:
            return None
        return self.resolve_classes(model, settings.classes)

    def resolve_classes(self, model: ServedModel, texts: list[str]) -> Names:
        """Return the classes of these names or ids; RefusedError (422) for bad ones, or one class by two of them."""
        texts = uploads.require_class_names(texts, self.settings.limits)
        names = model.prompt.resolve_classes(texts)
        first_texts = dict[str, str]()
        for text, class_id in zip(texts, class_ids(names), strict=True):
            if (first := first_texts.setdefault(class_id, text)) != text:
                raise RefusedError(
                    422, f"classes: expected each class once, got {first!r} and {text!r} of one. Leave one out."
                )
        return names

    async def read_images(
        self, request: Request, body: AsyncIterator[bytes]
    ) -> tuple[list[uploads.UploadedImage], uploads.PredictSettings]:
        """Return images and settings of a request; RefusedError for a body that is none, or has too many pixels."""
        limits = self.settings.limits
        if get_content_type(request) == "application/json":
            data = b"".join([part async for part in body])
            images, settings = await self.run(uploads.parse_json_images, data, limits)
        else:
            images, settings = await uploads.parse_multipart_images(request.headers, body, limits)
        uploads.require_image_count(len(images), limits)
        await self.run(uploads.require_pixels, images, limits)
        return images, settings

    async def read_json(self, request: Request, schema: type[uploads.Body]) -> uploads.Body:
        """Return the JSON body of a request; RefusedError for another type, or a body that is none."""
        require_content_type(request, "application/json")
        with self.bodies.open(request.stream(), request.headers.get("content-length")) as body:
            data = b"".join([part async for part in body])
            return await self.run(uploads.parse_json, schema, data)

    async def predict(self, request: Request) -> answers.PredictAnswer:
        """Answer a request of `POST /predict`."""
        require_content_type(request, "multipart/form-data", "application/json")
        # its bytes are in memory until it is answered, so they count until then
        with self.bodies.open(request.stream(), request.headers.get("content-length")) as body:
            images, settings = await self.read_images(request, body)
            return await self.answer_images(images, settings)

    async def build_items(self, images: Sequence[uploads.UploadedImage], model: ServedModel) -> list[Item]:
        """Decode images for a model; RefusedError for the first that is broken."""
        limits, preprocessing = self.settings.limits, model.preprocessing
        decoded = await asyncio.gather(
            *(
                self.run(uploads.build_upload_item, image, number, limits, preprocessing)
                for number, image in enumerate(images, 1)
            ),
            return_exceptions=True,
        )
        items = list[Item]()
        for item in decoded:
            if isinstance(item, BaseException):
                raise item
            items.append(item)
        return items

    async def answer_images(
        self, images: Sequence[uploads.UploadedImage], settings: uploads.PredictSettings
    ) -> answers.PredictAnswer:
        """Answer images as a client asks."""
        model = self.find_model(settings.model)
        names = self.find_classes(model, settings)
        items = await self.build_items(images, model)
        with explain_refusals():
            answered = await asyncio.wrap_future(self.worker.submit(model.prompt, names, items))
        nearest, training_images = [], self.training_images.get(model.name)
        if settings.neighbours and training_images is not None:
            nearest = await self.call(lambda: training_images.find_nearest(items, settings.neighbours))
        self.metrics.count_images(model.name, len(items))
        names = model.prompt.names if names is None else names
        has_several_labels = model.prompt.decision.labels is not None
        return answers.describe_answers(
            answered,
            [image.name for image in images],
            names,
            settings.top_k or (len(names) if has_several_labels else uploads.DEFAULT_TOP_K),
            nearest,
            model.name,
            has_several_labels,
        )

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread that decodes."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *arguments)

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function in the thread of the model."""
        with explain_refusals():
            return await asyncio.wrap_future(self.worker.call(function))

    def describe_model(self, model: ServedModel) -> answers.Model:
        """Return what clients may know of a model."""
        return answers.Model(**model.describe(), has_neighbours=model.name in self.training_images)

    async def load_model(self, body: answers.ModelBody) -> ServedModel:
        """Load a model from the folder of --models; RefusedError (403, 404, 422) for another folder or a broken one."""
        root = self.settings.models_folder
        if root is None:
            raise RefusedError(403, "models: expected a server that was started with --models FOLDER, got one without.")
        folder = find_folder(root, body.folder)
        if folder is None:
            raise RefusedError(404, f"folder: expected one below that of --models, got {body.folder[:200]!r}.")
        try:
            model = await self.call(lambda: self.models.load(body.name, folder))
            self.models.add(model)
        except (ValueError, OSError) as error:
            raise RefusedError(422, str(error).replace(str(folder), body.folder)) from None
        self.training_images.pop(model.name, None)  # those of the model that it replaces
        return model

    def remove_model(self, name: str) -> None:
        """Remove a model; RefusedError (404) where there is none of this name."""
        model = self.find_model(name)
        del self.models.by_name[model.name]
        self.training_images.pop(model.name, None)

    async def store_classes(self, body: answers.ClassesBody) -> answers.ClassList:
        """Store a list of classes for later requests, after the model has read it."""
        model = self.find_model(body.model)
        names = self.resolve_classes(model, body.classes)
        await self.call(lambda: require_answerable(model.prompt, names))
        return answers.ClassList(model=model.name, id=model.store_classes(names), classes=list(map(str, names)))


def get_content_type(request: Request) -> str:
    """Return the type of a request's body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_content_type(request: Request, *expected: str) -> None:
    """Raise RefusedError (415) for a body of another type."""
    if (kind := get_content_type(request)) not in expected:
        raise RefusedError(415, f"Content-Type: expected {' or '.join(expected)}, got {kind[:80]!r}.")


def find_folder(root: Path, name: str) -> Path | None:
    """Return the folder of this name below another, where links lead too; None where there is none."""
    try:
        folder = (root / name).resolve()
        is_below = not Path(name).is_absolute() and folder.is_relative_to(root.resolve()) and folder.is_dir()
    except (OSError, ValueError):  # too long, or with a null character
        return None
    return folder if is_below else None


@contextmanager
def explain_refusals() -> Iterator[None]:
    """Turn what the model's thread refuses into answers for the client."""
    try:
        yield
    except ClassNamesError as error:
        raise RefusedError(422, f"classes: {error}") from None
    except QueueFullError:
        raise RefusedError(
            503,
            "server: expected room in the queue, got too many images at once. Send them later.",
            {"Retry-After": "1"},
        ) from None
