"""Data-parallel steps: each process computes a slice of the batch, sums are reduced, and all take the same step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.introspection import feature_caches
from vlprompt.core.method import Method
from vlprompt.runtime import collectives, distributed
from vlprompt.runtime.divided_passes import DividedPasses, dividing
from vlprompt.runtime.seeding import derive_seed

TermSums = tuple[dict[str, float], dict[str, float], dict[str, list[Tensor]]]  # of each term: values, counts, gradients


class GradientSync:
    """Split batches over the processes and reduce what they compute; a no-op in a single process.

    Random numbers (dropout) are seeded at each step from (seed, step, rank), so that a resume needs no state of another
    process. Buffers that a method names as `accumulating_buffers` are summed; others must not change in a step.
    """

    def __init__(self, method: Method, parameters: Sequence[Tensor], seed: int):
        self.method, self.parameters, self.seed, self.feature_caches = method, parameters, seed, feature_caches(method)
        self.passes, self.divides, self.step = DividedPasses(), False, 0
        if distributed.get_world_size() > 1:
            if any(getattr(part, "needs_whole_batch", False) for part in method.modules()):
                raise ValueError(
                    f"--processes: expected 1 for {type(method).__name__}, which normalises over the whole batch, got "
                    f"{distributed.get_world_size()}. Train it with one process."
                )
            collectives.collect_new_features(self.feature_caches)  # from now on the caches record new features

    def split_batch(self, batch: Batch, micro_batch_size: int | None) -> list[Batch]:
        """Return the micro-batches of this rank's slice; none where the batch has fewer images than there are ranks."""
        if distributed.get_world_size() == 1:
            return batch.micro_batches(micro_batch_size)
        torch.manual_seed(derive_seed(self.seed, "training", batch.step, distributed.get_rank()))
        self.buffers_before = {name: (buffer, buffer._version) for name, buffer in self.method.named_buffers()}
        names = [
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.method.named_modules()
            for name in getattr(module, "accumulating_buffers", ())
        ]
        self.summed_buffers_before = {
            name: self.buffers_before[name][0].clone() for name in names if name in self.buffers_before
        }
        rank_batch, world_size = _rank_slice(batch), distributed.get_world_size()
        self.passes, self.step = DividedPasses(), batch.step
        numbers = [len(part.inputs) for part in (batch, batch.unlabelled) if part is not None]
        self.divides = all(world_size <= n <= world_size * (micro_batch_size or n) for n in numbers)
        is_empty = not len(rank_batch.inputs) and rank_batch.unlabelled is None
        return [] if is_empty else rank_batch.micro_batches(micro_batch_size)

    @contextmanager
    def divide_preparation(self) -> Iterator[None]:
        """Divide the passes that the method's `prepare` makes, where each process has one micro-batch.

        What is prepared depends on no input, so that it is the same in all processes; so are its random numbers.
        """
        if not self.divides:
            yield
            return
        methods = [part for part in self.method.modules() if isinstance(part, Method)]
        for method in methods:  # a wrapper may call that of what it wraps
            vars(method)["prepare"] = partial(self._prepare_divided, method)
        try:
            yield
        finally:
            for method in methods:
                vars(method).pop("prepare", None)

    def _prepare_divided(self, method: Method, names: Names, fixed: Fixed) -> Prepared:
        del vars(method)["prepare"]  # once in a step; what is prepared again is each process's own
        with torch.random.fork_rng(), dividing(self.passes):
            torch.manual_seed(derive_seed(self.seed, "preparation", self.step))
            return method.prepare(names, fixed)

    def reduce_sums(self, local_sums: TermSums) -> TermSums:
        """Return the sums over all processes, the same in each."""
        if distributed.get_world_size() == 1:
            return local_sums
        values, counts, grads = local_sums
        self._reduce_buffers()
        new_features = collectives.collect_new_features(self.feature_caches)
        gathered = distributed.all_gather((values, counts, list(grads), new_features))
        collectives.add_remote_features(self.feature_caches, [features for *_, features in gathered])
        values, counts = _add_up([rank[0] for rank in gathered]), _add_up([rank[1] for rank in gathered])
        names = list(dict.fromkeys(name for rank in gathered for name in rank[2]))
        self.passes.add_gradients(grads, names, self.parameters)
        self.passes = DividedPasses()  # their graphs end here
        flat = [g for name in names for g in grads.get(name) or map(torch.zeros_like, self.parameters)]
        summed, n = distributed.all_reduce_sum(flat), len(self.parameters)
        return values, counts, {name: summed[k * n : (k + 1) * n] for k, name in enumerate(names)}

    def _reduce_buffers(self) -> None:
        """Sum the accumulating buffers; ValueError for another buffer that has changed in the step."""
        buffers = dict(self.method.named_buffers())
        for name, buffer in buffers.items():
            before, version = self.buffers_before.get(name, (None, 0))
            if name not in self.summed_buffers_before and (buffer is not before or buffer._version != version):
                raise ValueError(
                    f"--processes: expected 1 for {type(self.method).__name__}, which changes its buffer {name} by all "
                    f"images of a step, got {distributed.get_world_size()}. Train it with one process."
                )
        changes = [buffers[name] - before for name, before in self.summed_buffers_before.items()]
        summed = distributed.all_reduce_sum(changes)
        for (name, before), change in zip(self.summed_buffers_before.items(), summed, strict=True):
            buffers[name].copy_(before + change)


def _add_up(by_rank: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for values in by_rank for name in values)
    return {name: sum(values.get(name, 0.0) for values in by_rank) for name in names}


def _rank_slice(batch: Batch) -> Batch:
    """This rank's slice of the labelled and of the unlabelled items; either may be empty."""
    begin, end = collectives.get_rank_slice(len(batch.inputs))
    unlabelled = None if batch.unlabelled is None else _rank_slice(batch.unlabelled)
    return replace(
        batch,
        inputs=batch.inputs.slice(begin, end),
        labels=batch.labels[begin:end],
        domains=None if batch.domains is None else batch.domains[begin:end],
        unlabelled=unlabelled if unlabelled is not None and len(unlabelled.inputs) else None,
    )
