"""What a run's model makes of some recordings: their spectrogram, what was hidden, and what the model answered."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from speechssl import audio
from speechssl.data.text import BLANK_INDEX
from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.inference import SpeechModel, load_model
from speechssl.manifest import Manifest, ManifestSet
from speechssl.models.spectrum import LogMel
from speechssl.objectives.common import draw_masks
from speechssl.reporting import charts
from speechssl.rng import derive_seed
from speechssl.types import Batch, Utterance

log = logging.getLogger("speechssl")

# Seconds of a clip that are drawn at most, and mel bands.
LONGEST_S, BINS = 8.0, 64


@dataclass
class View:
    """A clip, its drawing, and what it shows, in words."""

    name: str
    drawing: str
    says: str


def listen(run_dir: Path, settings: dict[str, Any], *, count: int) -> list[View]:
    """Views of some clips of the validation manifest (else of the training's), evenly spaced; [] where one is gone."""
    try:
        model = load_model(str(run_dir), device="cpu")
        where = settings.get("data.valid") or settings["data.train"]
        manifest = ManifestSet([Manifest(path) for path in ([where] if isinstance(where, str) else where)])
        chosen = np.linspace(0, len(manifest) - 1, num=min(count, len(manifest)), dtype=int)
        return [_view(model, manifest[int(i)]) for i in chosen]
    except (UserError, KeyError) as error:
        log.warning("no clips are shown for %s: %s", run_dir, error)
        return []


@torch.inference_mode()
def _view(model: SpeechModel, utterance: Utterance) -> View:
    waveform = audio.load(
        utterance.audio_path,
        sample_rate=model.sample_rate,
        offset_s=utterance.offset_s,
        duration_s=min(utterance.duration_s, LONGEST_S),
        byte_range=utterance.byte_range,
        channel=utterance.channel,
    )
    if model.normalize:
        waveform = audio.normalize_waveform(waveform)
    lengths = torch.tensor([len(waveform)])
    batch = Batch(waveform[None], lengths, [derive_seed("report", utterance.id)], [utterance])
    encoder, objective = model.encoder, model.objective
    frames = encoder.feature_encoder.num_frames(len(waveform))
    mel = LogMel(
        hop=encoder.config.hop, field=encoder.config.receptive_field, sample_rate=model.sample_rate, num_bins=BINS
    )
    energies = mel(batch.waveforms, lengths, [frames]).flatten(0, 1).T.numpy()
    picture: dict[str, Any] = {"hop_s": mel.shift / model.sample_rate}
    if isinstance(objective, CTCObjective):
        best = objective.logits(encoder(batch.waveforms, lengths)).argmax(-1)
        picture["symbols"] = _symbols(best, objective.vocabulary, model.frame_s)
        says = f"read: {objective.vocabulary.decode(torch.unique_consecutive(best).tolist()) or '(only blanks)'}"
    elif hasattr(objective, "mask_options"):
        masked = draw_masks(batch, [frames], objective.mask_options)[0].numpy()
        right = _right(objective, encoder, batch, masked)
        picture |= {"masked": masked, "right": right}
        says = f"{masked.mean():.0%} hidden" + (
            "" if right is None else f", {right.sum() / masked.sum():.0%} told apart"
        )
    else:
        says = utterance.text or ""
    return View(utterance.id, charts.spectrogram(energies, label=f"spectrogram of {utterance.id}", **picture), says)


def _symbols(best: torch.Tensor, vocabulary, frame_s: float) -> list[tuple[float, str]]:
    """(seconds, symbol) of a greedy path, where each symbol begins."""
    values, counts = torch.unique_consecutive(best, return_counts=True)
    starts = counts.cumsum(0) - counts
    return [
        ((int(start) + 0.5) * frame_s, vocabulary.decode([int(value)]))
        for value, start in zip(values, starts, strict=True)
        if value != BLANK_INDEX
    ]


def _right(objective, encoder, batch: Batch, masked: np.ndarray) -> np.ndarray | None:
    """bool [T]: at masked frames of wav2vec 2.0, whether the true target is the nearest of the clip's masked ones."""
    if not (hasattr(objective, "project_context") and hasattr(objective, "project_target") and masked.any()):
        return None
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(objective, name).register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
        for name in ("project_context", "project_target")
    ]
    objective(encoder, batch)
    for hook in hooks:
        hook.remove()
    sides = (seen[f"project_{side}"][: masked.sum()].float() for side in ("context", "target"))
    contexts, targets = (F.normalize(side, dim=-1) for side in sides)
    likeness = (contexts @ targets.T).masked_fill(targets @ targets.T > 0.9999, -torch.inf)  # the same codes
    answers = (contexts * targets).sum(-1) >= likeness.amax(1)
    right = np.zeros_like(masked)
    right[np.flatnonzero(masked)] = answers.numpy()
    return right
