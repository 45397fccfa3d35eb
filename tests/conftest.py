"""What several tests need: small real models, seeded audio, and a model whose every answer is known.

The last reads each frame's mean amplitude as the number of a symbol: `spell("ab a")` is a waveform that says so, and
the real heads, recogniser and commands must say it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl import manifest
from speechssl.config import objective_class
from speechssl.data.text import BLANK
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.speaker import ClassifyObjective
from speechssl.inference import SpeechModel
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import model_config, save_checkpoint
from speechssl.types import Batch, EncoderOutput, Utterance

# A deadline is a timing, and a busy machine is no bug.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

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


@pytest.fixture(scope="session")
def small_model() -> tuple[str, ...]:
    """Overrides that make `tiny` smaller; given as overrides, so that the yaml may change."""
    return (
        "model=tiny",
        "model.encoder.conv_channels=[8,8,8,8,8]",
        "model.encoder.hidden_size=16",
        "model.encoder.num_layers=2",
        "model.encoder.num_heads=2",
        "model.encoder.feed_forward_size=32",
        "model.encoder.position_kernel=8",
        "model.encoder.position_groups=4",
    )


class SpellingEncoder(nn.Module):
    """Frames are one-hot: the symbol whose amplitude the frame has."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            conv_kernels=(FIELD,),
            conv_strides=(HOP,),
            hop=HOP,
            receptive_field=FIELD,
            hidden_size=len(SYMBOLS),
            num_layers=0,
        )

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
def write_run(tmp_path, small_config) -> Callable[..., Path]:
    """A run folder with a checkpoint of random weights: a small encoder and the head that is named."""

    def write(name: str, *, pre_norm: bool = False, conv_init: str = "kaiming", **options) -> Path:
        torch.manual_seed(0)
        shape = {"conv_channels": (16,) * 7, "hidden_size": 32, "pre_norm": pre_norm, "conv_init": conv_init}
        encoder = Encoder(small_config(**shape))
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
def classify_options() -> dict:
    """The options of a small task=speaker."""
    return dict(CLASSIFY_OPTIONS)


@pytest.fixture(scope="session")
def ctc_options() -> dict:
    """The options of a small CTC head over a and b, which drops and hides nothing."""
    return {**CTC_OPTIONS, "vocabulary": [BLANK, "a", "b"], "dropout": 0.0, "mask_start_probability": 0.0}


@pytest.fixture
def ctc_run(write_run) -> Path:
    """A run folder of task=ctc with random weights."""
    return write_run("ctc", **CTC_OPTIONS)


@pytest.fixture
def speaker_run(write_run) -> Path:
    """A run folder of task=speaker with random weights."""
    return write_run("classify", **CLASSIFY_OPTIONS)


@pytest.fixture(scope="session")
def small_config() -> Callable[..., EncoderConfig]:
    """`small_config(**changes)`: an encoder with the standard front end (receptive field 400, hop 320), else small."""

    def make(**changes) -> EncoderConfig:
        options = {
            "conv_channels": (8,) * 7,
            "conv_kernels": (10, 3, 3, 3, 3, 2, 2),
            "conv_strides": (5, 2, 2, 2, 2, 2, 2),
            "conv_norm": "group",
            "conv_bias": False,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "feed_forward_size": 32,
            "position_kernel": 8,
            "position_groups": 4,
            "pre_norm": False,
        }
        return EncoderConfig(**options | changes)

    return make


@pytest.fixture(scope="session")
def wav2vec2_options() -> Callable[..., dict]:
    """`wav2vec2_options(**changes)`: the keyword arguments of a small wav2vec 2.0 objective."""

    def make(**changes) -> dict:
        options = {
            "num_groups": 2,
            "num_codewords": 5,
            "code_size": 8,
            "final_size": 8,
            "num_distractors": 10,
            "temperature": 0.1,
            "diversity_weight": 0.1,
            "feature_penalty": 10.0,
            "feature_gradient_scale": 0.1,
            "feature_dropout": 0.0,
            "mask_start_probability": 0.065,
            "mask_span": 10,
            "mask_min_spans": 2,
            "gumbel_start": 2.0,
            "gumbel_end": 0.5,
            "gumbel_decay": None,
        }
        return options | changes

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """`make_batch(lengths, seed=0, targets=None, padding=0.0)`: clips of seeded noise, so many samples each."""

    def make(
        lengths: Sequence[int], *, seed: int = 0, targets: list[Tensor] | None = None, padding: float = 0.0
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        waveforms = torch.full((len(lengths), max(lengths)), padding)
        for waveform, length in zip(waveforms, lengths, strict=True):
            waveform[:length] = 0.1 * torch.randn(length, generator=generator)
        return Batch(
            waveforms=waveforms,
            lengths=torch.tensor(lengths),
            seeds=[1000 * seed + i for i in range(len(lengths))],
            utterances=[Utterance(str(i), Path(f"{i}.wav"), n / RATE) for i, n in enumerate(lengths)],
            targets=targets,
        )

    return make


@pytest.fixture
def write_corpus(tmp_path) -> Callable[..., Path]:
    """`write_corpus(name, seconds=…)`: tones in noise as WAV files, and their manifest, which it returns.

    Clip i is called i, says "ab" or "ba", and is spoken by ann or bob, in one of two languages.
    """

    def write(name: str = "train", *, seconds: Sequence[float] = (0.5, 0.6, 0.4, 0.8), **columns: str) -> Path:
        random = np.random.default_rng(len(name))
        rows = []
        for i, duration in enumerate(seconds):
            time = np.arange(round(duration * RATE)) / RATE
            tone = np.sin(2 * np.pi * (200 + 150 * i) * time) * np.sin(2 * np.pi * 3 * time)
            waveform = 0.2 * tone + 0.02 * random.standard_normal(len(time))
            save(tmp_path / name / f"{i}.wav", torch.from_numpy(waveform))
            row = {"id": str(i), "text": ("ab", "ba")[i % 2], "speaker": ("ann", "bob")[i % 2]}
            row |= {"language": ("x", "y")[i // 2 % 2]} | columns
            rows.append({"audio_filepath": f"{name}/{i}.wav", "duration": duration} | row)
        manifest.write(tmp_path / f"{name}.jsonl", rows)
        return tmp_path / f"{name}.jsonl"

    return write


@pytest.fixture(scope="session")
def transformers_weights() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors of transformers' Wav2Vec2Model or ForPreTraining (weights or gradients), under our names."""

    def rename(name: str) -> str:
        for pattern, replacement in TRANSFORMERS_NAMES:
            name, found = re.subn(f"^{pattern}$", replacement, name)
            if found:
                return name
        raise KeyError(name)

    def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {name.removeprefix("wav2vec2."): tensor for name, tensor in tensors.items()}
        for name in [name for name in tensors if ".q_proj." in name]:
            parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            tensors[name.replace("q_proj", "qkv")] = torch.cat(parts)
        ours = {rename(name): tensor for name, tensor in tensors.items()}
        if (codebook := ours.get("objective.quantizer.codebook")) is not None:
            ours["objective.quantizer.codebook"] = codebook.unflatten(1, (2, -1)).squeeze(0)
        return ours

    return translate


TRANSFORMERS_NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.(\w+)", r"encoder.feature_encoder.layers.\1.\2"),
    (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(\w+)", r"encoder.feature_encoder.layers.\1.norm.\2"),
    (r"feature_projection\.layer_norm\.(\w+)", r"encoder.feature_norm.\1"),
    (r"feature_projection\.projection\.(\w+)", r"encoder.projection.\1"),
    (r"masked_spec_embed", r"encoder.mask_vector"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", r"encoder.context.positions.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", r"encoder.context.positions.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.bias", r"encoder.context.positions.bias"),
    (r"encoder\.layer_norm\.(\w+)", r"encoder.context.norm.\1"),
    (r"encoder\.layers\.(\d+)\.attention\.qkv\.(\w+)", r"encoder.context.layers.\1.attention.qkv.\2"),
    (r"encoder\.layers\.(\d+)\.attention\.out_proj\.(\w+)", r"encoder.context.layers.\1.attention.out.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm\.(\w+)", r"encoder.context.layers.\1.attention_norm.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(\w+)", r"encoder.context.layers.\1.feed_in.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(\w+)", r"encoder.context.layers.\1.feed_out.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", r"encoder.context.layers.\1.feed_norm.\2"),
    (r"quantizer\.weight_proj\.(\w+)", r"objective.quantizer.projection.\1"),
    (r"quantizer\.codevectors", r"objective.quantizer.codebook"),
    (r"project_hid\.(\w+)", r"objective.project_context.\1"),
    (r"project_q\.(\w+)", r"objective.project_target.\1"),
)
