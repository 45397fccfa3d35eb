"""Attention over packed clips on a GPU, against torch's clip by clip; the CPU has the same of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speechssl.models.packed import attend_packed, fits

LENGTHS = [70, 1, 33, 33, 200]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [False, True])
def test_each_clip_attends_to_itself_alone(causal):
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), 3, 4, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
    exact = qkv.detach().float().requires_grad_()
    wanted = torch.cat(
        [
            F.scaled_dot_product_attention(*clip.permute(1, 2, 0, 3), is_causal=causal).transpose(0, 1)
            for clip in exact.split(LENGTHS)
        ]
    )
    found = attend_packed(qkv, LENGTHS, 0.0, causal=causal)
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)
    found.float().square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(qkv.grad.float(), exact.grad, rtol=0.05, atol=0.05)


def test_a_cpu_and_fp32_have_other_ways():
    assert not fits(torch.zeros(1, 3, 1, 8, dtype=torch.bfloat16))
