"""The Gumbel product quantizer (wav2vec 2.0, section 2, equations 1 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from speechssl.types import at_least_fp32


@dataclass
class Quantized:
    """What the quantizer makes of M frames.

    Attributes:
        vectors: [M, code size], the chosen codewords of all groups side by side, with straight-through gradient.
        codes: int64 [M, G], the hard choices.
        probabilities: [M, G, V], the softmax without noise and temperature, for the diversity loss.
    """

    vectors: Tensor
    codes: Tensor
    probabilities: Tensor

    def first(self, num_frames: int) -> Quantized:
        """The same of the first frames alone."""
        return Quantized(self.vectors[:num_frames], self.codes[:num_frames], self.probabilities[:num_frames])


class _Chosen(torch.autograd.Function):
    """The chosen codewords, with the gradient of all of them weighed by `soft` (straight through, Jang et al. 2017).

    What one-hot choices would make a product with zeros is a gather, and in the backward pass an addition at the
    chosen.
    """

    @staticmethod
    def forward(ctx, soft: Tensor | None, codebook: Tensor, codes: Tensor) -> Tensor:
        """soft [M, G, V] or None, codebook [G, V, D], codes [M, G] -> [M, G, D]."""
        rows = codes + torch.arange(len(codebook), device=codes.device) * codebook.shape[1]
        ctx.save_for_backward(codebook, rows)
        return codebook.flatten(0, 1)[rows]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        codebook, rows = ctx.saved_tensors
        into_soft = into_codebook = None
        if ctx.needs_input_grad[0]:  # one product for each group: [G, M, D] by [G, D, V]
            into_soft = torch.bmm(gradient.transpose(0, 1), codebook.mT).transpose(0, 1)
        if ctx.needs_input_grad[1]:
            into_codebook = torch.zeros_like(codebook)
            into_codebook.flatten(0, 1).index_add_(0, rows.flatten(), gradient.flatten(0, 1))
        return into_soft, into_codebook, None


class GumbelQuantizer(nn.Module):
    """Chooses one of V codewords in each of G groups, at random by Gumbel noise while training."""

    def __init__(self, input_size: int, *, num_groups: int, num_codewords: int, code_size: int):
        super().__init__()
        self.num_groups, self.num_codewords = num_groups, num_codewords
        self.projection = nn.Linear(input_size, num_groups * num_codewords)
        self.codebook = nn.Parameter(torch.rand(num_groups, num_codewords, code_size // num_groups))
        nn.init.normal_(self.projection.weight, std=1.0)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, *, temperature: float, noise: Tensor | None) -> Quantized:
        """Frames [M, C] -> Quantized. `noise` is Gumbel noise [M, G, V]; None chooses the likeliest codeword."""
        logits = at_least_fp32(self.projection(x)).view(-1, self.num_groups, self.num_codewords)
        probabilities = logits.softmax(-1)
        noisy = logits if noise is None else (logits + noise) / temperature
        codes = noisy.argmax(-1)
        soft = None if noise is None else noisy.softmax(-1)  # without noise nothing is learned of how to choose
        vectors = _Chosen.apply(soft, self.codebook.to(noisy.dtype), codes)
        return Quantized(vectors.flatten(1), codes, probabilities)


def gumbel_noise(
    num_frames: Sequence[int], num_groups: int, num_codewords: int, *, generators: Sequence[torch.Generator]
) -> Tensor:
    """float32 [sum of M, G, V] drawn from the standard Gumbel distribution, the M frames of each clip by its own
    generator and on its device."""
    noise = torch.empty(sum(num_frames), num_groups, num_codewords, device=generators[0].device)
    for part, generator in zip(noise.split(list(num_frames)), generators, strict=True):
        part.exponential_(generator=generator)
    return noise.log_().neg_()


def perplexity(mean_probabilities: Tensor) -> Tensor:
    """Scalar: exp(entropy) of each group's mean distribution [G, V], summed over groups; at most G * V."""
    # Far-off codewords underflow to 0, where xlogy's gradient is not a number.
    logs = mean_probabilities.clamp_min(torch.finfo(mean_probabilities.dtype).tiny).log()
    entropy = -(mean_probabilities * logs).sum(-1)
    return entropy.exp().sum()
