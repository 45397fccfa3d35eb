"""What a probe is trained on: the layers of a frozen encoder, and the floors that say what came for free.

The floors are the log-mel spectrum at the encoder's frames, and the same encoder with random weights: what they reach
owes nothing to pretraining.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.evaluation.testset import loader_for
from speechssl.heads.pooling import build_pooling
from speechssl.inference import SpeechModel
from speechssl.manifest import Manifest
from speechssl.models.encoder import Encoder
from speechssl.models.spectrum import LogMel
from speechssl.types import Utterance

NUM_BINS = 80

# Waveforms [B, N] and lengths -> each layer's frames [P, C], frames a clip.
Compute = Callable[[Tensor, Tensor], tuple[list[Tensor], list[int]]]


@dataclass(frozen=True)
class Source:
    """Frames from somewhere.

    Attributes:
        name: for the table.
        layers: what each of its layers is called.
        compute: a batch to frames.
    """

    name: str
    layers: list[str]
    compute: Compute


def sources(model: SpeechModel, *, floors: bool, seed: int, pooled: bool) -> list[Source]:
    """The encoder of a model, and with `floors` log-mel and an encoder of the same shape with random weights.

    Spectra come every 10 ms. Where frames are not `pooled`, those of one frame of the encoder go side by side.
    """
    config = model.encoder.config
    names = [str(i) for i in range(config.num_layers + 1)]
    found = [Source("encoder", names, _of_encoder(model.encoder))]
    if floors:
        torch.manual_seed(seed)
        fresh = Encoder(copy.deepcopy(config)).to(model.device).eval()
        mel = LogMel(hop=config.hop, field=config.receptive_field, sample_rate=model.sample_rate, num_bins=NUM_BINS).to(
            model.device
        )

        def log_mel(waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[int]]:
            frame_lengths = [config.num_frames(n) for n in lengths.tolist()]
            spectra = mel(waveforms, lengths, frame_lengths)  # [P, per_frame, bins]
            if pooled:
                return [spectra.flatten(0, 1)], [mel.per_frame * n for n in frame_lengths]
            return [spectra.flatten(1)], frame_lengths

        found += [Source("random encoder", names, _of_encoder(fresh)), Source("log-mel", ["log-mel"], log_mel)]
    return found


def _of_encoder(encoder: Encoder) -> Compute:
    def compute(waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[int]]:
        output = encoder(waveforms, lengths)
        return output.packed, output.frame_lengths

    return compute


@torch.inference_mode()
def extract(
    manifest: Manifest,
    model: SpeechModel,
    wanted: list[Source],
    *,
    check: Callable[[Utterance], str | None],
    pooling: str | None,
    batch_seconds: float,
    skip_invalid: bool,
    max_broken_share: float,
    num_workers: int,
) -> tuple[list[Utterance], dict[str, list[list[Tensor]]]]:
    """Every clip's features, once through each source.

    Args:
        manifest, model: the clips, and how they are to be read.
        wanted: the sources.
        check: the reason why a clip cannot count, or None.
        pooling: of heads.pooling, or None for frames, which are kept in half precision.
        others: as for `BatchLoader`.

    Returns:
        The clips in the order read, and by source for each layer the features of each: [D], or [T, D] of frames.
    """
    loader = loader_for(
        manifest,
        model,
        check=check,
        batch_seconds=batch_seconds,
        skip_invalid=skip_invalid,
        max_broken_share=max_broken_share,
        num_workers=num_workers,
    )
    utterances: list[Utterance] = []
    found: dict[str, list[list[Tensor]]] = {source.name: [[] for _ in source.layers] for source in wanted}
    for batch in loader.once():
        utterances += batch.utterances
        for source in wanted:
            states, frame_lengths = source.compute(batch.waveforms.to(model.device), batch.lengths)
            for layer, x in zip(found[source.name], states, strict=True):
                layer += list(_clips(x, frame_lengths, pooling))
    return utterances, found


def _clips(x: Tensor, frame_lengths: list[int], pooling: str | None) -> Iterator[Tensor]:
    if pooling is None:
        yield from (clip.half().cpu() for clip in x.split(frame_lengths))
    else:
        yield from build_pooling(pooling, x.shape[1])(x.float(), frame_lengths).cpu()
