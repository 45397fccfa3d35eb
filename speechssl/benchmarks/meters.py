"""What is measured beside seconds: the parts of a step, floating-point operations, this machine's peak, memory."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

OTHER = "other"


class Parts:
    """Time of each part of a step, by marks where one part ends and the next begins.

    A watched module marks its forward pass by hooks, and where its backward pass begins by a hook on the gradient of
    its output: autograd goes back through the parts one after the other. A mark is a clock read on a CPU and an event
    on a GPU's stream, so that steps can be timed with all marks in place.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.stack = [OTHER]
        self.marks: list[tuple[str, Any]] = []
        self.seconds: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """From now on it is this part's time."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((part, event))
        else:
            self.marks.append((part, time.perf_counter()))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that is a block of code; parts inside it are not counted with it."""
        self._enter(name)
        yield
        self._leave()

    def backward(self, loss: Tensor, part: str) -> None:
        """The backward pass, which begins with that of `part`."""
        self._enter(f"{part}_backward")
        loss.backward()
        self._leave()

    def watch(self, module: nn.Module, part: str) -> None:
        """Count a module's passes as a part."""

        def after(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            self._leave()
            tensor = _main_tensor(output)
            if tensor.requires_grad:
                tensor.register_hook(lambda _gradient: self.mark(f"{part}_backward"))

        module.register_forward_pre_hook(lambda _module, _inputs: self._enter(part))
        module.register_forward_hook(after)

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count the calls of a method, which has no gradient, as a part."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return inner(*args, **kwargs)

        setattr(owner, method, outer)

    def end_step(self) -> None:
        """Add the marks of a step that is done to `seconds`."""
        self.mark(OTHER)
        if self.on_gpu:
            torch.cuda.synchronize()
        for (part, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            elapsed = start.elapsed_time(end) / 1000 if self.on_gpu else end - start
            self.seconds[part] = self.seconds.get(part, 0.0) + elapsed
        self.marks = []

    def forget(self) -> None:
        """Begin anew, after warm-up."""
        self.seconds = {}

    def shares(self) -> dict[str, float]:
        """Share of the time by part, the largest first; they sum to 1."""
        total = sum(self.seconds.values())
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {part: seconds / total for part, seconds in ordered}

    def _enter(self, part: str) -> None:
        self.stack.append(part)
        self.mark(part)

    def _leave(self) -> None:
        self.stack.pop()
        self.mark(self.stack[-1])


def _main_tensor(output: Any) -> Tensor:
    """What is handed on: the tensor itself, the last of a list of states, the first of other containers."""
    while not isinstance(output, Tensor):
        output = output[-1] if isinstance(output, list) else output[0]
    return output


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of a step as it is run, forward and backward, a multiplication and an addition each.

    Counted are matrix products, convolutions and attention; not what does elementwise work, norms or an FFT.
    """
    aten = torch.ops.aten
    formulas = {
        aten.addmm_: _added_product_flops,  # in place, it has no formula of torch's
        aten.convolution_backward: _convolution_backward_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        step()
    return counter.get_total_flops()


def _added_product_flops(_sum_shape, rows_shape, columns_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * rows_shape.numel() * columns_shape[1]


def _convolution_backward_flops(gradient_shape, _x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """The gradients of input and weight cost as much as the forward pass each (torch's formula forgets groups)."""
    needed = sum(args[-1][:2])
    forward = 2 * gradient_shape[0] * gradient_shape[2:].numel() * weight_shape.numel()
    return needed * forward


def _attention_flops(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _attention_backward_flops(
    gradient_shape, query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs
) -> int:
    return sdpa_backward_flop_count(gradient_shape, query_shape, key_shape, value_shape)


@torch.inference_mode()
def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Operations a second of the fastest large matrix product, with the threads that torch has now.

    On a CPU `a @ b` and a convolution over single positions can come from different libraries, of which one may be
    twice as fast: both are tried.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    image = a.T.contiguous().view(1, size, 32, -1).to(memory_format=torch.channels_last)
    kernel = b[:, :, None, None].contiguous()
    fastest = min(_fastest(lambda: a @ b, seconds), _fastest(lambda: F.conv2d(image, kernel), seconds))
    return 2 * size**3 / fastest


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest of the runs that fit into `seconds`."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def synchronize() -> None:
    """Wait for a GPU that has been used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Memory:
    """Peak memory of this process above what it held when this was made; None where the system does not say.

    On a GPU the tensors that torch holds there, on a CPU the resident set.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.before = 0 if self.on_gpu else _status_bytes("VmRSS")

    def peak(self) -> int | None:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated()
        peak = _status_bytes("VmHWM")
        return None if peak is None else peak - self.before


def _status_bytes(key: str) -> int | None:
    """A figure of /proc/self/status, which Linux has."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    [line] = [line for line in status.read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024
