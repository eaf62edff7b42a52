"""Decode the images of the next batch while the current one is processed."""

from collections.abc import Iterable, Iterator

from vlprompt.core.batch import Batch
from vlprompt.core.images import DecodeRequests, LazyImages


def _lazy_images(batch: Batch | None) -> list[LazyImages]:
    """Return the batch's labelled and unlabelled images where they are decoded lazily."""
    inputs = () if batch is None else (batch.inputs, batch.unlabelled and batch.unlabelled.inputs)
    return [images for images in inputs if isinstance(images, LazyImages)]


def prefetch_images(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the same batches; decode each and its successor ahead, replaying the requests of the previous batch.

    Nothing is decoded for batches served from the feature cache. Decoding errors surface at their own batch.
    """
    requests, iterator = list[DecodeRequests](), iter(batches)
    batch, current_images, next_images = next(iterator, None), list[LazyImages](), list[LazyImages]()
    try:
        while batch is not None:
            next_batch = next(iterator, None)
            current_images, next_images = _lazy_images(batch), _lazy_images(next_batch)
            for batch_images in (current_images, next_images):
                for images, request in zip(batch_images, requests, strict=False):
                    images.prefetch_like(request)
            yield batch
            for images in current_images:
                images.cancel_prefetch()
            requests, batch = [images.requests for images in current_images], next_batch
    finally:  # a consumer that stops early leaves no decoding thread running
        for images in (*current_images, *next_images):
            images.cancel_prefetch()
