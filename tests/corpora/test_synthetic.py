"""speechssl.corpora.synthetic: real waveforms, as asked for, the same each time, wherever the library lies."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.corpora import synthetic
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError

espeakng_loader = pytest.importorskip("espeakng_loader", reason="the extra `synthetic` is not installed")

FEW = {"num_train": 8, "num_valid": 2, "num_test": 3, "num_labelled": 4, "num_voices": 4}


def test_clips_manifests_and_waveforms(tmp_path, read_manifest):
    assert synthetic.prepare(Preparation(tmp_path), **FEW) == {
        "train": 8,
        "valid": 2,
        "test": 3,
        "train_labelled": 4,
        "left_out": 0,
    }
    parts = {name: read_manifest(tmp_path / f"{name}.jsonl") for name in ("train", "valid", "test")}
    clips = {name: clip for part in parts.values() for name, clip in part.items()}
    assert len(clips) == 13
    assert len({clip.text for clip in clips.values()}) == 13
    assert set("".join(clip.text for clip in clips.values())) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert Counter(clip.speaker for clip in parts["train"].values()) == dict.fromkeys(synthetic.VOICES[:4], 2)
    for clip in clips.values():
        samples, rate = soundfile.read(clip.audio_path)
        assert rate == 16_000
        assert len(samples) / rate == clip.duration_s
        assert 0.19 < np.abs(samples).max() < 0.81  # neither clipped nor faint
        assert samples.std() > 0.01
        assert 5 < len(clip.text) / clip.duration_s < 30  # letters a second, as people speak
    few = read_manifest(tmp_path / "train_labelled.jsonl")
    assert few.items() <= parts["train"].items()
    assert {clip.speaker for clip in few.values()} == set(synthetic.VOICES[:4])


def test_manifests_move_with_their_audio(tmp_path, read_manifest):
    synthetic.prepare(Preparation(tmp_path / "here"), **FEW)
    (tmp_path / "here").rename(tmp_path / "there")
    assert len(read_manifest(tmp_path / "there/train.jsonl")) == 8


def test_equal_options_give_equal_files_and_the_seed_others(tmp_path):
    def files(name: str, **options) -> dict[str, bytes]:
        synthetic.prepare(Preparation(tmp_path / name), **FEW, **options)
        found = (tmp_path / name).rglob("*.*")
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in found}

    first, again, other = files("first"), files("again"), files("other", seed=1)
    assert first == again
    assert set(first) == set(other)
    assert not any(first[name] == other[name] for name in first)


def test_every_voice_speaks_in_its_own_way():
    with synthetic._espeak(0) as speak:
        spoken = {voice: speak("the old man saw a red house", voice, 160, 50) for voice in synthetic.VOICES}
        slow, _ = speak("the old man saw a red house", synthetic.VOICES[0], 100, 50)
    assert len(spoken) == len(set(synthetic.VOICES)) == 24
    for voice, (samples, rate) in spoken.items():
        assert rate == 22_050, voice
        assert 1 < len(samples) / rate < 4, voice
        assert np.abs(samples).max() > 0.1, voice
    assert len({samples.tobytes() for samples, _ in spoken.values()}) == 24
    assert len(slow) > 1.2 * len(spoken[synthetic.VOICES[0]][0])


def test_library_deep_in_the_file_system(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep / "espeak-ng-data"))
    with synthetic._espeak(0) as speak:
        samples, _ = speak("hello", "en-us+f2", 160, 50)
    assert len(samples) > 5_000


def test_what_espeak_cannot_do_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"num_voices=25: there are from 1 to 24"):
        synthetic.prepare(Preparation(tmp_path), num_voices=25)
    with pytest.raises(UserError, match="the labelled ones are among its"):
        synthetic.prepare(Preparation(tmp_path), num_train=5, num_labelled=6)
    deep = tmp_path / ("d" * 160)
    deep.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(deep))
        with pytest.raises(UserError, match="set TMPDIR to a shorter one"):
            synthetic.prepare(Preparation(tmp_path), **FEW)
    with monkeypatch.context() as patch:
        patch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
        with pytest.raises(UserError, match="espeak-ng has no voices"):
            synthetic.prepare(Preparation(tmp_path), **FEW)
    with monkeypatch.context() as patch:
        broken = tmp_path / "libespeak-ng.so"
        broken.write_bytes(b"no library")
        patch.setattr(espeakng_loader, "get_library_path", lambda: str(broken))
        with pytest.raises(UserError, match="espeak-ng cannot be loaded"):
            synthetic.prepare(Preparation(tmp_path), **FEW)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        synthetic.prepare(Preparation(tmp_path), **FEW)
    assert not list(Path(tmp_path).glob("*.jsonl"))
