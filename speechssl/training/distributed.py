"""Several processes as one run: what ranks tell each other, sums over them, and DDP or FSDP2 around the model.

Alone, everything here is the identity. torchrun starts the processes (see launch.py) and says in the environment who
is who. Ranks talk over gloo, on the CPU; gradients, and statistics of a whole batch, go over NCCL between GPUs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speechssl.errors import UserError
from speechssl.models.context import TransformerLayer
from speechssl.types import LossOutput

# Of all-reduces within a forward and backward pass, apart from those of DDP and FSDP2, whose order they do not share.
_statistics: dist.ProcessGroup | None = None
# That group and the one for plain data, from the first run on.
_groups: tuple[dist.ProcessGroup, dist.ProcessGroup] | None = None


class World:
    """This process among those of the run.

    Attributes:
        rank: 0 writes and prints.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, talk: dist.ProcessGroup | None = None):
        self.rank, self.size, self._talk = rank, size, talk

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value, in the order of ranks; plain data."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self._talk)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(bool(flag)))

    def agree(self, value: Any = None) -> Any:
        """What rank 0 says."""
        return self.gather(value if self.rank == 0 else None)[0]

    def close(self) -> None:
        """Part, once all are done."""
        global _statistics
        if self.size > 1:
            dist.barrier(group=self._talk)
            _statistics = None
            _leave_at_exit()


@functools.cache
def _leave_at_exit() -> None:
    """Once a run has ended well. Not before: a process forms groups once, and may have another run to do in them."""
    atexit.register(dist.destroy_process_group)


def is_rank() -> bool:
    """Whether this process is one that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(device: str) -> World:
    """Meet the other processes that torchrun started, if it did; makes `device` (cpu or cuda) this rank's own."""
    global _statistics, _groups
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not dist.is_available():
        return World()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if _groups is None:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        _groups = dist.new_group(), dist.new_group(backend="gloo")
    _statistics, talk = _groups
    return World(dist.get_rank(), dist.get_world_size(), talk)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of each rank's tensor, with gradient: for statistics of a whole batch, as of a diversity loss.

    Every rank has to call it equally often, also where it has nothing to add. The loss of each rank is its share of
    the whole loss, so that the gradient of the sum is the sum of the ranks' gradients.
    """
    return x if _statistics is None else _Sum.apply(x)


def ranks() -> tuple[int, int] | None:
    """This process' number among those that `sum_over_ranks` sums over, and how many; None where it is alone."""
    return None if _statistics is None else (dist.get_rank(), dist.get_world_size())


def mean_over_ranks(total: Tensor, count: int) -> Tensor:
    """The mean of what each rank has `count` of and the sum `total`; 0 where there is none at all."""
    both = sum_over_ranks(torch.cat([total.flatten(), total.new_full((1,), count)]))
    return (both[:-1] / both[-1].clamp_min(1)).view(total.shape)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within, `sum_over_ranks` leaves each rank's tensor as it is (validation, where ranks have different batches)."""
    global _statistics
    before, _statistics = _statistics, None
    try:
        yield
    finally:
        _statistics = before


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_statistics)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=_statistics)
        return total


class TrainingModel(nn.Module):
    """Encoder and objective as one module, which DDP and FSDP2 can be put around."""

    def __init__(self, encoder: nn.Module, objective: nn.Module):
        super().__init__()
        self.encoder, self.objective = encoder, objective

    def forward(self, *inputs: Any) -> tuple[list[Tensor], LossOutput]:
        """The objective's output for (batch, generator), and the sums in it.

        FSDP2 looks for tensors in lists to learn when the backward pass begins; a dataclass hides them, which shows
        in steps where LayerDrop leaves no layer.
        """
        output = self.objective(self.encoder, *inputs)
        return [term.sum for term in output.terms.values()], output


def shard(model: TrainingModel, device: str) -> None:
    """FSDP2: parameters, gradients and optimiser in as many parts as there are ranks, whole only while they are used.

    Called before the optimiser is built. Each Transformer layer is gathered by itself, all else together.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: TrainingModel) -> DistributedDataParallel:
    """DDP: each rank has all of it, and gradients are averaged. LayerDrop and freezing leave parameters unused."""
    return DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)


def compile_layers(model: nn.Module) -> None:
    """Fuse what Transformer layers do besides attention with torch.compile, once for clips of all lengths.

    Raises:
        UserError: there is no compiler that torch.compile could use.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("trainer.compile=true needs a C++ compiler, and there is none; install g++ or leave it out")
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile_rows()


def recompute(model: nn.Module, count: int | None = None) -> None:
    """Activation checkpointing: the first `count` Transformer layers, or all, keep their input alone and run again in
    the backward pass."""
    layers = [module for module in model.modules() if isinstance(module, TransformerLayer)]
    for layer in layers[:count]:
        layer.recompute = True
