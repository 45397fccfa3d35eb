"""Tensors of which each rank has a part: as files of torch.distributed.checkpoint, and as whole tensors.

The files are safetensors (`shard-RANK-model-...`), in a checkpoint beside model.safetensors, and say in their headers
which part they hold: they load on any number of ranks, also on one. torch's own format would have a pickle beside them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from speechssl.errors import UserError

# Imported where it is needed: torch's code for this takes a while, and a checkpoint is mostly read by one process.


def is_part(tensor: Tensor) -> bool:
    """Whether ranks have a part of it each (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if is_part(tensor) else tensor


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with all parts in each tensor, on the CPU; every rank has to call it."""
    return {name: t.full_tensor().cpu() if is_part(t) else t for name, t in tensors.items()}


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, if `like` is divided; else the tensor itself."""
    if not is_part(like) or is_part(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Each rank has read the whole tensor: nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Each rank's part into a file of its own."""
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.api.CheckpointException as error:
        causes = [cause for _, (cause, _) in error.failures.items() if isinstance(cause, OSError)]
        raise (causes or [error])[0] from error


def load(folder: Path, named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's tensors, as "slot/parameter", divided as the parameters are."""
    import torch.distributed.checkpoint as dcp

    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        keys = [key for key in reader.read_metadata().state_dict_metadata if "/" in key]
        tensors = {}
        for key in keys:
            slot, _, name = key.partition("/")
            parameter = named[name].detach()
            tensors[key] = torch.zeros(()) if slot == "step" else torch.zeros_like(parameter)
        dcp.load(tensors, storage_reader=reader)
    except (dcp.api.CheckpointException, KeyError, ValueError, OSError) as error:
        raise UserError(f"the shards in {folder} cannot be read ({error}); use another checkpoint") from error
    return tensors
