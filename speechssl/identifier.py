"""Who speaks (or which language, emotion, keyword: any label of a manifest) with a fine-tuned checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechssl.audio import NO_VOICE
from speechssl.errors import UserError
from speechssl.evaluation.cohort import likeness
from speechssl.heads.speaker import ClassifyObjective
from speechssl.inference import Clip, SpeechModel, load_model
from speechssl.windows import Window, Windowing

# Seconds of a recording that go through the model at once: enough for a voice, and memory does not grow with length.
WINDOW_S = 60.0


@dataclass(frozen=True)
class Identification:
    """The likeliest label of a clip.

    Attributes:
        label: the speaker, or whatever the checkpoint tells apart.
        score: its probability by the softmax over the labels that the checkpoint knows.
    """

    label: str
    score: float


class Identifier:
    """A model with a classifier over whole clips.

    Raises:
        UserError: the model has no classifier.
    """

    def __init__(self, model: SpeechModel) -> None:
        found = model.with_head(ClassifyObjective)
        if found is None:
            raise UserError(
                f"the checkpoint {model.source} has no classifier, so it cannot tell voices apart: give it "
                f"one with `speechssl finetune task=speaker init={model.source}`"
            )
        self.model = replace(found, needs_voice=True)
        self.windowing = Windowing(
            model.encoder.config, sample_rate=model.sample_rate, window_s=WINDOW_S, context_s=0.0
        )

    def identify(self, audio: Clip, sample_rate: int | None = None) -> Identification:
        """The label of one clip: an audio file, or samples float [N] with their rate.

        Raises:
            UserError: as `SpeechModel.read`.
        """
        [identification] = self.classify(self.embed_clip(audio, sample_rate)[None])
        return identification

    def compare(self, one: str | os.PathLike[str], other: str | os.PathLike[str]) -> float:
        """Cosine of the embeddings of two audio files: up to 1, the higher the likelier the same voice."""
        first, second = self.embed_pair(one, other)
        return float(likeness(first, second[None], None)[0])

    def embed_pair(self, one: str | os.PathLike[str], other: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings float32 [E] of two audio files; see `embed_files`."""
        [(_, a)], [(_, b)] = (self.embed_files([Path(path)], batch_seconds=WINDOW_S) for path in (one, other))
        return a.cpu().numpy(), b.cpu().numpy()

    def embed_files(self, paths: Sequence[Path], *, batch_seconds: float) -> Iterator[tuple[Path, Tensor]]:
        """Each audio file and its embedding float32 [E]; of one longer than WINDOW_S, the mean over its windows with a
        voice.

        Raises:
            UserError: at the end, if files could not be used; as `SpeechModel.window_batches`, or one is all silence.
        """
        heard: dict[Path, list[Tensor]] = {}
        silent: list[Path] = []
        for parts, waveforms, lengths in self.model.window_batches(paths, batch_seconds=batch_seconds, cut=self._cut):
            for (path, window), waveform, x in zip(parts, waveforms, self.embed(waveforms, lengths), strict=True):
                windows = heard.setdefault(path, [])
                windows += [x] if waveform.any() else []
                if window.ends_recording:
                    del heard[path]
                    if windows:
                        yield path, torch.stack(windows).mean(0)
                    else:
                        silent.append(path)
        if silent:
            more = f" ({len(silent)} such files)" if len(silent) > 1 else ""
            raise UserError(f"{silent[0]}: {NO_VOICE}{more}; give another recording.")

    def _cut(self, path: Path) -> list[Window]:
        return self.windowing.cut(self.model.num_samples(path))

    def embed_clip(self, audio: Clip, sample_rate: int | None = None) -> Tensor:
        """The embedding float32 [E] of one clip."""
        waveform = self.model.read(audio, sample_rate)
        return self.embed(waveform[None], torch.tensor([len(waveform)]))[0]

    @torch.inference_mode()
    def embed(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """A batch, zero-padded float32 [B, N] with lengths int64 [B] in samples -> embeddings [B, E]."""
        return self.model.objective.embed(self.model.encode(waveforms, lengths)).float()

    @torch.inference_mode()
    def classify(self, embeddings: Tensor) -> list[Identification]:
        """The label of each embedding [B, E]."""
        scores, best = self.model.objective.classify(embeddings).float().softmax(-1).max(-1)
        labels = self.model.objective.labels
        found = zip(best.tolist(), scores.tolist(), strict=True)
        return [Identification(labels[i], score) for i, score in found]

    def classify_all(self, embeddings: np.ndarray) -> list[Identification]:
        """The same of an array [clips, E], wherever the model computes."""
        return self.classify(torch.from_numpy(embeddings).to(self.model.device))


def load_identifier(checkpoint: str | os.PathLike[str], *, device: str = "auto") -> Identifier:
    """The identifier of a checkpoint (or run folder) that was fine-tuned with task=speaker or task=classify.

    Raises:
        UserError: as `load_model`, or it has no classifier.
    """
    return Identifier(load_model(checkpoint, device=device))
