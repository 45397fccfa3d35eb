"""Enrolled voices: the mean direction of each speaker's embeddings, and what a cosine to it means.

A folder holds voices.safetensors (`centroids` float32 [voices, E]) and voices.json: names, clips a voice, the
calibration, and the fingerprint of the model, since embeddings of another model mean something else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from speechssl.errors import UserError
from speechssl.evaluation.verification import Calibration, calibrate
from speechssl.inference import SpeechModel
from speechssl.training.checkpoint import read_json, read_tensors
from speechssl.training.files import write_json

UNKNOWN = "unknown"
FORMAT = "speechssl voices"


@dataclass(frozen=True)
class Match:
    """The nearest voice to a clip.

    Attributes:
        name: its name, or "unknown" where another speaker is likelier.
        score: cosine to it.
        probability: that the clip is by this speaker, at the calibration's prior.
    """

    name: str
    score: float
    probability: float


@dataclass(frozen=True)
class Voices:
    """Voices that can be told.

    Attributes:
        names: one a voice.
        num_clips: that each was enrolled with.
        centroids: float32 [voices, E], of length 1.
        calibration: from a cosine to a probability.
        fingerprint: of the model.
    """

    names: list[str]
    num_clips: list[int]
    centroids: np.ndarray
    calibration: Calibration
    fingerprint: str

    def match(self, embedding: np.ndarray) -> Match:
        """The nearest voice to a clip's embedding [E]."""
        scores = self.centroids @ (embedding / max(float(np.linalg.norm(embedding)), 1e-12))
        best = int(scores.argmax())
        probability = self.calibration.probability(float(scores[best]))
        return Match(self.names[best] if probability >= 0.5 else UNKNOWN, float(scores[best]), probability)

    def save(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"centroids": torch.from_numpy(self.centroids)}, folder / "voices.safetensors")
        content = {"format": FORMAT, "names": self.names, "num_clips": self.num_clips, "fingerprint": self.fingerprint}
        write_json(folder / "voices.json", {**content, "calibration": self.calibration.to_dict()})

    @classmethod
    def load(cls, folder: Path, model: SpeechModel) -> Voices:
        """The voices of a folder, which must be of this model.

        Raises:
            UserError: they are not, or the folder holds none.
        """
        content = read_json(folder / "voices.json")
        keys = ("names", "num_clips", "fingerprint", "calibration")
        if content.get("format") != FORMAT or any(key not in content for key in keys):
            raise UserError(f"{folder} holds no voices; give the out= of `speechssl enrol`")
        if content["fingerprint"] != fingerprint(model):
            raise UserError(
                f"{folder} was enrolled with another checkpoint than {model.source}; enrol again with this one"
            )
        centroids = read_tensors(folder / "voices.safetensors")["centroids"].numpy()
        calibration = Calibration.from_dict(content["calibration"], folder / "voices.json")
        return cls(content["names"], content["num_clips"], centroids, calibration, content["fingerprint"])


def enrol(
    embeddings: np.ndarray, speakers: list[str], *, model: SpeechModel, p_target: float, calibration: Calibration | None
) -> Voices:
    """Voices from embeddings float [clips, E] and who speaks in each.

    Without a `calibration` it is fitted to the clips themselves: each against the voice of its speaker's other clips,
    and, as a stranger's would be, against the nearest of the other voices. One that is given keeps its likelihood
    ratio; the prior is `p_target`, the share of recordings that are by an enrolled voice.

    Raises:
        UserError: that takes two voices, one of them with two clips; or a voice is called "unknown".
    """
    if UNKNOWN in speakers:
        raise UserError(f"a voice cannot be called {UNKNOWN!r}, which is what strangers are called; rename it")
    directions = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    names, places, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), directions.shape[1]))
    np.add.at(sums, places, directions)
    if calibration is None:
        if len(names) < 2 or counts.max() < 2:
            raise UserError(
                f"{len(names)} voice(s) with at most {counts.max()} clip(s) each do not say which likeness is enough: "
                "enrol two voices, one with two clips, or give calibration=calibration.json of `speechssl evaluate`"
            )
        calibration = calibrate(*_leave_one_out(directions, places, sums, counts), p_target=p_target)
    calibration = replace(calibration, p_target=p_target, fingerprint=fingerprint(model))
    centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return Voices(names.tolist(), counts.tolist(), centroids.astype(np.float32), calibration, calibration.fingerprint)


def _leave_one_out(
    directions: np.ndarray, places: np.ndarray, sums: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and is_target of every clip: with its own voice, itself left out, and with the nearest other voice.

    The nearest, since `match` asks only for that: the more voices there are, the nearer one comes to a stranger.
    """
    scores, is_target = [], []
    centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    for x, own in zip(directions, places, strict=True):
        scores.append(float(np.delete(centroids @ x, own).max()))
        is_target.append(False)
        if counts[own] > 1:
            rest = sums[own] - x
            scores.append(float(rest @ x / max(np.linalg.norm(rest), 1e-12)))
            is_target.append(True)
    return np.array(scores), np.array(is_target)


def read_calibration(path: Path, model: SpeechModel) -> Calibration:
    """The calibration.json that `speechssl evaluate` wrote of this model.

    Raises:
        UserError: it is none, or of another model, whose scores mean something else.
    """
    found = Calibration.from_dict(read_json(path), path)
    if found.fingerprint not in ("", fingerprint(model)):
        raise UserError(f"{path} was fitted to scores of another checkpoint than {model.source}; evaluate this one")
    return found


def fingerprint(model: SpeechModel) -> str:
    """A short name of the weights of a model."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (model.encoder, model.objective):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
