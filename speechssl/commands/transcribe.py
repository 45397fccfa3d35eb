"""Write down what is said in a recording, or in every recording of a folder.

Examples:
  speechssl transcribe checkpoint=runs/ctc audio=hello.wav
  speechssl transcribe checkpoint=runs/ctc audio=recordings > texts.tsv
  speechssl transcribe checkpoint=runs/ctc audio=recordings format=srt out=subtitles jobs=4
  speechssl transcribe checkpoint=runs/ctc audio=hello.wav decoder=beam decoder.lm=words.arpa format=json
  speechssl transcribe checkpoint=runs/ctc audio=-    # a file from standard input

Prints the text of a file; for a folder `path<TAB>text`, sorted by path. format=json prints one object a line, with the
words' times (seconds) and confidences; ctm a line a word; srt, vtt (subtitles) and textgrid (Praat) a file's whole
content, and of a folder one file each into out=. audio=- reads a file from standard input. jobs=N transcribes so many
files at a time.

A recording of any length is cut at its pauses into stretches like the clips of the training, and goes through the
model in memory that does not grow with its audio; window_s=null takes it at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from speechssl import cpu
from speechssl.config import build
from speechssl.decoding.formats import FORMATS, LINES, names_of
from speechssl.errors import UserError
from speechssl.inference import load_model, recordings
from speechssl.recognizer import Recognition, Recognizer

log = logging.getLogger("speechssl")

_worker: Recognizer | UserError | None = None  # of a process of jobs=N; why it has none


def run(config: DictConfig) -> None:
    """Transcribe as the config says."""
    if config.format not in FORMATS:
        raise UserError(f"format={config.format} must be {', '.join(list(FORMATS)[:-1])} or {list(FORMATS)[-1]}")
    if config.audio == "-":
        with tempfile.TemporaryDirectory(prefix="speechssl") as folder:
            _transcribe(config, [_standard_input(Path(folder))], is_folder=False)
        return
    _transcribe(config, recordings(config.audio), is_folder=Path(config.audio).is_dir())


def _transcribe(config: DictConfig, paths: list[Path], *, is_folder: bool) -> None:
    if is_folder and config.format not in LINES and config.out is None:
        raise UserError(f"format={config.format} of a folder is a file for each recording: give out=DIR")
    form, ending = FORMATS[config.format]
    names = names_of(paths, Path(config.audio) if is_folder else paths[0].parent)
    for path, recognition in _recognize(config, paths):
        if config.out is not None:
            _write(_place(config, path, ending, is_folder=is_folder), form(path, names[path], recognition))
        elif config.format == "text" and is_folder:
            print(f"{path}\t{recognition.text}", flush=True)
        else:
            sys.stdout.write(form(path, names[path], recognition))
            sys.stdout.flush()


def _recognize(config: DictConfig, paths: list[Path]) -> Iterator[tuple[Path, Recognition]]:
    """What each file says, in their order."""
    if config.jobs == 1 or len(paths) == 1:
        recognizer = _recognizer(config)
        for path, transcript in recognizer.transcripts(paths, batch_seconds=config.data.batch_seconds):
            yield path, recognizer.recognition(transcript)
        return
    # New processes, since torch's threads and a GPU do not survive a fork.
    context, threads = multiprocessing.get_context("spawn"), max((os.cpu_count() or 1) // config.jobs, 1)
    unusable = []
    with ProcessPoolExecutor(
        config.jobs, mp_context=context, initializer=_start_worker, initargs=(OmegaConf.to_yaml(config), threads)
    ) as pool:
        try:
            for path, found in zip(paths, pool.map(_recognize_one, paths), strict=True):
                if isinstance(found, Recognition):
                    yield path, found
                else:
                    log.warning("%s", found)
                    unusable.append(found)
        except BrokenProcessPool:
            raise UserError(
                f"a process of jobs={config.jobs} ended, perhaps for want of memory: give fewer jobs"
            ) from None
    if unusable:
        raise UserError(f"{len(unusable)} of {len(paths)} files cannot be used, the first: {unusable[0]}")


def _recognizer(config: DictConfig) -> Recognizer:
    model = load_model(config.checkpoint, device=config.trainer.device)
    cpu.tune(model.device)
    recognizer = Recognizer(model, window_s=config.window_s, context_s=config.context_s)
    recognizer.decoder = build(config.decoder, vocabulary=recognizer.model.objective.vocabulary)
    return recognizer


def _start_worker(config: str, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    try:
        _worker = _recognizer(OmegaConf.create(config))
    except UserError as error:  # which would be lost with the process
        _worker = error


def _recognize_one(path: Path) -> Recognition | str:
    """What a file says, or why it cannot be used."""
    if isinstance(_worker, UserError):
        raise _worker
    try:
        [(_, transcript)] = _worker.transcripts([path], batch_seconds=0.0)
    except UserError as error:
        return str(error)
    return _worker.recognition(transcript)


def _standard_input(folder: Path) -> Path:
    """Standard input as a file, since audio is read from several places."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("audio=- reads standard input, and there is none: give a file after <, or pipe one in")
    path = folder / "standard input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _place(config: DictConfig, path: Path, ending: str, *, is_folder: bool) -> Path:
    """Where a file's transcript goes: below out=, as the file lies below the folder."""
    relative = path.relative_to(config.audio) if is_folder else Path(path.name)
    return Path(config.out) / relative.with_name(relative.name + ending)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="\n")
