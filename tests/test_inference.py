"""Reading clips for a model: files, folders, arrays, and what cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl import audio
from speechssl.errors import UserError
from speechssl.inference import recordings
from speechssl.windows import WHOLE


def test_files_of_a_folder_are_sorted_by_path_at_any_depth(tmp_path):
    for name in ("b/2.flac", "a.wav", "b/1.WAV", "b.txt", "B.mp3", "._a.wav", ".trash/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in recordings(tmp_path)]
    assert names == ["B.mp3", "a.wav", "b/1.WAV", "b/2.flac"]


def test_a_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / "recording").touch()
    assert recordings(tmp_path / "recording") == [tmp_path / "recording"]


def test_no_audio_to_be_found(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        recordings(tmp_path / "gone")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no audio file"):
        recordings(tmp_path)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros(1000, dtype=np.int16), 16_000, r"int16 \[1000\].*full scale at 1"),
        (np.zeros((2, 1000), dtype=np.float32), 16_000, "one channel"),
        (np.zeros(1000, dtype=np.float32), None, "give sample_rate"),
        (np.full(1000, np.nan, dtype=np.float32), 16_000, "NaN"),
        (np.zeros(399, dtype=np.float32), 16_000, "0.0249 s, and the model needs at least 0.0250 s"),
        (np.zeros(0, dtype=np.float32), 16_000, "needs at least"),
    ],
)
def test_samples_that_cannot_be_used(spelling_model, samples, rate, reason):
    with pytest.raises(UserError, match=reason) as error:
        spelling_model.read(samples, rate)
    assert "\n" not in str(error.value)


def test_the_shortest_clip_is_taken(spelling_model):
    assert len(spelling_model.read(np.zeros(400, dtype=np.float32), 16_000)) == 400


def test_clips_are_normalised_where_the_model_wants_that(spelling_model):
    waveform = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
    assert spelling_model.read(waveform, 16_000).mean() == pytest.approx(0.3, abs=0.01)
    spelling_model.normalize = True
    normal = spelling_model.read(waveform, 16_000)
    assert normal.mean() == pytest.approx(0.0, abs=1e-4)
    assert normal.std() == pytest.approx(1.0, abs=1e-3)


def test_batches_keep_the_order_and_the_bound(spelling_model, audio_tools, tmp_path):
    texts = ["a", "bcbcbcbc", "a", "b", "c"]
    paths = [audio_tools.save(tmp_path / f"{i}.wav", audio_tools.spell(t)) for i, t in enumerate(texts)]
    batches = list(spelling_model.window_batches(paths, batch_seconds=0.25))
    # 0.085 s a character and blank; the long clip, 0.645 s, is above the bound and comes alone.
    assert [parts for parts, _, _ in batches] == [
        [(path, WHOLE) for path in some] for some in (paths[:1], paths[1:2], paths[2:4], paths[4:])
    ]
    for parts, waveforms, lengths in batches:
        for (name, _), waveform, length in zip(parts, waveforms, lengths, strict=True):
            assert torch.equal(waveform[:length], audio.load(name))
            assert not waveform[length:].any()


def test_unusable_files_are_told_at_the_end(spelling_model, audio_tools, tmp_path, caplog):
    good = audio_tools.save(tmp_path / "good.wav", audio_tools.spell("a"))
    (empty := tmp_path / "empty.wav").touch()
    short = audio_tools.save(tmp_path / "short.wav", torch.zeros(100))
    batches = spelling_model.window_batches([empty, good, short], batch_seconds=10.0)
    assert next(batches)[0] == [(good, WHOLE)]
    with pytest.raises(UserError, match=r"2 of 3 files cannot be used, the first: .*empty\.wav") as error:
        next(batches)
    assert "\n" not in str(error.value)
    assert "short.wav" in caplog.text


def test_the_only_file_is_told_in_its_own_words(spelling_model, tmp_path):
    with pytest.raises(UserError, match=r"^.*gone\.wav: no such audio file"):
        list(spelling_model.window_batches([tmp_path / "gone.wav"], batch_seconds=10.0))
