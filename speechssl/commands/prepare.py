"""Read a corpus and write its manifests: OUT/{train,valid,test}.jsonl, as the corpus has them.

A manifest has one line for each clip: its audio file, its duration in seconds and, where the corpus has
them, its transcript and its speaker. Audio stays where it is, unless shards=true packs it into tar files. Clips that
cannot be used are named and left out; OUT/report.json says what was found. The same command again goes on after an
interruption, and measures only files that are new or have changed.

Examples:
  speechssl prepare corpus=folder corpus.root=RECORDINGS out=DATA
  speechssl prepare corpus=folder corpus.root=RECORDINGS corpus.speaker_level=1 out=DATA
  speechssl prepare corpus=folder corpus.root=BROADCASTS segment=speech segment_s=15 out=DATA    # hours-long files
  speechssl prepare corpus=kaldi corpus.root=data out=DATA shards=true
  speechssl prepare corpus=fsdd corpus.root=free-spoken-digit-dataset out=DATA
  speechssl prepare corpus=librispeech corpus.root=LibriSpeech corpus.test=[test-other] out=DATA
  speechssl prepare corpus=synthetic corpus.num_train=500 out=DATA
"""

from __future__ import annotations

from omegaconf import DictConfig

from speechssl.config import build, plain
from speechssl.corpora.preparing import Options, Preparation
from speechssl.errors import Interrupted


def run(config: DictConfig) -> None:
    """Writes the manifests of config.corpus into config.out."""
    options = plain(config)
    out = options.pop("out")
    del options["corpus"]
    try:
        build(config.corpus, job=Preparation(out, Options(**options)))
    except KeyboardInterrupt:
        raise Interrupted(f"{out}: the preparation was interrupted, and what was measured is kept") from None
