"""NT-Xent against a loop over pairs."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
import torch.nn.functional as F

from speechssl.objectives.simclr import SimCLRObjective


def test_loss_is_that_of_a_loop(small_config):
    torch.manual_seed(0)
    objective = SimCLRObjective(
        small_config(),
        sample_rate=16_000,
        crop_s=0.3,
        noise_snr_db=(10.0, 20.0),
        final_size=8,
        temperature=0.2,
        feature_gradient_scale=1.0,
    )
    first, second = torch.randn(4, 8), torch.randn(4, 8)
    every = torch.cat([first, second])
    expected, right = 0.0, 0
    for i in range(8):
        similar = {j: float(F.cosine_similarity(every[i], every[j], dim=0)) / 0.2 for j in range(8) if j != i}
        other = (i + 4) % 8
        expected += log(sum(exp(x) for x in similar.values())) - similar[other]
        right += max(similar, key=similar.get) == other
    loss, found, among = objective.loss(first, second)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (int(found), among) == (right, 8)
