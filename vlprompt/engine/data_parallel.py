"""A step that several processes take together: each has a share of the batch, all have its sums and the same step."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.introspection import kept_of
from vlprompt.core.method import Method
from vlprompt.runtime import collectives, distributed
from vlprompt.runtime.seeding import number

Sums = tuple[dict[str, float], dict[str, float], dict[str, list[Tensor]]]  # of each term: values, counts, gradients


class Shares:
    """What a training tells the other processes, step by step; alone it is nothing.

    Random numbers (dropout) are drawn anew at each step from (seed, step, process), so that a resume needs no state of
    another process. Buffers that a method names as `counted` are summed; others must not change in a step.
    """

    def __init__(self, method: Method, parameters: Sequence[Tensor], seed: int):
        self.method, self.parameters, self.seed, self.kept = method, parameters, seed, kept_of(method)
        if distributed.size() > 1:
            if any(getattr(part, "whole_batch", False) for part in method.modules()):
                raise ValueError(
                    f"{type(method).__name__} normalises over the whole batch, so {distributed.size()} processes "
                    "with a share each would learn something else: train it with one process"
                )
            collectives.fresh(self.kept)  # from here on the stores note what is new

    def parts(self, batch: Batch, micro_batch: int | None) -> list[Batch]:
        """Micro-batches of this process's share; none where the batch has fewer images than there are processes."""
        if distributed.size() == 1:
            return batch.split(micro_batch)
        torch.manual_seed(number(self.seed, "training", batch.step, distributed.rank()))
        self.before = {name: (buffer, buffer._version) for name, buffer in self.method.named_buffers()}
        names = [f"{at}.{name}".lstrip(".") for at, part in self.method.named_modules()
                 for name in getattr(part, "counted", ())]  # fmt: skip
        self.counted = {name: self.before[name][0].clone() for name in names if name in self.before}
        mine = _share(batch)
        return mine.split(micro_batch) if len(mine.inputs) or mine.unlabelled is not None else []

    def joined(self, mine: Sums) -> Sums:
        """The sums of all processes, the same in each."""
        if distributed.size() == 1:
            return mine
        values, counts, grads = mine
        self._count()
        told = distributed.gather((values, counts, list(grads), collectives.fresh(self.kept)))
        collectives.hear(self.kept, [new for *_, new in told])
        values, counts = (
            {name: sum(one.get(name, 0.0) for one in every) for name in dict.fromkeys(n for one in every for n in one)}
            for every in ([one[0] for one in told], [one[1] for one in told])
        )
        names = list(dict.fromkeys(name for one in told for name in one[2]))
        flat = [g for name in names for g in grads.get(name) or map(torch.zeros_like, self.parameters)]
        summed, n = distributed.total(flat), len(self.parameters)
        return values, counts, {name: summed[k * n : (k + 1) * n] for k, name in enumerate(names)}

    def _count(self) -> None:
        """Counts over the shares become those over the batch; ValueError for a buffer that is none and has changed."""
        now = dict(self.method.named_buffers())
        for name, buffer in now.items():
            was, version = self.before.get(name, (None, 0))
            if name not in self.counted and (buffer is not was or buffer._version != version):
                raise ValueError(
                    f"{type(self.method).__name__} changes its buffer {name} by the images of a step, and "
                    f"{distributed.size()} processes see a share each: train it with one process"
                )
        more = distributed.total([now[name] - old for name, old in self.counted.items()])
        for (name, old), change in zip(self.counted.items(), more, strict=True):
            now[name].copy_(old + change)


def _share(batch: Batch) -> Batch:
    """This process's share of a batch, of its labelled images and of the others; it may be without images."""
    begin, end = collectives.share(len(batch.inputs))
    beside = None if batch.unlabelled is None else _share(batch.unlabelled)
    return replace(
        batch,
        inputs=batch.inputs.part(begin, end),
        labels=batch.labels[begin:end],
        domains=None if batch.domains is None else batch.domains[begin:end],
        unlabelled=beside if beside is not None and len(beside.inputs) else None,
    )
