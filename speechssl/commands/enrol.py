"""Enrol voices from recordings of each speaker, so that identify names them, and calls others unknown.

Examples:
  speechssl enrol checkpoint=runs/speaker data.enrol=family.jsonl out=family
  speechssl identify checkpoint=runs/speaker voices=family audio=doorbell.wav

data.enrol is a manifest whose clips have the column `speaker` (or that which the checkpoint tells apart): any
speakers, not those of the training. A voice is the mean of its clips' embeddings; more clips, from several
recordings, make it steadier. What likeness is enough is fitted to the clips themselves, each against the voices
without it, unless calibration= gives the calibration.json of `speechssl evaluate`: it is rougher, being fitted to
pairs of clips, but takes no second clip of anyone.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from speechssl import enrolment
from speechssl.config import plain
from speechssl.evaluation.classification import embed, has_label
from speechssl.identifier import Identifier
from speechssl.inference import load_model
from speechssl.manifest import Manifest


def run(config: DictConfig) -> None:
    """Enrol as the config says."""
    manifest = Manifest(config.data.enrol)
    manifest.check_files()
    identifier = Identifier(load_model(config.checkpoint, device=config.trainer.device))
    path = config.calibration
    given = enrolment.read_calibration(Path(path), identifier.model) if path else None
    column = identifier.model.objective.label_key

    data = plain(config.data)
    del data["enrol"]
    done, embeddings = embed(identifier, manifest, check=lambda utterance: has_label(utterance, column), **data)
    speakers = [str(utterance.fields[column]) for utterance in done.utterances]
    found = enrolment.enrol(embeddings, speakers, model=identifier.model, p_target=config.p_target, calibration=given)
    found.save(Path(config.out))
    for name, count in zip(found.names, found.num_clips, strict=True):
        print(f"{name}\t{count}")
