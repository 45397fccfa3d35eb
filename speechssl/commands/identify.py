"""Say who speaks in a recording or in every recording of a folder, or how alike two voices are.

Examples:
  speechssl identify checkpoint=runs/speaker audio=hello.wav
  speechssl identify checkpoint=runs/speaker audio=recordings
  speechssl identify checkpoint=runs/speaker audio=hello.wav other=goodbye.wav

Prints `speaker<TAB>score`, the score being the probability among the speakers that the checkpoint knows;
for a folder with the path before it, sorted by path. With other= prints the cosine of the two recordings'
embeddings, at most 1. A checkpoint of task=classify gives its labels in the place of speakers.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from speechssl.errors import UserError
from speechssl.identifier import Identifier
from speechssl.inference import load_model, recordings


def run(config: DictConfig) -> None:
    """Identify or compare as the config says."""
    is_folder = Path(config.audio).is_dir()
    if config.other is not None and (is_folder or Path(config.other).is_dir()):
        raise UserError("other= compares two recordings, so audio= and other= must both be files")
    paths = recordings(config.audio)
    model = load_model(config.checkpoint, device=config.trainer.device)
    identifier = Identifier(model)
    if config.other is not None:
        print(f"{identifier.compare(config.audio, config.other):.4f}")
        return
    for batch, waveforms, lengths in model.batches(paths, batch_seconds=config.data.batch_seconds):
        for path, found in zip(batch, identifier.classify(identifier.embed(waveforms, lengths)), strict=True):
            print(*([path] if is_folder else []), found.label, f"{found.score:.4f}", sep="\t")
