"""A zoo of bad and odd input: each kind is read right, or refused in one plain sentence; nothing in between.

Audio files come first, then lines of manifests. Tar shards and corpora are in tests/corpora.
"""

from __future__ import annotations

import io
import json
import os
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechssl import audio
from speechssl.data.collate import BrokenClip
from speechssl.data.dataset import ClipDataset
from speechssl.errors import UserError
from speechssl.manifest import Manifest

RATE = 16_000


def sound(seconds=1.0, rate=RATE):
    """Noise under a slow envelope: every cut, shift or change of level shows."""
    time_s = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    tone = np.sin(2 * np.pi * 300 * time_s) + 0.01 * noise
    return 0.4 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 2 * time_s))


def encoded(samples, rate=RATE, container="WAV", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, **options)
    return bytearray(buffer.getvalue())


def wav(samples=None, rate=RATE, **options):
    return encoded(sound() if samples is None else samples, rate, **options)


def patched(data, at, value):
    data[at : at + len(value)] = value
    return data


def wav_field(at, layout, value):
    """A 16-bit mono WAV whose header says something else: 20 codec, 22 channels, 24 rate, 34 bits, 40 bytes of data."""
    return patched(wav(), at, struct.pack(layout, value))


def flac(**changes):
    return encoded(sound(2.0), container="FLAC", **changes)


def vbr_mp3(tagged):
    """MP3 of variable bitrate: quiet, then loud. Without its first frame, nothing says how long it is."""
    loud = np.random.default_rng(0).normal(0, 0.3, 3 * RATE)
    data = encoded(
        np.concatenate([loud, np.zeros(3 * RATE), loud]),
        container="MP3",
        bitrate_mode="VARIABLE",
        compression_level=0.2,
    )
    return data if tagged else data[288:]  # the tagged frame has 288 bytes at 16 kHz and 32 kbit/s


def ogg(subtype="VORBIS", seconds=2.0):
    return encoded(sound(seconds), container="OGG", subtype=subtype)


def other_serial(data):
    """The same stream under another number, checksums and all."""
    data, at = bytearray(data), 0
    while at < len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        page = bytearray(data[at:end])
        page[14:18], page[22:26] = b"abcd", b"\0\0\0\0"
        checksum = 0
        for byte in page:
            checksum ^= byte << 24
            for _ in range(8):
                checksum = checksum << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if checksum & 0x80000000 else 0)
        page[22:26] = struct.pack("<I", checksum)
        data[at:end] = page
        at = end
    return data


def stereo(left, right):
    return np.stack([left, right], axis=1)


# Each: name of the file, its content, and either the samples to be read (and how exactly), or words of the refusal.
READ = {
    "8 kHz": ("a.wav", wav(sound(rate=8_000), 8_000), sound(), 0.03),
    "11,025 Hz": ("a.wav", wav(sound(rate=11_025), 11_025), sound(), 0.03),
    "44,101 Hz": ("a.wav", wav(sound(rate=44_101), 44_101), sound(), 0.03),
    "96 kHz": ("a.wav", wav(sound(rate=96_000), 96_000), sound(), 0.03),
    "192 kHz": ("a.wav", wav(sound(rate=192_000), 192_000), sound(), 0.03),
    "2 channels": ("a.wav", wav(stereo(sound(), sound() / 2)), 0.75 * sound(), 1e-4),
    "8 channels": ("a.wav", wav(np.stack([sound() * i / 8 for i in range(8)], axis=1)), sound() * 3.5 / 8, 1e-4),
    "channels of opposite phase": ("a.wav", wav(stereo(sound(), -sound())), sound(), 1e-4),
    "unsigned 8 bit": ("a.wav", wav(subtype="PCM_U8"), sound(), 0.01),
    "24 bit": ("a.wav", wav(subtype="PCM_24"), sound(), 1e-6),
    "32 bit": ("a.wav", wav(subtype="PCM_32"), sound(), 1e-6),
    "float": ("a.wav", wav(subtype="FLOAT"), sound(), 1e-6),
    "double": ("a.wav", wav(subtype="DOUBLE"), sound(), 1e-6),
    "mu-law": ("a.wav", wav(subtype="ULAW"), sound(), 0.03),
    "A-law": ("a.wav", wav(subtype="ALAW"), sound(), 0.03),
    "float a little beyond full scale": ("a.wav", wav(3 * sound(), subtype="FLOAT"), 3 * sound(), 1e-6),
    "AIFF": ("a.aiff", encoded(sound(), container="AIFF"), sound(), 1e-4),
    "RF64": ("a.wav", encoded(sound(), container="RF64"), sound(), 1e-4),
    "FLAC called WAV": ("a.wav", encoded(sound(), container="FLAC"), sound(), 1e-4),
    "WAV called MP3": ("a.mp3", wav(), sound(), 1e-4),
    "upper-case extension": ("A.WAV", wav(), sound(), 1e-4),
    "no extension": ("a", wav(), sound(), 1e-4),
    "1 sample": ("a.wav", wav(np.array([0.25])), np.array([0.25]), 1e-4),
    "silence": ("a.wav", wav(np.zeros(RATE)), np.zeros(RATE), 0),
    "a chunk of text after the samples": (
        "a.wav",
        wav() + b"LIST" + struct.pack("<I", 4000) + b"INFOIART" + bytes(3992),
        sound(),
        1e-4,
    ),
    "zeros after the samples": ("a.wav", wav() + bytes(9000), sound(), 1e-4),
    "a RIFF size that lies": ("a.wav", wav_field(4, "<I", 12), sound(), 1e-4),
    "a size left open by a pipe": ("a.wav", wav_field(40, "<I", 0xFFFF_FFFF), sound(), 1e-4),
    "zeros after an Ogg stream": ("a.ogg", ogg() + bytes(999), sound(2.0), 0.1),
    "an ID3 tag before an MP3": (
        "a.mp3",
        b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + encoded(sound(), container="MP3"),
        sound(),
        0.1,
    ),
    "a name with spaces and quotes": (' it\'s "a"  b .wav', wav(), sound(), 1e-4),
    "a name with a line break and a tab": ("a\n\tb.wav", wav(), sound(), 1e-4),
    "a name in Chinese, Arabic and emoji": ("录音-تسجيل-🎙.wav", wav(), sound(), 1e-4),
    "a name in composed and decomposed accents": ("é-e\u0301.wav", wav(), sound(), 1e-4),
    "a name with shell and glob characters": ("$(x)*?[1];&|<>#%=~!{}.wav", wav(), sound(), 1e-4),
    "a name that is not UTF-8": (os.fsdecode(b"caf\xe9.wav"), wav(), sound(), 1e-4),
    "a name that begins with a dash": ("-rf.wav", wav(), sound(), 1e-4),
}
REFUSED = {
    "zero bytes": ("a.wav", b"", "is empty"),
    "no samples": ("a.wav", wav(np.zeros(0)), "is empty"),
    "text": ("a.wav", b"hello " * 99, "is broken or not audio"),
    "random bytes": ("a.wav", np.random.default_rng(0).bytes(9999), "is broken or not audio"),
    "zeros": ("a.wav", bytes(9999), "is broken or not audio"),
    "half a header": ("a.wav", wav()[:30], "is broken or not audio|is empty|is truncated"),
    "an HTML page": ("a.mp3", b"<!DOCTYPE html><html><body>404</body></html>" * 30, "is broken or not audio"),
    "raw samples": ("a.raw", wav()[44:], "is broken or not audio"),
    "an MP4 file": ("a.m4a", b"\0\0\0\x20ftypM4A " + bytes(500), "is broken or not audio"),
    "a WAV that is cut off": ("a.wav", wav()[:20_000], "is truncated"),
    "a FLAC that is cut off": ("a.flac", flac()[:20_000], "is truncated"),
    "an Ogg that is cut off": ("a.ogg", ogg()[: len(ogg()) // 2], "is truncated"),
    "an Ogg without its last page": ("a.ogg", ogg()[: ogg().rfind(b"OggS")], "is truncated"),
    "an Opus that is cut off": ("a.opus", ogg("OPUS")[: len(ogg("OPUS")) // 2], "is truncated|is broken"),
    "an MP3 that is cut off": ("a.mp3", vbr_mp3(True)[:10_000], "is truncated"),
    "an AIFF that is cut off": ("a.aiff", encoded(sound(), container="AIFF")[:20_000], "is truncated"),
    "two Ogg streams in one": ("a.ogg", ogg() + other_serial(ogg()), "has several streams"),
    "a FLAC with a hole": ("a.flac", patched(flac(), 20_000, bytes(900)), "is truncated"),
    "NaN": ("a.wav", wav(np.where(np.arange(RATE) == 99, np.nan, sound()), subtype="FLOAT"), "holds NaN"),
    "infinity": ("a.wav", wav(np.where(np.arange(RATE) == 99, -np.inf, sound()), subtype="DOUBLE"), "holds NaN"),
    "integers as floats": ("a.wav", wav(sound() * 2**15, subtype="FLOAT"), "where full scale is 1"),
    "a header with more than there is": ("a.wav", wav_field(40, "<I", 320_000), "is truncated"),
    "a header with less than there is": ("a.wav", wav_field(40, "<I", 1_000), "has more audio than its header says"),
    "a header with nothing": ("a.wav", wav_field(40, "<I", 0), "has more audio than its header says"),
    "a rate of 0": ("a.wav", wav_field(24, "<I", 0), "is broken or not audio"),
    "a rate of 7": ("a.wav", wav_field(24, "<I", 7), "says it has 7 samples a second"),
    "a rate of 4 GHz": ("a.wav", wav_field(24, "<I", 4_000_000_000), "is broken or not audio"),
    "0 channels": ("a.wav", wav_field(22, "<H", 0), "is broken or not audio"),
    "0 bits": ("a.wav", wav_field(34, "<H", 0), "is broken or not audio"),
    "a codec that does not exist": ("a.wav", wav_field(20, "<H", 0x7777), "is broken or not audio"),
    "a FLAC of unknown length": ("a.flac", patched(flac(), 21, b"\xf0\0\0\0\0"), "does not say how long it is"),
    "a FLAC with less than it promises": ("a.flac", patched(flac(), 22, struct.pack(">I", 320_000)), "is truncated"),
}


@pytest.fixture
def place(tmp_path):
    """place(name, content): the file, or a skip where the system does not take its name."""

    def write(name, content):
        path = tmp_path / name
        try:
            path.write_bytes(content)
        except (OSError, UnicodeError):
            pytest.skip("this file system takes no such name")
        return path

    return write


@pytest.mark.parametrize("kind", READ)
def test_odd_files_are_read_right(kind, place):
    name, content, expected, tolerance = READ[kind]
    path = place(name, content)
    waveform = audio.load(path).numpy()
    assert abs(len(waveform) - len(expected)) <= 1
    assert audio.info(path).duration_s == pytest.approx(len(expected) / RATE, abs=1e-3)
    # Filters and codecs smear the edges.
    edge = 0 if tolerance <= 1e-4 else min(800, len(expected) // 4)
    both = min(len(waveform), len(expected)) - edge
    np.testing.assert_allclose(waveform[edge:both], expected[edge:both], atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_files_are_refused_in_one_sentence(kind, place):
    name, content, words = REFUSED[kind]
    path = place(name, content)
    with pytest.raises(audio.AudioError, match=words) as caught:
        audio.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    # What only shows in the samples, a look at the header need not find.
    if kind not in ("NaN", "infinity", "integers as floats", "a FLAC with a hole"):
        with pytest.raises(audio.AudioError, match=words):
            audio.info(path)


@pytest.mark.parametrize("tagged", [True, False])
def test_an_mp3_of_variable_bitrate_is_read_to_its_end(place, tagged):
    path = place("a.mp3", vbr_mp3(tagged))
    short = soundfile.info(path).duration
    assert tagged or short < 5  # what libsndfile would read of nine seconds
    assert audio.info(path).duration_s == pytest.approx(9.0, abs=0.08)
    waveform = audio.load(path)
    assert len(waveform) / RATE == pytest.approx(9.0, abs=0.08)
    loud = [float(waveform[round(a * RATE) : round(b * RATE)].std()) for a, b in ((0.2, 2.8), (3.2, 5.8), (6.2, 8.8))]
    assert loud[1] < 1e-3 and loud[0] == pytest.approx(loud[2], rel=0.05) and loud[0] > 0.2
    part = audio.load(path, offset_s=7.0, duration_s=1.0)
    np.testing.assert_allclose(part, waveform[7 * RATE : 8 * RATE], atol=1e-4)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "circle.wav").symlink_to(tmp_path / "circle.wav")
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    for name, words in [
        ("link.wav", "no such audio file"),
        ("circle.wav", "no such audio file"),
        ("folder.wav", "is a folder"),
        ("pipe.wav", "is a pipe or a device"),
        ("x" * 300 + ".wav", "no such audio file"),
        ("a\0b.wav", "no such audio file"),
        ("a\ud800.wav", "no such audio file"),
    ]:
        with pytest.raises(audio.AudioError, match=words):
            audio.load(tmp_path / name)
    with pytest.raises(audio.AudioError, match="is a pipe or a device"):
        audio.load("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read_is_named(place):
    path = place("a.wav", wav())
    path.chmod(0)
    with pytest.raises(audio.AudioError, match="may not be read"):
        audio.load(path)


def test_a_part_of_ten_hours_is_read_without_the_rest(tmp_path):
    path = tmp_path / "long.wav"
    head = wav(np.zeros(1), 8_000, subtype="PCM_U8")
    samples = 10 * 3600 * 8_000
    head = patched(patched(head, 4, struct.pack("<I", 36 + samples)), 40, struct.pack("<I", samples))
    with path.open("wb") as file:
        file.write(head[:44])
        file.seek(44 + 9 * 3600 * 8_000)
        file.write(b"\xc0" * 8_000)  # one second of 0.5, the rest of the file is a hole
        file.truncate(44 + samples)
    assert audio.info(path).duration_s == 36_000
    part = audio.load(path, sample_rate=8_000, offset_s=9 * 3600, duration_s=2.0).numpy()
    np.testing.assert_allclose(part, [0.5] * 8_000 + [-1.0] * 8_000)


@pytest.mark.parametrize("times", [(-0.5, 1.0), (1.5, 1.0), (0.5, 1.0), (0.0, -1.0), (0.0, 0.0), (1e9, 1.0)])
def test_times_outside_of_a_file_are_refused(place, times):
    path = place("a.wav", wav())
    offset_s, duration_s = times
    with pytest.raises(audio.AudioError, match=r"the file lasts 1\.000 s"):
        audio.load(path, offset_s=offset_s, duration_s=duration_s)


LINES = {
    "a list": ("[1]", "is not a JSON object"),
    "half a line": ('{"audio_filepath": "a.wav", "dura', "is not JSON"),
    "a single quote": ("{'audio_filepath': 'a.wav'}", "is not JSON"),
    "a thousand brackets": ("[" * 100_000, "is not JSON"),
    "Latin-1": ('{"audio_filepath": "é.wav", "duration": 1}'.encode("latin-1"), "is not JSON"),
    "UTF-16": ('{"audio_filepath": "a.wav", "duration": 1}'.encode("utf-16"), "is not JSON"),
    "no path": ('{"duration": 1}', "has no `audio_filepath`"),
    "no duration": ('{"audio_filepath": "a.wav"}', "has no `duration`"),
    "an empty path": ('{"audio_filepath": "", "duration": 1}', "which no file is called"),
    "a path with a zero byte": (r'{"audio_filepath": "a\u0000.wav", "duration": 1}', "which no file is called"),
    "a number as path": ('{"audio_filepath": 3, "duration": 1}', "write a path in quotes"),
    "a negative duration": ('{"audio_filepath": "a.wav", "duration": -1}', "`duration` is -1"),
    "a duration of 0": ('{"audio_filepath": "a.wav", "duration": 0}', "`duration` is 0"),
    "NaN seconds": ('{"audio_filepath": "a.wav", "duration": NaN}', "`duration` is nan"),
    "infinite seconds": ('{"audio_filepath": "a.wav", "duration": 1e999}', "`duration` is inf"),
    "a duration of 400 digits": ('{"audio_filepath": "a.wav", "duration": 1' + "0" * 400 + "}", "`duration` is 1"),
    "a duration in quotes": ('{"audio_filepath": "a.wav", "duration": "1"}', "as a number without quotes"),
    "true seconds": ('{"audio_filepath": "a.wav", "duration": true}', "as a number without quotes"),
    "a negative offset": ('{"audio_filepath": "a.wav", "duration": 1, "offset": -1}', "`offset` is -1"),
    "a list as text": ('{"audio_filepath": "a.wav", "duration": 1, "text": ["a"]}', "write the transcript"),
    "bytes that are none": ('{"audio_filepath": "a.tar", "duration": 1, "bytes": [-1, 5]}', "`bytes` is"),
    "bytes in words": ('{"audio_filepath": "a.tar", "duration": 1, "bytes": "all"}', "`bytes` is"),
    "a channel in words": ('{"audio_filepath": "a.wav", "duration": 1, "channel": "left"}', "the number of a channel"),
}


@pytest.mark.parametrize("kind", LINES)
def test_bad_lines_are_refused_with_their_place(kind, tmp_path):
    line, words = LINES[kind]
    path = tmp_path / "m.jsonl"
    good = b'{"audio_filepath": "good.wav", "duration": 1}\n\n'
    path.write_bytes(good + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(UserError, match=words) as caught:
        Manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


def test_repeated_ids_and_missing_manifests_are_named(tmp_path):
    path = tmp_path / "m.jsonl"
    row = json.dumps({"audio_filepath": "a.wav", "duration": 1})
    path.write_text(f"{row}\n{row}\n")
    with pytest.raises(UserError, match=r"m\.jsonl:2: `id` a\.wav is that of line 1"):
        Manifest(path)
    for name, words in [("none.jsonl", "cannot read"), ("", "cannot read"), ("empty.jsonl", "has no clip")]:
        (tmp_path / "empty.jsonl").write_text("\n \n")
        with pytest.raises(UserError, match=words):
            Manifest(tmp_path / name)


DAMAGED = {
    "WAV": bytes(wav(sound(0.3))),
    "FLAC": bytes(encoded(sound(0.3), container="FLAC")),
    "OGG": bytes(ogg(seconds=0.3)),
    "OPUS": bytes(ogg("OPUS", seconds=0.3)),
    "MP3": bytes(encoded(sound(0.3), container="MP3")),
    "AIFF": bytes(encoded(sound(0.3), container="AIFF")),
}


@pytest.mark.parametrize("container", DAMAGED)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_waveform_or_a_sentence(container, tmp_path, data):
    """Whatever happens to a file's bytes, the loader gets finite samples or a clip that is named as broken."""
    content = bytearray(DAMAGED[container])
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["cut", "set", "drop", "add"]))
        at = data.draw(st.integers(0, max(min(len(content) - 1, 200), 0)) | st.integers(0, max(len(content) - 1, 0)))
        if kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(1, 99))]
        else:
            new = data.draw(st.binary(min_size=1, max_size=8))
            content[at : at + (len(new) if kind == "set" else 0)] = new
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.bin", "duration": 0.3}\n')
    clips = ClipDataset(Manifest(tmp_path / "m.jsonl"), sample_rate=RATE, normalize=False, seed=0)
    batch, broken = clips.batch([(0, 0)], min_samples=400)
    if batch is None:
        assert len(broken) == 1 and isinstance(broken[0], BrokenClip) and "\n" not in broken[0].reason
    else:
        assert batch.waveforms.isfinite().all() and 400 <= int(batch.lengths[0]) <= 2 * RATE
