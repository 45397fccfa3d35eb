"""Read a corpus and write its manifests: OUT/{train,valid,test}.jsonl, as the corpus has them.

A manifest has one line for each clip: its audio file, its duration in seconds and, where the corpus has
them, its transcript and its speaker. Audio stays where it is. Files that cannot be used are named and left
out.

Examples:
  speechssl prepare corpus=folder corpus.root=RECORDINGS out=DATA
  speechssl prepare corpus=folder corpus.root=RECORDINGS corpus.speaker_level=1 out=DATA
  speechssl prepare corpus=fsdd corpus.root=free-spoken-digit-dataset out=DATA
  speechssl prepare corpus=librispeech corpus.root=LibriSpeech corpus.test=[test-other] out=DATA
  speechssl prepare corpus=synthetic corpus.num_train=500 out=DATA
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from speechssl.config import build


def run(config: DictConfig) -> None:
    """Writes the manifests of config.corpus into config.out."""
    build(config.corpus, out=Path(config.out))
