"""How often an audio file is looked through before it is read."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from speechssl import audio, soundfiles


def test_an_mp3_is_counted_once_for_all_its_windows(tmp_path, monkeypatch):
    counted = []

    def count(data):
        counted.append(len(data))
        return frames(data)

    frames = soundfiles.Frames
    monkeypatch.setattr(soundfiles, "Frames", count)
    samples, path = np.random.default_rng(0).normal(0, 0.1, 64_000), tmp_path / "a.mp3"
    soundfile.write(path, samples, 16_000)
    whole = audio.load(path)
    windows = [audio.load(path, offset_s=start, duration_s=1.0) for start in (0.0, 1.0, 2.0, 3.0)]
    assert len(counted) == 1
    np.testing.assert_allclose(np.concatenate(windows), whole, atol=0.01)
    soundfile.write(path, samples[:32_000], 16_000)
    assert audio.info(path).num_samples == 32_000 and len(counted) == 2
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):  # the verdict is kept, whatever it is
        with pytest.raises(audio.AudioError, match="is truncated"):
            audio.load(path)
    assert len(counted) == 3
