"""Random generators as functions of what they are for, so that no result depends on rank, batch or history."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, for example (seed, epoch, clip id); the same parts always give the same seed."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed(*parts)`; what a GPU's draws is not what a CPU's does."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
