"""Enrolled voices: the mean direction of each speaker's embeddings, and what a score with it means.

A folder holds voices.safetensors (`centroids` float32 [voices, E]), voices.json: names, clips a voice, the
calibration, and the fingerprint of the model, since embeddings of another model mean something else; and, where
scores are measured against others (AS-norm), their cohort.safetensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from speechssl.errors import UserError
from speechssl.evaluation.cohort import Cohort, as_norm, likeness
from speechssl.evaluation.speaker import directions
from speechssl.evaluation.verification import Calibration, calibrate
from speechssl.inference import SpeechModel
from speechssl.training.checkpoint import read_json, read_tensors
from speechssl.training.files import write_json

UNKNOWN = "unknown"
_ENROL = "give the out= of `speechssl enrol`"
FORMAT = "speechssl voices"


@dataclass(frozen=True)
class Match:
    """The nearest voice to a clip.

    Attributes:
        name: its name, or "unknown" where another speaker is likelier.
        score: cosine to it, or that after AS-norm.
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
        calibration: from a score to a probability.
        fingerprint: of the model.
        cohort: what AS-norm measures scores against; None where they are cosines.
    """

    names: list[str]
    num_clips: list[int]
    centroids: np.ndarray
    calibration: Calibration
    fingerprint: str
    cohort: Cohort | None = None

    def match(self, embedding: np.ndarray) -> Match:
        """The nearest voice to a clip's embedding [E]."""
        scores = likeness(embedding, self.centroids, self.cohort)
        best = int(scores.argmax())
        probability = self.calibration.probability(float(scores[best]))
        return Match(self.names[best] if probability >= 0.5 else UNKNOWN, float(scores[best]), probability)

    def save(self, folder: Path) -> None:
        """Write the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"centroids": torch.from_numpy(self.centroids)}, folder / "voices.safetensors")
        content = {"format": FORMAT, "names": self.names, "num_clips": self.num_clips, "fingerprint": self.fingerprint}
        write_json(folder / "voices.json", {**content, "calibration": self.calibration.to_dict()})
        if self.cohort:
            self.cohort.save(folder)

    @classmethod
    def load(cls, folder: Path, model: SpeechModel) -> Voices:
        """The voices of a folder, which must be of this model.

        Raises:
            UserError: they are not, or the folder holds none.
        """
        content = read_json(folder / "voices.json", instead=_ENROL)
        keys = ("names", "num_clips", "fingerprint", "calibration")
        if content.get("format") != FORMAT or any(key not in content for key in keys):
            raise UserError(f"{folder} holds no voices; {_ENROL}")
        if content["fingerprint"] != fingerprint(model):
            raise UserError(
                f"{folder} was enrolled with another checkpoint than {model.source}; enrol again with this one"
            )
        tensors = read_tensors(folder / "voices.safetensors", instead=_ENROL)
        if set(tensors) != {"centroids"} or tensors["centroids"].shape[:-1] != (len(content["names"]),):
            raise UserError(f"{folder / 'voices.safetensors'} does not hold the voices of voices.json; {_ENROL}")
        centroids = tensors["centroids"].numpy()
        calibration = Calibration.from_dict(content["calibration"], folder / "voices.json")
        cohort = Cohort.load(folder) if calibration.cohort_top else None
        return cls(content["names"], content["num_clips"], centroids, calibration, content["fingerprint"], cohort)


def enrol(
    embeddings: np.ndarray,
    speakers: list[str],
    *,
    model: SpeechModel,
    p_target: float,
    calibration: Calibration | None,
    cohort: Cohort | None = None,
) -> Voices:
    """Voices from embeddings float [clips, E] and who speaks in each.

    Without a `calibration` it is fitted to the clips themselves: each against the voice of its speaker's other clips,
    and, as a stranger's would be, against the nearest of the other voices. One that is given keeps its likelihood
    ratio; the prior is `p_target`, the share of recordings that are by an enrolled voice. With a `cohort` scores are
    those of AS-norm, in a given calibration too.

    Raises:
        UserError: that takes two voices, one of them with two clips; or a voice is called "unknown".
    """
    if UNKNOWN in speakers:
        raise UserError(f"a voice cannot be called {UNKNOWN!r}, which is what strangers are called; rename it")
    unit = directions(embeddings)
    names, places, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    sums = np.zeros((len(names), unit.shape[1]))
    np.add.at(sums, places, unit)
    if calibration is None:
        if len(names) < 2 or counts.max() < 2:
            raise UserError(
                f"{len(names)} voice(s) with at most {counts.max()} clip(s) each do not say which likeness is enough: "
                "enrol two voices, one with two clips, or give calibration=calibration.json of `speechssl evaluate`"
            )
        calibration = calibrate(*_leave_one_out(unit, places, sums, counts, cohort), p_target=p_target)
        calibration = replace(calibration, cohort_top=cohort.top if cohort else 0)
    calibration = replace(calibration, p_target=p_target, fingerprint=fingerprint(model))
    centroids = directions(sums).astype(np.float32)
    return Voices(names.tolist(), counts.tolist(), centroids, calibration, calibration.fingerprint, cohort)


def _leave_one_out(
    unit: np.ndarray, places: np.ndarray, sums: np.ndarray, counts: np.ndarray, cohort: Cohort | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and is_target of every clip: with its own voice, itself left out, and with the nearest other voice.

    The nearest, since `match` asks only for that: the more voices there are, the nearer one comes to a stranger.
    """
    centroids, clips = directions(sums), np.arange(len(unit))
    shared = np.flatnonzero(counts[places] > 1)  # clips whose voice has another
    rest = directions(sums[places[shared]] - unit[shared])
    others, own = unit @ centroids.T, np.einsum("ce,ce->c", unit[shared], rest)
    if cohort:
        of_clips = cohort.statistics(unit)
        others = as_norm(others, of_clips[:, :, None], cohort.statistics(centroids)[:, None])
        own = as_norm(own, of_clips[:, shared], cohort.statistics(rest))
    others[clips, places] = -np.inf
    return np.concatenate([others.max(1), own]), np.arange(len(clips) + len(shared)) >= len(clips)


def read_calibration(path: Path, model: SpeechModel) -> tuple[Calibration, Cohort | None]:
    """The calibration.json that `speechssl evaluate` wrote of this model, and the cohort beside it if it has one.

    Raises:
        UserError: it is none, or of another model, whose scores mean something else.
    """
    advice = "give the calibration.json that `speechssl evaluate` wrote"
    found = Calibration.from_dict(read_json(path, instead=advice), path)
    if found.fingerprint not in ("", fingerprint(model)):
        raise UserError(f"{path} was fitted to scores of another checkpoint than {model.source}; evaluate this one")
    return found, Cohort.load(path.parent) if found.cohort_top else None


def fingerprint(model: SpeechModel) -> str:
    """A short name of the weights of a model."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (model.encoder, model.objective):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
