"""What the doctor measures, against numpy and arithmetic by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from speechssl.data.loader import BatchLoader
from speechssl.doctor.probe import Probe, data_facts, memory_gib, spread
from speechssl.manifest import Manifest
from speechssl.manifest import write as write_manifest


def test_spread_is_the_entropy_of_the_covariance_and_the_variance_of_directions():
    frames = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 2, 1, 1, 1, 1, 1, 1])
    figures = spread(frames)
    share = np.linalg.eigvalsh(np.cov(frames.numpy().T))
    share /= share.sum()
    assert figures["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    directions = frames.numpy() / np.linalg.norm(frames.numpy(), axis=1, keepdims=True)
    assert figures["output_variance"] == pytest.approx(1 - np.square(directions.mean(0)).sum(), rel=1e-4)


def test_equal_frames_have_no_spread():
    figures = spread(torch.ones(300, 8))
    assert figures["output_variance"] == pytest.approx(0, abs=1e-6)
    assert figures["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_norms_and_ratios_are_those_of_plain_gradient_descent():
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"context": nn.Linear(3, 4, bias=False)})})
    model["objective"] = nn.ModuleDict({"quantizer": nn.ModuleDict({"projection": nn.Linear(4, 2)})})
    context, head = model["encoder"]["context"], model["objective"]["quantizer"]["projection"]
    head(context(torch.ones(1, 3))).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradient, weight = context.weight.grad.norm().item(), context.weight.detach().norm().item()
    probe = Probe()
    with probe.updating(model):
        pass
    assert "grad_norm/context" not in probe.take()
    probe.armed = True
    with probe.updating(model):
        optimizer.step()
    figures = probe.take()
    assert figures["grad_norm/context"] == pytest.approx(gradient)
    assert figures["update_ratio/context"] == pytest.approx(0.1 * gradient / weight, rel=1e-4)
    assert figures["update_ratio/quantizer.projection"] > 0
    assert "update_ratio/context" not in probe.take()


def test_a_batch_is_measured_by_loudness_and_repeats(make_batch):
    batch, probe = make_batch([400, 300, 100]), Probe()
    probe.clips([batch])
    assert "input_level" not in probe.take()
    probe.armed = True
    probe.clips([batch])
    figures = probe.take()
    clips = [wave[:n].numpy() for wave, n in zip(batch.waveforms, batch.lengths, strict=True)]
    assert figures["input_level"] == pytest.approx(np.sqrt(np.square(np.concatenate(clips)).mean()), rel=1e-5)
    assert figures["repeat_share"] == 0
    copies = dataclasses.replace(batch, waveforms=batch.waveforms[:1].repeat(3, 1), lengths=torch.tensor([400] * 3))
    probe.clips([copies])
    assert probe.take()["repeat_share"] == pytest.approx(2 / 3)
    probe.clips([batch, batch])  # a step of two batches may have the end of one epoch and the begin of the next
    assert probe.take()["repeat_share"] == 0
    used, total = memory_gib()
    assert 0.01 < used < total


def test_clips_of_one_shard_or_one_stereo_file_are_no_copies(make_batch):
    batch, probe = make_batch([400, 300, 100]), Probe()
    probe.armed = True

    def share(**places):
        changes = [dict(zip(places, values, strict=True)) for values in zip(*places.values(), strict=True)]
        one = [dataclasses.replace(batch.utterances[0], **change) for change in changes]
        probe.clips([dataclasses.replace(batch, utterances=one)])
        return probe.take()["repeat_share"]

    assert share(byte_range=[(512, 90), (1024, 90), (2048, 90)]) == 0
    assert share(channel=[0, 1, None]) == 0
    assert share(channel=[0, 0, 1]) == pytest.approx(1 / 3)
    assert share(byte_range=[(512, 90)] * 3) == pytest.approx(2 / 3)


def facts(tmp_path, lengths_s, texts, *, path=None, place=lambda i: {}):
    rows = [
        {"id": str(i), "audio_filepath": path or f"{i}.wav", "duration": s, "text": text, **place(i)}
        for i, (s, text) in enumerate(zip(lengths_s, texts, strict=True))
    ]
    write_manifest(tmp_path / "a.jsonl", rows)
    loader = BatchLoader(
        Manifest(tmp_path / "a.jsonl"),
        sample_rate=16_000,
        normalize=False,
        min_samples=400,
        batch_seconds=10,
        seed=0,
        encode=lambda utterance: torch.zeros(len(utterance.text)),
    )
    return data_facts(loader)


def test_long_clips_have_long_transcripts_unless_they_are_mixed_up(tmp_path):
    lengths = np.random.default_rng(0).uniform(1, 9, 300)
    texts = ["x" * round(10 * s) for s in lengths]
    assert facts(tmp_path, lengths, texts) == {
        "listed_twice": 0.0,
        "label_length_correlation": pytest.approx(1, abs=0.01),
    }
    mixed = np.random.default_rng(1).permutation(texts)
    assert abs(facts(tmp_path, lengths, mixed)["label_length_correlation"]) < 0.2
    assert "label_length_correlation" not in facts(tmp_path, [5.0] * 300, texts)  # all alike: it says nothing
    few = [text if i % 4 == 0 else "" for i, text in enumerate(texts)]  # the others have no transcript
    assert facts(tmp_path, lengths, few)["label_length_correlation"] == pytest.approx(1, abs=0.01)
    assert facts(tmp_path, lengths, texts, path="one.wav")["listed_twice"] == pytest.approx(299 / 300)
    for place in (lambda i: {"bytes": [512 * i, 400]}, lambda i: {"channel": i}):
        assert facts(tmp_path, lengths, texts, path="one.tar", place=place)["listed_twice"] == 0
