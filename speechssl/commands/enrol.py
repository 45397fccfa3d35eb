"""Enrol voices from recordings of each speaker, so that identify names them, and calls others unknown.

Examples:
  speechssl enrol checkpoint=runs/speaker data.enrol=family.jsonl out=family
  speechssl identify checkpoint=runs/speaker voices=family audio=doorbell.wav

data.enrol is a manifest whose clips have the column `speaker` (or that which the checkpoint tells apart): any
speakers, not those of the training. A voice is the mean of its clips' embeddings; more clips, from several
recordings, make it steadier. What likeness is enough is fitted to the clips themselves, each against the voices
without it, unless calibration= gives the calibration.json of `speechssl evaluate`: it is rougher, being fitted to
pairs of clips, but takes no second clip of anyone. cohort=, a manifest of other speakers, has cosines measured against
the nearest cohort_top of its clips (AS-norm), which makes them mean the same for every voice; a calibration.json of
`speechssl evaluate cohort=` brings its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from speechssl import enrolment
from speechssl.config import plain
from speechssl.errors import UserError
from speechssl.evaluation.classification import cohort_of, embed, has_label, open_cohort
from speechssl.identifier import Identifier
from speechssl.inference import load_model
from speechssl.manifest import Manifest

log = logging.getLogger("speechssl")


def run(config: DictConfig) -> None:
    """Enrol as the config says."""
    manifest = Manifest(config.data.enrol)
    manifest.check_files()
    identifier = Identifier(load_model(config.checkpoint, device=config.trainer.device))
    column, path = identifier.model.objective.label_key, config.calibration
    others = open_cohort(config.cohort, beside={"data.enrol": manifest}, column=column)
    if others and path:
        raise UserError("calibration= says already what scores are measured against; drop it, or cohort=")
    given, cohort = enrolment.read_calibration(Path(path), identifier.model) if path else (None, None)

    data = plain(config.data)
    del data["enrol"]
    if others:
        cohort = cohort_of(identifier, others, top=config.cohort_top, **data)
    done, embeddings = embed(identifier, manifest, check=lambda utterance: has_label(utterance, column), **data)
    speakers = [utterance.label(column) for utterance in done.utterances]
    options = {"p_target": config.p_target, "calibration": given, "cohort": cohort}
    found = enrolment.enrol(embeddings, speakers, model=identifier.model, **options)
    found.save(Path(config.out))
    if found.calibration.doubt:
        log.warning("%s", found.calibration.doubt)
    for name, count in zip(found.names, found.num_clips, strict=True):
        print(f"{name}\t{count}")
