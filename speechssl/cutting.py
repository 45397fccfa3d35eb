"""How a recording goes through a recogniser: whole where it is short, else in stretches between pauses, in windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechssl import audio
from speechssl.inference import SpeechModel
from speechssl.models.lengths import num_frames
from speechssl.segments import levels_db, stretches
from speechssl.windows import WHOLE, Window, Windowing

# A stretch may be so many times as long as most clips that the model was trained on.
STRETCH = 1.25
SHORTEST_S = 1.0
_READ_S = 30.0  # audio in memory while looking for pauses


class Cutter:
    """Cuts recordings for one model.

    Args:
        model: its encoder says where frames lie, its head how long the clips were that it was trained on.
        window_s: no more than so many seconds go through the model at once.
        context_s: what windows of a stretch without a pause overlap by, at each end.

    Attributes:
        shortest_s, longest_s: of a stretch; recordings up to the longest are not cut.

    Raises:
        UserError: the window is not longer than its two contexts.
    """

    def __init__(self, model: SpeechModel, *, window_s: float, context_s: float) -> None:
        config = model.encoder.config
        self.model, self.hop, self.field = model, config.hop, config.receptive_field
        self.kernels, self.strides = config.conv_kernels, config.conv_strides
        trained = getattr(model.objective, "clip_seconds", None)
        self.shortest_s = min(trained[0] if trained else SHORTEST_S, window_s / 2)
        wanted = max(STRETCH * trained[-1], 4 * context_s) if trained else window_s
        self.longest_s = min(wanted, window_s)
        self.windowing = Windowing(config, sample_rate=model.sample_rate, window_s=self.longest_s, context_s=context_s)

    def of_file(self, path: Path) -> list[Window]:
        """The windows of a file, of which no more than half a minute is in memory."""
        return self._cut(self.model.num_samples(path), lambda: self._levels_of_file(path))

    def of_waveform(self, waveform: Tensor) -> list[Window]:
        """The windows of a waveform [N] at the model's rate."""
        return self._cut(len(waveform), lambda: levels_db(waveform, self.hop))

    def num_frames(self, length: int) -> int:
        """Frames of a recording of so many samples."""
        return num_frames(length, self.kernels, self.strides)

    def _cut(self, length: int, levels: Callable[[], np.ndarray]) -> list[Window]:
        if length <= self.longest_s * self.model.sample_rate:
            return [WHOLE]
        found = stretches(
            levels(),
            frame_s=self.hop / self.model.sample_rate,
            shortest_s=self.shortest_s,
            longest_s=self.longest_s,
        )
        windows: list[Window] = []
        for first, last in found or [(0, 1)]:  # nothing but silence is a frame of it
            end = min(last * self.hop + self.field - self.hop, length)
            start = max(min(first * self.hop, (end - self.field) // self.hop * self.hop), 0)
            windows += self._of_stretch(start, max(end, self.field), length)
        return [*(replace(window, ends_recording=False) for window in windows[:-1]), windows[-1]]

    def _of_stretch(self, start: int, end: int, length: int) -> list[Window]:
        """The windows of the samples from start to end; the recording's own end is left open."""
        return [
            replace(
                window,
                start=start + window.start,
                end=start + window.end if window.end is not None else (None if end >= length else end),
                first_frame=start // self.hop,
            )
            for window in self.windowing.cut(end - start)
        ]

    def _levels_of_file(self, path: Path) -> np.ndarray:
        rate, found, start_s = self.model.sample_rate, [], 0.0
        length_s = audio.info(path).duration_s
        while start_s < length_s:
            is_last = start_s + 1.5 * _READ_S >= length_s
            part = audio.load(path, sample_rate=rate, offset_s=start_s, duration_s=None if is_last else _READ_S)
            found.append(levels_db(part, self.hop))
            start_s += length_s if is_last else _READ_S
        return np.concatenate(found)


def assemble(window: Window, logits: Tensor, kept: list[Tensor]) -> Tensor | None:
    """Add a window's frames to those of its stretch in `kept`; the stretch's logits once it is complete."""
    if window.is_first:
        kept.clear()
    kept.append(logits[window.keep])
    return torch.cat(kept) if window.is_last else None
