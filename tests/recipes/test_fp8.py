"""recipes/benchmark/fp8.py: its product against plain ones, and a run of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from speechssl.cli import main
from speechssl.commands import pretrain

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "recipes" / "benchmark" / "fp8.py"))
multiply = SCRIPT["Product"].apply


def test_numbers_that_fp8_holds_are_multiplied_exactly():
    generator = torch.Generator().manual_seed(0)
    x, weight, into = (
        torch.randint(-4, 5, shape, generator=generator).float() for shape in ((32, 16), (48, 16), (32, 48))
    )
    # The largest numbers of both kinds of FP8 make each scale 1.
    x[0, 0] = weight[0, 0] = 448
    into[0, 0] = 57344
    x.requires_grad_(), weight.requires_grad_()
    y = multiply(x, weight)
    torch.testing.assert_close(y, (x @ weight.T).bfloat16(), rtol=0, atol=0)
    y.backward(into.bfloat16())
    torch.testing.assert_close(x.grad, (into @ weight).bfloat16().float(), rtol=0, atol=0)
    torch.testing.assert_close(weight.grad, (into.T @ x).bfloat16().float(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_small_and_large_numbers_lose_what_three_bits_of_mantissa_lose(size):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) * size for shape in ((64, 128), (32, 128)))
    true = x @ weight.T
    error = (multiply(x, weight) - true).norm() / true.norm()
    # Uniform rounding errors of at most 1/16, in both factors: 1/16 / sqrt(3) * sqrt(2) = 5 % at the most.
    assert 0.02 < error < 0.052


def test_a_run_is_a_run_of_pretrain(write_corpus, small_model, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrain, "Encoder", SCRIPT["build"])
    run = tmp_path / "run"
    command = ["pretrain", f"data.train={write_corpus()}", "data.num_workers=0", "data.batch_seconds=4"]
    command += ["trainer.max_steps=3", "trainer.device=cpu", "trainer.precision=bf16", f"run_dir={run}", *small_model]
    assert main(command) == 0
    assert (run / "checkpoints" / "step_3" / "model.safetensors").is_file()
