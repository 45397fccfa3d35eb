"""A model whose every answer is known: it reads each frame's mean amplitude as the number of a symbol.

`spell("ab a")` is a waveform that says so, and the real heads, recogniser and commands must say it back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import objective_class
from speechssl.data.text import BLANK
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.speaker import ClassifyObjective
from speechssl.inference import SpeechModel
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import model_config, save_checkpoint
from speechssl.types import EncoderOutput

RATE, HOP, FIELD = 16_000, 320, 400
SYMBOLS = [BLANK, " ", *"abc"]
STEP = 0.05  # of amplitude, from one symbol to the next

CTC_OPTIONS = {
    "vocabulary": SYMBOLS,
    "lowercase": False,
    "dropout": 0.1,
    "mask_start_probability": 0.065,
    "mask_span": 10,
    "freeze_feature_encoder": True,
    "freeze_encoder": 0.0,
}
CLASSIFY_OPTIONS = {
    "labels": ["ann", "bob", "cid"],
    "label": "speaker",
    "dropout": 0.1,
    "freeze_feature_encoder": True,
    "freeze_encoder": 0.0,
}


class SpellingEncoder(nn.Module):
    """Frames are one-hot: the symbol whose amplitude the frame has."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hop=HOP, receptive_field=FIELD, hidden_size=len(SYMBOLS), num_layers=0)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        clips = [wave[:length] for wave, length in zip(waveforms, lengths.tolist(), strict=True)]
        symbols = [(clip.unfold(0, FIELD, HOP)[:, :HOP].mean(1) / STEP).round().long() for clip in clips]
        frames = F.one_hot(torch.cat(symbols), len(SYMBOLS)).float()
        return EncoderOutput(packed=[frames], frame_lengths=[len(x) for x in symbols])


def spell(text: str, *, frames: int = 3) -> Tensor:
    """Float [N]: each character for so many frames, with one frame of blank after it."""
    path = [i for c in text for i in [SYMBOLS.index(c)] * frames + [0]]
    samples = torch.tensor(path).repeat_interleave(HOP) * STEP
    return F.pad(samples, (0, FIELD - HOP))


def save(path: Path, waveform: Tensor, *, rate: int = RATE) -> Path:
    """The waveform as an audio file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform.numpy(), rate)
    return path


def _model(objective: nn.Module) -> SpeechModel:
    return SpeechModel(
        encoder=SpellingEncoder(),
        objective=objective.eval(),
        sample_rate=RATE,
        normalize=False,
        device=torch.device("cpu"),
        source=Path("run/checkpoints/best"),
    )


@pytest.fixture
def spelling_model() -> SpeechModel:
    """A CTC head that writes the symbols as they are, each with probability e^5 / (e^5 + 4)."""
    head = CTCObjective(SpellingEncoder().config, **CTC_OPTIONS)
    with torch.no_grad():
        head.linear.weight.copy_(5 * torch.eye(len(SYMBOLS)))
    return _model(head)


@pytest.fixture
def voice_model() -> SpeechModel:
    """A classifier that goes by the symbol that a clip has most of: ann is "a", bob "b", cid "c"."""
    head = ClassifyObjective(SpellingEncoder().config, **CLASSIFY_OPTIONS)
    with torch.no_grad():
        head.linear.weight.zero_()
        for label, symbol in enumerate("abc"):
            head.linear.weight[label, SYMBOLS.index(symbol)] = 1.0
        head.linear.bias.zero_()
    return _model(head)


@pytest.fixture
def audio_tools() -> SimpleNamespace:
    """`spell(text)` and `save(path, waveform)`."""
    return SimpleNamespace(spell=spell, save=save)


@pytest.fixture
def write_run(tmp_path) -> Callable[..., Path]:
    """A run folder with a checkpoint of random weights: a small encoder and the head that is named."""

    def write(name: str, **options) -> Path:
        torch.manual_seed(0)
        encoder = Encoder(
            EncoderConfig(
                conv_channels=(16,) * 7,
                conv_kernels=(10, 3, 3, 3, 3, 2, 2),
                conv_strides=(5, 2, 2, 2, 2, 2, 2),
                conv_norm="group",
                conv_bias=False,
                hidden_size=32,
                num_layers=2,
                num_heads=2,
                feed_forward_size=32,
                position_kernel=8,
                position_groups=4,
                pre_norm=False,
            )
        )
        objective = objective_class(name)(encoder.config, **options)
        for parameter in objective.parameters():
            nn.init.normal_(parameter)  # so that a random head says more than one thing
        save_checkpoint(
            tmp_path / "run" / "checkpoints",
            step=1,
            config=model_config(
                sample_rate=RATE, normalize=True, encoder=encoder.config, objective={"name": name, **options}
            ),
            model=nn.ModuleDict({"encoder": encoder, "objective": objective}).state_dict(),
            optimizer={},
            trainer={},
        )
        return tmp_path / "run"

    return write


@pytest.fixture
def ctc_run(write_run) -> Path:
    """A run folder of task=ctc with random weights."""
    return write_run("ctc", **CTC_OPTIONS)


@pytest.fixture
def speaker_run(write_run) -> Path:
    """A run folder of task=speaker with random weights."""
    return write_run("classify", **CLASSIFY_OPTIONS)
