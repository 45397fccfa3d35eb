"""Random generators as functions of what they are for."""

from __future__ import annotations

import torch

from speechssl.rng import derive_seed, generator


def test_the_same_parts_give_the_same_seed_and_others_another():
    """Stored value: a seed that changed would change every run that is resumed."""
    assert derive_seed(0, 1, "clip") == derive_seed(0, 1, "clip") == 5198562279578990255
    seeds = {derive_seed(*parts) for parts in ((0, 1, "clip"), (0, "1clip"), (1, 0, "clip"), ("0", 11, "clip"), ())}
    assert len(seeds) == 5


def test_seeds_are_within_what_torch_takes():
    seeds = [derive_seed("x", i) for i in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 1000


def test_generators_do_not_touch_the_global_one():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.rand(4, generator=generator(1, "mask"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.rand(4, generator=generator(1, "mask")))
    assert not torch.equal(first, torch.rand(4, generator=generator(1, "gumbel")))
