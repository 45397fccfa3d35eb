"""speechssl.audio: formats, segments, rates, and every way in which a file can be unusable."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from speechssl import audio

RATE = 16_000


def tone(*, rate: int = RATE, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def write(path: Path, samples: np.ndarray, *, rate: int = RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


FORMATS = [
    ("a.wav", {"subtype": "PCM_16"}, 1e-4),
    ("a.wav", {"subtype": "FLOAT"}, 0.0),
    ("a.wav", {"subtype": "PCM_24"}, 1e-6),
    ("a.flac", {}, 1e-4),
    ("a.aiff", {}, 1e-4),
    ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}, 0.05),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
    ("a.mp3", {}, 0.05),
]


@pytest.mark.parametrize(("name", "options", "tolerance"), FORMATS)
def test_every_format_gives_its_samples(tmp_path, name, options, tolerance):
    expected = tone(seconds=2.0)
    path = write(tmp_path / name, expected, **options)
    waveform = audio.load(path)
    assert waveform.dtype == torch.float32
    assert waveform.shape == (32_000,)
    # Away from the edges: lossy codecs smear the onset.
    np.testing.assert_allclose(waveform[2000:-2000], expected[2000:-2000], atol=tolerance)
    assert audio.info(path) == audio.AudioInfo(
        sample_rate=RATE, num_channels=1, num_samples=32_000, format="OGG" if name == "a.opus" else name[2:].upper()
    )
    assert audio.info(path).duration_s == 2.0


@pytest.mark.parametrize(("name", "options", "tolerance"), FORMATS)
def test_a_segment_is_the_same_part_of_the_whole(tmp_path, name, options, tolerance):
    path = write(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, 32_000), **options)
    whole = audio.load(path)
    part = audio.load(path, offset_s=0.75, duration_s=0.5)
    torch.testing.assert_close(part, whole[12_000:20_000], atol=tolerance / 10, rtol=0)
    torch.testing.assert_close(audio.load(path, offset_s=1.5), whole[24_000:], atol=tolerance / 10, rtol=0)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac"])
def test_16_bits_are_to_the_bit_what_libsndfile_makes_of_them(tmp_path, name):
    values = np.arange(-(2**15), 2**15, dtype=np.int16)
    path = write(tmp_path / name, values, subtype="PCM_16")
    expected, _ = soundfile.read(path, dtype="float32")
    memory = torch.empty(len(values) + 5)
    into = audio.load(path, into=memory)
    assert into.data_ptr() == memory.data_ptr()
    for samples in (audio.load(path), into):
        np.testing.assert_array_equal(samples.numpy(), expected)
    assert (into[0], into[-1]) == (-1.0, 32767 / 32768)


def test_channels_are_averaged(tmp_path):
    left, right = tone(hertz=300), tone(hertz=500)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    torch.testing.assert_close(audio.load(path), torch.from_numpy((left + right) / 2))
    assert audio.info(path).num_channels == 2


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_tone_is_the_tone_at_the_new_rate(tmp_path, rate):
    path = write(tmp_path / "a.wav", tone(rate=rate, seconds=1.5), rate=rate, subtype="FLOAT")
    waveform = audio.load(path)
    assert abs(len(waveform) - 24_000) <= 1
    np.testing.assert_allclose(waveform[500:23_000], tone(seconds=1.5)[500:23_000], atol=2e-3)
    segment = audio.load(path, offset_s=0.5, duration_s=0.5)
    assert abs(len(segment) - 8_000) <= 1
    np.testing.assert_allclose(segment[500:7_500], waveform[8_500:15_500], atol=2e-3)


def test_resampling_removes_what_would_alias(tmp_path):
    path = write(tmp_path / "a.wav", tone(rate=48_000, hertz=10_000), rate=48_000, subtype="FLOAT")
    assert audio.load(path)[500:-500].abs().max() < 5e-3


def test_agrees_with_librosa(tmp_path):
    samples = np.cumsum(np.random.default_rng(0).normal(0, 0.01, (22_050, 2)), axis=0)
    samples = (samples - samples.mean(axis=0)) / np.abs(samples).max() / 2
    path = write(tmp_path / "a.wav", samples, rate=22_050, subtype="FLOAT")
    expected, _ = librosa.load(path, sr=RATE, mono=True, res_type="soxr_hq")
    np.testing.assert_allclose(audio.load(path)[200:-200], expected[200 : len(expected) - 200], atol=5e-3)


def test_missing_empty_folder_and_junk_are_named(tmp_path):
    (tmp_path / "zero.wav").touch()
    (tmp_path / "junk.wav").write_bytes(b"hello" * 100)
    (tmp_path / "junk.raw").write_bytes(b"hello" * 100)
    write(tmp_path / "none.wav", tone()[:0])
    for name, reason in [
        ("gone.wav", "no such audio file"),
        ("", "is a folder"),
        ("zero.wav", "is empty"),
        ("none.wav", "is empty"),
        ("junk.wav", "is broken or not audio"),
        ("junk.raw", "is broken or not audio"),
    ]:
        for function in (audio.load, audio.info):
            with pytest.raises(audio.AudioError, match=reason) as caught:
                function(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.6, 0.95])
@pytest.mark.parametrize(("name", "options", "_"), FORMATS)
def test_truncated_file_is_found_by_info_and_by_load(tmp_path, name, options, _, share):
    path = write(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, 10 * RATE), **options)
    cut(path, share)
    for function in (audio.load, audio.info):
        with pytest.raises(audio.AudioError, match="is truncated"):
            function(path)


def test_size_left_open_by_a_pipe_is_no_truncation(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    for size in (0xFFFF_FFFF, 0x7FFF_F000):
        data[at : at + 4] = size.to_bytes(4, "little")
        path.write_bytes(data)
        assert len(audio.load(path)) == RATE


def test_few_missing_samples_are_no_truncation(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    path.write_bytes(path.read_bytes()[:-100])
    assert len(audio.load(path)) == RATE - 50


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, value):
    samples = tone()
    samples[77] = value
    with pytest.raises(audio.AudioError, match="NaN or infinite"):
        audio.load(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_segment_past_the_end(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    for offset_s, duration_s in [(1.0, None), (3.0, 1.0), (0.5, 1.0), (0.2, 0.0), (-0.5, 1.0)]:
        with pytest.raises(audio.AudioError, match=r"the file lasts 1\.000 s"):
            audio.load(path, offset_s=offset_s, duration_s=duration_s)
    # A duration rounded to hundredths reaches a little too far.
    assert len(audio.load(path, offset_s=0.5, duration_s=0.51)) == RATE // 2


def test_resample_of_the_same_rate_is_the_same():
    waveform = torch.randn(100)
    assert audio.resample(waveform, source_rate=8000, target_rate=8000) is waveform
    assert len(audio.resample(waveform, source_rate=8000, target_rate=RATE)) == 200


def test_normalize_waveform_against_transformers():
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    for samples in (tone() * 1e-3 + 0.2, np.random.default_rng(0).normal(0, 3, 777).astype(np.float32)):
        expected = extractor(samples, sampling_rate=RATE)["input_values"][0]
        np.testing.assert_allclose(audio.normalize_waveform(torch.from_numpy(samples)), expected, atol=1e-4)


def test_normalized_silence_is_silence():
    assert audio.normalize_waveform(torch.full((50,), 0.25)).abs().max() < 1e-3


def test_more_samples_than_fit_into_memory_are_refused_unread(tmp_path, monkeypatch):
    """A header may promise anything, and what is promised is set aside before it is read."""
    soundfile.write(tmp_path / "a.wav", np.zeros((1600, 2)), 16_000)
    monkeypatch.setattr(audio, "MAX_VALUES", 3199)
    with pytest.raises(audio.AudioError, match=r"a\.wav: has 0\.0 hours of 2 channels, too many for memory at once"):
        audio.load(tmp_path / "a.wav")
    assert len(audio.load(tmp_path / "a.wav", duration_s=0.05)) == 800
