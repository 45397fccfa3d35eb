"""DinoSR's online clusters against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.models.encoder import Encoder
from speechssl.objectives.dinosr import DinoSRObjective

OPTIONS = {
    "top_layers": 2,
    "num_codewords": 5,
    "codebook_decay": 0.9,
    "teacher_memory": (0.1, 0.1),
    "teacher_anneal": 0.0,
    "mask_start_probability": 0.1,
    "mask_span": 5,
    "mask_min_spans": 1,
    "feature_gradient_scale": 1.0,
}


@pytest.fixture
def objective(small_config):
    torch.manual_seed(0)
    return DinoSRObjective(small_config(num_layers=3), **OPTIONS)


def test_codewords_are_running_means_of_what_chose_them(objective):
    random = np.random.default_rng(0)
    sums, members = objective.sums.double().numpy().copy(), objective.members.double().numpy().copy()
    for _ in range(3):
        frames = random.normal(size=(2, 12, 16)).astype(np.float32)
        frames[:, 6:] = 0.1  # so that some codeword is chosen by none
        codes = objective.assign(torch.from_numpy(frames))
        for layer in range(2):
            words = sums[layer] / members[layer][:, None]
            nearest = np.square(frames[layer][:, None] - words[None]).sum(-1).argmin(1)
            assert codes[layer].tolist() == nearest.tolist()
            for word in set(nearest.tolist()):
                own = frames[layer][nearest == word]
                sums[layer, word] = 0.9 * sums[layer, word] + 0.1 * own.sum(0)
                members[layer, word] = 0.9 * members[layer, word] + 0.1 * len(own)
        objective.learn(torch.from_numpy(frames), codes)
    assert objective.sums.numpy() == pytest.approx(sums, rel=1e-4, abs=1e-5)
    assert objective.members.numpy() == pytest.approx(members, rel=1e-5)


def test_codebooks_learn_in_training_alone_and_are_kept(objective, small_config, make_batch):
    encoder, batch = Encoder(small_config(num_layers=3)), make_batch([12_000, 9_000])
    before = objective.sums.clone()
    objective.eval().begin_step(1, 10)
    objective(encoder.eval(), batch)
    assert torch.equal(objective.sums, before)
    objective.train().begin_step(1, 10)
    found = objective(encoder.train(), batch)
    assert not torch.equal(objective.sums, before)
    assert {"sums", "members", "teacher.started"} <= objective.state_dict().keys()
    assert 1 / 5 <= float(found.metrics["code_usage"][0]) <= 1
    found.terms["assignment"].sum.backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in objective.heads)
