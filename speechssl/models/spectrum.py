"""Log-mel spectrum and MFCC of packed clips, as Kaldi computes them, aligned with an encoder's frames.

Targets (k-means labels, random projections, reconstructions) and the log-mel front end use the same spectrum. A frame
of the encoder sees `field` samples and the next begins `hop` later; the 25 ms windows of the spectrum lie in the middle
of that, `per_frame` of them, about 10 ms apart. Only a clip's own samples are read, with zeros behind its end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW_S, SHIFT_S = 0.025, 0.010
PREEMPHASIS, LOW_HZ, LIFTER = 0.97, 20.0, 22.0


class LogMel(nn.Module):
    """Log-mel energies, `per_frame` spectra a frame of the encoder.

    Args:
        hop, field: of the encoder, samples.
        sample_rate: samples a second.
        num_bins: mel bands.
        per_frame: spectra a frame; None is one for each 10 ms.
    """

    def __init__(self, *, hop: int, field: int, sample_rate: int, num_bins: int, per_frame: int | None = None):
        super().__init__()
        self.window = round(WINDOW_S * sample_rate)
        self.per_frame = per_frame or max(round(hop / (SHIFT_S * sample_rate)), 1)
        self.shift = hop // self.per_frame
        self.offset = (field - self.window) // 2
        self.num_bins = num_bins
        size = 1 << (self.window - 1).bit_length()
        povey = torch.hann_window(self.window, periodic=False).pow(0.85)
        # Derived from the config, so no part of a checkpoint.
        self.register_buffer("povey", F.pad(povey, (0, size - self.window)), persistent=False)
        self.register_buffer("banks", _mel_banks(num_bins, size, sample_rate), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor, frame_lengths: list[int]) -> Tensor:
        """Waveforms [B, N], their lengths in samples and frames -> [P, per_frame, bins], natural logarithm."""
        with torch.autocast(waveforms.device.type, enabled=False):
            clips = zip(waveforms.float(), lengths.tolist(), frame_lengths, strict=True)
            windows = torch.cat([self._windows(x[:length], frames) for x, length, frames in clips])
            windows = windows - windows.mean(1, keepdim=True)
            before = torch.cat([windows[:, :1], windows[:, :-1]], dim=1)
            windows = F.pad(windows - PREEMPHASIS * before, (0, len(self.povey) - self.window)) * self.povey
            spectrum = torch.fft.rfft(windows)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (power @ self.banks).clamp_min(torch.finfo(torch.float32).eps).log()
        return mel.view(-1, self.per_frame, self.num_bins)

    def _windows(self, clip: Tensor, frames: int) -> Tensor:
        """[N] -> [frames * per_frame, window]."""
        if not frames:
            return clip.new_zeros(0, self.window)
        needed = (frames * self.per_frame - 1) * self.shift + self.window
        before = max(-self.offset, 0)
        clip = F.pad(clip[max(self.offset, 0) :], (before, 0))
        clip = F.pad(clip, (0, max(needed - len(clip), 0)))
        return clip[:needed].unfold(0, self.window, self.shift)


class MFCC(nn.Module):
    """13 cepstral coefficients with first and second differences, 39 numbers a frame (HuBERT, section IV.A)."""

    def __init__(self, *, hop: int, field: int, sample_rate: int, num_bins: int = 23, num_coefficients: int = 13):
        super().__init__()
        # Imported here: pretraining without MFCC needs no torchaudio.
        from torchaudio.functional import create_dct

        self.mel = LogMel(hop=hop, field=field, sample_rate=sample_rate, num_bins=num_bins)
        lifter = 1 + LIFTER / 2 * torch.sin(torch.pi * torch.arange(num_coefficients) / LIFTER)
        dct = create_dct(num_coefficients, num_bins, "ortho") * lifter
        self.register_buffer("dct", dct, persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor, frame_lengths: list[int]) -> Tensor:
        """Waveforms [B, N], their lengths in samples and frames -> [P, 39].

        Differences are taken over neighbours 10 ms apart, before frames are chosen.
        """
        from torchaudio.functional import compute_deltas

        coefficients = self.mel(waveforms, lengths, frame_lengths) @ self.dct
        outputs = []
        for clip in coefficients.split(frame_lengths):
            x = clip.flatten(0, 1).T
            first = compute_deltas(x)
            full = torch.cat([x, first, compute_deltas(first)]).T
            outputs.append(full[:: self.mel.per_frame])
        return torch.cat(outputs)


def standardize(x: Tensor, frame_lengths: list[int]) -> Tensor:
    """[P, ...] -> the same, each dimension at zero mean and unit variance over each clip's time."""
    outputs = []
    for clip in x.split(frame_lengths):
        centred = clip - clip.mean(0)
        outputs.append(centred / (centred.square().mean(0) + 1e-5).sqrt())
    return torch.cat(outputs)


def _mel_banks(num_bins: int, size: int, sample_rate: int) -> Tensor:
    """[size / 2 + 1, bins]: triangles that are straight on the mel scale, from LOW_HZ to half the rate (Kaldi)."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * (1 + hertz / 700.0).log()

    low, high = mel(torch.tensor([LOW_HZ, sample_rate / 2], dtype=torch.float64))
    edges = low + (high - low) / (num_bins + 1) * torch.arange(num_bins + 2)
    place = mel(torch.arange(size // 2 + 1, dtype=torch.float64) * sample_rate / size)[:, None]
    width = edges[1] - edges[0]
    rising, falling = (place - edges[:-2]) / width, (edges[2:] - place) / width
    banks = torch.minimum(rising, falling).clamp_min(0)
    banks[-1] = 0  # Kaldi leaves out the highest frequency
    return banks.float()
