"""Where a long recording is cut, so that it goes through a model in bounded memory and the joins show no seam.

Windows overlap and begin at whole frames. Of each, the frames at its edges, which lack what came before or comes
after, only serve the others as context; the frames between follow those of the window before without gap or overlap.
So the frames that are kept number as many as those of the whole recording, and are decoded once: no word can be lost
or repeated at a join, as it can where texts are joined.
"""

from __future__ import annotations

from dataclasses import dataclass

from speechssl.errors import UserError
from speechssl.models.encoder import EncoderConfig
from speechssl.models.lengths import num_frames, num_samples


@dataclass(frozen=True)
class Window:
    """One window of a recording.

    Attributes:
        start, end: its samples; to the recording's end if `end` is None.
        keep: its frames that count, numbered from its own first frame.
        is_first, is_last: whether its stretch's first or last frame is among them; the whole recording is one stretch
            where it is not cut at pauses.
        first_frame: of the stretch within the recording.
        ends_recording: whether no window of the recording follows.
    """

    start: int
    end: int | None
    keep: slice
    is_first: bool
    is_last: bool
    first_frame: int = 0
    ends_recording: bool = True


WHOLE = Window(start=0, end=None, keep=slice(None), is_first=True, is_last=True)


class Windowing:
    """Windows for one encoder.

    Args:
        encoder: its convolutions say where frames lie.
        sample_rate: of its waveforms, samples a second.
        window_s: seconds of a window; a recording that is not longer is not cut.
        context_s: seconds at each end of a window that only serve as context, but at the recording's own ends.

    Raises:
        UserError: the window is not longer than its two contexts.
    """

    def __init__(self, encoder: EncoderConfig, *, sample_rate: int, window_s: float, context_s: float) -> None:
        self.kernels, self.strides, self.hop = encoder.conv_kernels, encoder.conv_strides, encoder.hop
        self.size = num_frames(round(window_s * sample_rate), self.kernels, self.strides)
        self.context = round(context_s * sample_rate / self.hop)
        if self.size <= 2 * self.context:
            raise UserError(
                f"window_s={window_s:g} keeps no frame between two contexts of context_s={context_s:g}: make the "
                "window longer than twice the context"
            )

    def cut(self, length: int) -> list[Window]:
        """The windows of a recording of `length` samples: all equally long, the last one moved back to fit."""
        total = num_frames(length, self.kernels, self.strides)
        if total <= self.size:
            return [WHOLE]
        windows, kept = [], 0
        while kept < total:
            first = min(max(kept - self.context, 0), total - self.size)
            is_last = first + self.size == total
            stop = total if is_last else first + self.size - self.context
            start = first * self.hop
            windows.append(
                Window(
                    start=start,
                    end=None if is_last else start + num_samples(self.size, self.kernels, self.strides),
                    keep=slice(kept - first, None if is_last else stop - first),
                    is_first=kept == 0,
                    is_last=is_last,
                    ends_recording=is_last,
                )
            )
            kept = stop
        return windows
