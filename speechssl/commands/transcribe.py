"""Write down what is said in a recording, or in every recording of a folder.

Examples:
  speechssl transcribe checkpoint=runs/ctc audio=hello.wav
  speechssl transcribe checkpoint=runs/ctc audio=recordings > texts.tsv
  speechssl transcribe checkpoint=runs/ctc audio=hello.wav format=json

Prints the text of a file; for a folder `path<TAB>text`, sorted by path. format=json prints one object a
line, with the words' times (seconds) and confidences.

A recording longer than window_s goes through the model in windows that overlap by twice context_s, in memory that
does not grow with its audio; window_s=null takes it at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from speechssl.config import build
from speechssl.errors import UserError
from speechssl.inference import load_model, recordings
from speechssl.recognizer import Recognizer

FORMATS = ("text", "json")


def run(config: DictConfig) -> None:
    """Transcribe as the config says."""
    if config.format not in FORMATS:
        raise UserError(f"format={config.format} must be {' or '.join(FORMATS)}")
    paths = recordings(config.audio)
    model = load_model(config.checkpoint, device=config.trainer.device)
    recognizer = Recognizer(model, window_s=config.window_s, context_s=config.context_s)
    recognizer.decoder = build(config.decoder, vocabulary=model.objective.vocabulary)
    is_folder = Path(config.audio).is_dir()
    for path, transcript in recognizer.transcripts(paths, batch_seconds=config.data.batch_seconds):
        if config.format == "json":
            row = {"audio_filepath": str(path), **asdict(recognizer.recognition(transcript))}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{path}\t{transcript.text}" if is_folder else transcript.text)
