"""Self-supervised learning for speech: from raw audio to a word error rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechssl.models.encoder import Encoder
    from speechssl.recognizer import Recognizer

__all__ = ["load_encoder", "load_recognizer"]


def load_encoder(checkpoint: str) -> Encoder:
    """The encoder of a checkpoint (or run folder), in evaluation mode.

    `encoder(waveforms, lengths)` takes float32 [B, N] and int64 [B] and returns an EncoderOutput.
    """
    # Imported here: `import speechssl` and `speechssl --help` need no torch.
    from speechssl.training.checkpoint import build_encoder, load_checkpoint

    return build_encoder(load_checkpoint(checkpoint))


def load_recognizer(checkpoint: str) -> Recognizer:
    """The recogniser of a fine-tuned checkpoint: `.transcribe(path_or_array, sample_rate)` gives text with times."""
    from speechssl.recognizer import load_recognizer

    return load_recognizer(checkpoint)
