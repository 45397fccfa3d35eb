"""Say who speaks in a recording or in every recording of a folder, or whether two recordings are one voice.

Examples:
  speechssl identify checkpoint=runs/speaker audio=hello.wav
  speechssl identify checkpoint=runs/speaker audio=recordings
  speechssl identify checkpoint=runs/speaker voices=family audio=hello.wav
  speechssl identify checkpoint=runs/speaker audio=hello.wav other=goodbye.wav

Prints `speaker<TAB>score`, the score being the probability among the speakers that the checkpoint knows; for a
folder with the path before it, sorted by path. A long recording counts as the mean of its minutes. A checkpoint of
task=classify gives its labels in the place of speakers. With voices=, which `speechssl enrol` wrote, prints
`name<TAB>cosine<TAB>probability`, the name being `unknown` where the recording is more likely by none of them:
without voices= a stranger gets the name of a speaker of the training. With other= prints `same` or `different`, the
cosine of the two recordings' embeddings and the probability that they are one voice; that takes the calibration.json of
`speechssl evaluate` (the newest one below the run's folder, unless calibration= names one): without it there is the
cosine alone. Probabilities are for the share of pairs by one speaker that the calibration is for, 5 % after evaluate
and 50 % after enrol unless these were told another; p_target=0.5 asks without a suspicion. Where evaluate or enrol had
a cohort=, its score (AS-norm) stands in the cosine's place.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from speechssl.enrolment import Voices, read_calibration
from speechssl.errors import UserError
from speechssl.evaluation.classification import CALIBRATION
from speechssl.evaluation.cohort import Cohort, likeness
from speechssl.evaluation.verification import Calibration
from speechssl.identifier import Identifier
from speechssl.inference import load_model, recordings

log = logging.getLogger("speechssl")


def run(config: DictConfig) -> None:
    """Identify or compare as the config says."""
    is_folder = Path(config.audio).is_dir()
    if config.other is not None and (is_folder or Path(config.other).is_dir()):
        raise UserError("other= compares two recordings, so audio= and other= must both be files")
    if config.voices and (config.other is not None or config.calibration):
        raise UserError("voices= names recordings by its own calibration; drop it, or other= and calibration=")
    if config.other is None and (config.calibration or (config.p_target and not config.voices)):
        raise UserError("calibration= and p_target= are for two recordings, or p_target= for voices=; give other=")
    paths = recordings(config.audio)
    identifier = Identifier(load_model(config.checkpoint, device=config.trainer.device))
    voices = Voices.load(Path(config.voices), identifier.model) if config.voices else None
    if voices:
        voices = replace(voices, calibration=_at_prior(config, voices.calibration))
    if config.other is not None:
        compare(config, identifier)
        return
    for path, embedding in identifier.embed_files(paths, batch_seconds=config.data.batch_seconds):
        if voices:
            match = voices.match(embedding.cpu().numpy())
            line = (match.name, f"{match.score:.4f}", f"{match.probability:.4f}")
        else:
            [found] = identifier.classify(embedding[None])
            line = (found.label, f"{found.score:.4f}")
        print(*([path] if is_folder else []), *line, sep="\t")


def compare(config: DictConfig, identifier: Identifier) -> None:
    """Print whether two recordings are one voice."""
    one, other = identifier.embed_pair(config.audio, config.other)
    calibration, cohort = _calibration(config, identifier)
    [score] = likeness(one, other[None], cohort)
    if calibration is None:
        log.warning(
            "no probability: it takes a calibration.json, which `speechssl evaluate checkpoint=%s data.test=...` "
            "writes; give it as calibration=",
            config.checkpoint,
        )
        print(f"{score:.4f}")
        return
    probability = _at_prior(config, calibration).probability(score)
    print("same" if probability >= 0.5 else "different", f"{score:.4f}", f"{probability:.4f}", sep="\t")


def _at_prior(config: DictConfig, calibration: Calibration) -> Calibration:
    """The calibration at p_target=; says so if nothing could pass then."""
    if config.p_target is not None:
        calibration = replace(calibration, p_target=config.p_target)
    if calibration.doubt:
        log.warning("%s", calibration.doubt)
    return calibration


def _calibration(config: DictConfig, identifier: Identifier) -> tuple[Calibration | None, Cohort | None]:
    """That of calibration=, or the newest below the run's folder, and the cohort that it is for."""
    if config.calibration:
        return read_calibration(Path(config.calibration), identifier.model)
    source = identifier.model.source
    run = source.parent.parent if source.parent.name == "checkpoints" else source
    found = sorted(run.glob(f"*/{CALIBRATION}"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None, None
    log.info("calibration of %s", found[-1])
    return read_calibration(found[-1], identifier.model)
