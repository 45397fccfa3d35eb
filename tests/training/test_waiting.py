"""A step on a GPU that is not there: all tensors meet on one device, and the CPU never waits for what the GPU computes.

torch's fake tensors say they are on a GPU and have shapes alone; to ask one for a value is an error. What is decided on
the CPU (masks, lengths) is computed there.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechssl.config import OF_TRAINING, compose, config_dir, objective_class, options, plain
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.speaker import ClassifyObjective
from speechssl.models import packed
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import build_objective
from speechssl.types import Batch

CUDA = torch.device("cuda")
LENGTHS = [32_000, 16_000, 24_000, 16_000]
# torch has no fake of what packs a recurrent network's input.
NAMES = [name for name in options("objective", configs=config_dir()) if name != "cpc"]
DECODER = "objective.num_masks=2", "objective.decoder_layers=2"


class RealOnCPU(TorchDispatchMode):
    """Above a FakeTensorMode: what the CPU has is computed.

    Attributes:
        blocking: copies that were not from pinned memory.
        launched: what the GPU was asked to do, views apart.
        attended: calls of the kernel for attention over packed clips.
    """

    def __init__(self):
        super().__init__()
        self.blocking, self.launched, self.attended = [], 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        is_fake = any(isinstance(x, FakeTensor) for x in leaves)
        to_gpu = any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves)
        if to_gpu and not is_fake and func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            self.blocking.append(func)
        if is_fake or to_gpu:
            is_view = any(x.alias_info and not x.alias_info.is_write for x in func._schema.returns)
            self.attended += func is torch.ops.aten._flash_attention_forward.default
            self.launched += func.namespace == "aten" and not is_view
            # torch's fake of drawing takes no generator.
            return func(*args, **{key: None if key == "generator" else value for key, value in kwargs.items()})
        with unset_fake_temporarily():
            return func(*args, **kwargs)


class GPUGenerator(torch.Generator):
    """A generator that says it is a GPU's where it was asked for one."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)

    def __init__(self, device="cpu"):
        self.where = torch.device(device)

    @property
    def device(self):
        return self.where


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of fake tensors; what copies to it had to wait for."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "Generator", GPUGenerator)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("torch.backends.cuda.is_flash_attention_available", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True), RealOnCPU() as mode:
        yield mode
    packed._ends.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("overrides", [*((f"objective={name}",) for name in NAMES), DECODER], ids=" ".join)
def test_a_step_does_not_wait_for_the_gpu(gpu, overrides, precision):
    config = compose("pretrain", ["model=small", *overrides, "data.train=x", "run_dir=x"])
    kind = objective_class(config.objective.name)
    values = {key: value for key, value in plain(config.objective).items() if key not in OF_TRAINING}
    with CUDA:
        encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder) | kind.encoder_needs))
        objective = build_objective(kind.complete(values, config), encoder.config)
    if hasattr(objective, "stored"):
        objective.stored = lambda _utterance, _start_s, frames: torch.arange(frames) % 7
    take_step(gpu, encoder, objective, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", ["ctc", "speaker"])
def test_a_step_of_fine_tuning_does_not_wait_either(gpu, task, precision, ctc_options, classify_options, monkeypatch):
    # Of this there is no fake; its lengths are on the CPU, so that it asks the GPU for nothing.
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", lambda scores, targets, *_, **__: scores.sum() + targets.sum())
    config = compose("pretrain", ["model=small", "data.train=x", "run_dir=x"])
    with CUDA:
        encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder)))
        if task == "ctc":
            hidden = {"mask_start_probability": 0.1, "channel_mask_start_probability": 0.1, "mask_span": 5}
            objective = CTCObjective(encoder.config, **ctc_options | hidden)
            targets = [torch.tensor([1, 2])] * 4
        else:
            objective = ClassifyObjective(encoder.config, **classify_options)
            targets = [torch.tensor([0])] * 4
    take_step(gpu, encoder, objective, precision, targets)


def test_a_clip_more_is_little_more_to_launch(gpu):
    """wav2vec 2.0 on clips of much the same length: drawing for a clip and putting it beside the others, no more."""
    config = compose("pretrain", ["model=small", "data.train=x", "run_dir=x"])
    values = {key: value for key, value in plain(config.objective).items() if key not in OF_TRAINING}
    with CUDA:
        encoder = Encoder(EncoderConfig.from_dict(plain(config.model.encoder)))
        objective = build_objective(values, encoder.config)
    launched = []
    for count in (10, 20):
        before, lengths = gpu.launched, [32_000 + 40 * i for i in range(count)]
        take_step(gpu, encoder, objective, "bf16", lengths=lengths)
        launched.append(gpu.launched - before)
    assert launched[1] - launched[0] <= 10 * 8
    assert gpu.attended == 2 * encoder.config.num_layers


def take_step(gpu, encoder, objective, precision, targets=None, lengths=LENGTHS):
    count = len(lengths)
    waveforms = torch.empty(count, max(lengths), device=CUDA)
    batch = Batch(waveforms, torch.tensor(lengths), list(range(count)), [None] * count, targets)
    encoder.train(), objective.train()
    objective.begin_step(2, 100)
    gpu.blocking.clear()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        output = objective(encoder, batch, torch.Generator())
    assert all(term.sum.device.type == "cuda" and isinstance(term.sum, FakeTensor) for term in output.terms.values())
    assert not gpu.blocking
