"""Loss curves of 20 steps, pretraining and fine-tuning, on seeded tones: what a refactor must not change.

Write them anew, after a change that is meant to change them, and say why in the commit:

    .venv/bin/python tools/golden.py

Everything random is drawn in ways that give the same numbers on any CPU (no dropout, audio from numpy), and the model
is set here, so that configs/ can change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from speechssl.config import objective_class
from speechssl.data.text import BLANK
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.training.checkpoint import build_objective
from speechssl.training.optim import build_optimizer
from speechssl.training.trainer import Trainer, TrainerOptions
from speechssl.types import Batch, Utterance

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "losses.json"
STEPS = 20
SECONDS = (1.1, 1.1, 0.9, 0.7)

ENCODER = EncoderConfig(
    conv_channels=(16,) * 7,
    conv_kernels=(10, 3, 3, 3, 3, 2, 2),
    conv_strides=(5, 2, 2, 2, 2, 2, 2),
    conv_norm="group",
    conv_bias=False,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    feed_forward_size=64,
    position_kernel=16,
    position_groups=4,
    pre_norm=False,
    layer_drop=0.1,
)

MASK = {"mask_start_probability": 0.065, "mask_span": 10, "mask_min_spans": 2}
TEACHER = {
    "top_layers": 2,
    "decoder_size": 32,
    "teacher_memory": (0.1, 0.5),
    "teacher_anneal": 0.5,
    "feature_gradient_scale": 1.0,
}
VIEWS = {"sample_rate": 16_000, "crop_s": 0.4, "noise_snr_db": (10.0, 40.0), "feature_gradient_scale": 1.0}

OBJECTIVES = {
    "wav2vec2": {
        "num_groups": 2,
        "num_codewords": 20,
        "code_size": 16,
        "final_size": 16,
        "num_distractors": 20,
        "temperature": 0.1,
        "diversity_weight": 0.1,
        "feature_penalty": 10.0,
        "feature_gradient_scale": 0.1,
        "feature_dropout": 0.0,
        **MASK,
        "gumbel_start": 2.0,
        "gumbel_end": 0.5,
        "gumbel_decay": None,
    },
    "hubert": {
        "num_clusters": 12,
        "labels": None,
        "cluster_hours": 1.0,
        "logits": "cosine",
        "final_size": 16,
        "temperature": 0.1,
        "unmasked_weight": 0.5,
        "feature_gradient_scale": 0.1,
        **MASK,
    },
    "best_rq": {
        "sample_rate": 16_000,
        "num_codewords": 32,
        "code_size": 8,
        "logits": "linear",
        "final_size": 16,
        "temperature": 0.1,
        "unmasked_weight": 0.0,
        "feature_gradient_scale": 1.0,
        **MASK,
    },
    "data2vec": {"num_masks": 1, "decoder_layers": 0, **TEACHER, **MASK},
    # A teacher that hardly moves: 20 steps are too few to follow one with a new decoder.
    "data2vec2": {"num_masks": 2, "decoder_layers": 2, **TEACHER, **MASK, "teacher_memory": (50.0, 100.0)},
    "dinosr": {
        "top_layers": 2,
        "num_codewords": 16,
        "codebook_decay": 0.9,
        "teacher_memory": (0.1, 0.5),
        "teacher_anneal": 0.5,
        "feature_gradient_scale": 1.0,
        **MASK,
    },
    "wav2vec": {"num_steps": 4, "num_distractors": 5, "feature_gradient_scale": 1.0},
    "cpc": {"num_steps": 4, "num_distractors": 5, "feature_gradient_scale": 1.0},
    "apc": {"sample_rate": 16_000, "num_steps": 3, "feature_gradient_scale": 1.0},
    "reconstruction": {
        "sample_rate": 16_000,
        "mode": "masked",
        "noise_snr_db": (0.0, 20.0),
        "overlap_probability": 0.5,
        "overlap_snr_db": (-5.0, 10.0),
        "band_width": 16,
        "feature_gradient_scale": 1.0,
        **MASK,
    },
    "simclr": {"final_size": 16, "temperature": 0.1, **VIEWS},
    "byol": {
        "teacher": "ema",
        "predictor": "mlp",
        "stop_gradient": True,
        "final_size": 16,
        "correlation_decay": 0.5,
        "correlation_eps": 0.3,
        "variance_weight": 0.5,
        "covariance_weight": 0.05,
        "teacher_memory": (0.1, 0.5),
        "teacher_anneal": 0.5,
        **VIEWS,
    },
    "pretext": {"sample_rate": 16_000, "feature_gradient_scale": 1.0},
    "ctc": {
        "vocabulary": [BLANK, "a", "b", "c"],
        "lowercase": False,
        "dropout": 0.0,
        "mask_start_probability": 0.05,
        "mask_span": 5,
        "freeze_feature_encoder": True,
        "freeze_encoder": 0.2,
    },
}
OBJECTIVES["multi"] = {
    "parts": ["best_rq", "pretext"],
    "weights": [1.0, 0.5],
    "settings": {name: OBJECTIVES[name] for name in ("best_rq", "pretext")},
}


def batches(sample_rate: int = 16_000) -> Iterator[Batch]:
    """Batches without end: modulated tones in noise, other ones at each step, with labels."""
    step = 0
    while True:
        random = np.random.default_rng(step)
        waveforms = np.zeros((len(SECONDS), round(max(SECONDS) * sample_rate)), dtype=np.float32)
        lengths = [round(seconds * sample_rate) for seconds in SECONDS]
        for waveform, length in zip(waveforms, lengths, strict=True):
            time = np.arange(length) / sample_rate
            pitch, rhythm = random.uniform(100, 1000), random.uniform(2, 6)
            tone = np.sin(2 * np.pi * pitch * time) * np.sin(2 * np.pi * rhythm * time)
            waveform[:length] = 0.2 * tone + 0.02 * random.standard_normal(length)
        yield Batch(
            waveforms=torch.from_numpy(waveforms),
            lengths=torch.tensor(lengths),
            seeds=[100 * step + clip for clip in range(len(lengths))],
            utterances=[Utterance(str(clip), Path(f"{clip}.wav"), SECONDS[clip]) for clip in range(len(lengths))],
            targets=[torch.tensor([1, 2, 1, 3])] * len(lengths),
        )
        step += 1


def curve(name: str) -> list[float]:
    """The loss at each step of an objective's run."""
    torch.manual_seed(0)
    config = replace(ENCODER, **getattr(objective_class(name), "encoder_needs", {}))
    encoder = Encoder(config)
    objective = build_objective({"name": name, **OBJECTIVES[name]}, config)
    if name == "hubert":
        objective.stored = lambda _utterance, _start_s, num_frames: torch.arange(num_frames) // 5
    model = nn.ModuleDict({"encoder": encoder, "objective": objective})
    trainer = Trainer(
        encoder=encoder,
        objective=objective,
        loader=None,
        valid_loader=None,
        optimizer=build_optimizer(model.named_parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        schedule={"warmup": 0.2, "hold": 0.0, "decay": "linear", "floor": 0.1},
        run_dir=Path(),
        run_config="",
        config={"sample_rate": 16_000},
        options=TrainerOptions(
            max_steps=STEPS,
            accumulate=2,
            clip_norm=5.0,
            log_every=1,
            valid_every=1,
            checkpoint_every=1,
            keep_last=1,
            best="loss",
            max_bad_steps=1,
            seed=0,
            device="cpu",
            precision="fp32",
            resume="never",
        ),
    )
    stream, losses = batches(), []
    for trainer.step in range(1, STEPS + 1):
        trainer.averages.sums.clear()
        trainer.run_step(stream)
        means = trainer.averages.means()
        terms = [key.removeprefix("weight_") for key in means if key.startswith("weight_")]
        losses.append(round(sum(means[f"weight_{term}"] * means[f"loss_{term}"] for term in terms), 6))
    return losses


if __name__ == "__main__":
    curves = {name: curve(name) for name in OBJECTIVES}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    for objective_name, found in curves.items():
        print(objective_name, found[0], "->", found[-1])
