"""Batches whose pictures are decoded while the batch before is computed."""

from collections.abc import Iterable, Iterator

from vlprompt.core.batch import Batch
from vlprompt.core.images import Asked, Pictures


def _pictures(batch: Batch | None) -> list[Pictures]:
    """Its images and the unlabelled ones; none where they are something else."""
    both = () if batch is None else (batch.inputs, batch.unlabelled and batch.unlabelled.inputs)
    return [one for one in both if isinstance(one, Pictures)]


def ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; of each and the one after it is started what was asked of the one before.

    So nothing is decoded where nobody asks for pixels, such as for features that are kept. What is wrong with a picture
    is told when its batch asks for it.
    """
    last, coming = list[Asked](), iter(batches)
    batch, now, after = next(coming, None), list[Pictures](), list[Pictures]()
    try:
        while batch is not None:
            following = next(coming, None)
            now, after = _pictures(batch), _pictures(following)
            for these in (now, after):
                for one, asked in zip(these, last, strict=False):
                    one.follow(asked)
            yield batch
            for one in now:
                one.leave()
            last, batch = [one.asked for one in now], following
    finally:  # who stops early leaves nothing running
        for one in (*now, *after):
            one.leave()
