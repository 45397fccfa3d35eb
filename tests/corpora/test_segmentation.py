"""Long recordings in segments: inside the recording, short enough, where somebody speaks."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile

from speechssl import audio
from speechssl.corpora import segmentation
from speechssl.corpora.preparing import Options, Preparation
from speechssl.errors import UserError

RATE = 8000


@pytest.fixture
def record(tmp_path):
    """record((seconds, is speech), …): noise, loud where there is speech; its row."""

    def write(*parts, background=0.001):
        random = np.random.default_rng(0)
        levels = np.concatenate([np.full(round(s * RATE), 0.1 if loud else background) for s, loud in parts])
        soundfile.write(tmp_path / "long.wav", levels * random.standard_normal(len(levels)), RATE)
        return {"audio_filepath": str(tmp_path / "long.wav"), "id": "long", "duration": len(levels) / RATE}

    return write


def spans(rows):
    return [(row["offset"], row["offset"] + row["duration"]) for row in rows]


def test_windows_are_equal_and_cover_all():
    rows = segmentation.windows(
        {"audio_filepath": "a.wav", "id": "a", "duration": 70.0, "offset": 5.0, "speaker": "s"}, 20
    )
    assert spans(rows) == [(5.0, 22.5), (22.5, 40.0), (40.0, 57.5), (57.5, 75.0)]
    assert [row["id"] for row in rows] == ["a@0.00", "a@17.50", "a@35.00", "a@52.50"]
    assert {row["speaker"] for row in rows} == {"s"}
    assert len(segmentation.windows({"audio_filepath": "a.wav", "id": "a", "duration": 60.0}, 20.0)) == 3


def test_speech_is_found_with_a_margin(record):
    row = record((2, 0), (3, 1), (2, 0), (4, 1), (1, 0))
    found = spans(segmentation.speech(row, 20.0))
    np.testing.assert_allclose(found, [(1.9, 5.1), (6.9, 11.1)], atol=0.03)
    part = segmentation.speech({**row, "offset": 6.0, "duration": 3.0}, 20.0)
    np.testing.assert_allclose(spans(part), [(6.9, 9.0)], atol=0.03)


def test_short_pauses_are_bridged_and_clicks_are_not_speech(record):
    row = record((2, 0), (2, 1), (0.15, 0), (2, 1), (2, 0), (0.015, 1), (2, 0))
    np.testing.assert_allclose(spans(segmentation.speech(row, 20.0)), [(1.9, 6.25)], atol=0.03)


def test_long_speech_is_cut_where_it_is_quietest(record):
    row = record((1, 0), (8, 1), (0.1, 0), (9, 1), (1, 0))
    first, second = spans(segmentation.speech(row, 12.0))
    assert first[1] == pytest.approx(9.05, abs=0.06)
    assert second == (first[1], pytest.approx(18.2 + 0.0, abs=0.05))


def test_speech_without_pause_is_cut_and_silence_is_refused(record):
    found = spans(segmentation.speech(record((30, 1)), 10.0))
    assert found[0][0] == 0 and found[-1][1] == 30
    assert all(high == pytest.approx(low) for (_, high), (low, _) in pairwise(found))
    assert max(high - low for low, high in found) <= 10
    with pytest.raises(UserError, match=r"long\.wav: nobody seems to speak"):
        segmentation.speech(record((5, 0), background=0.0), 10.0)


def test_blocks_make_no_difference(record, monkeypatch):
    row = record((2, 0), (3, 1), (2, 0), (4, 1), (1, 0))
    whole = segmentation.speech(row, 20.0)
    monkeypatch.setattr(segmentation, "BLOCK_S", 0.7)
    assert segmentation.speech(row, 20.0) == whole


def test_only_long_recordings_without_transcript_are_cut(record, tmp_path):
    row = record((2, 0), (30, 1), (2, 0))
    soundfile.write(tmp_path / "short.wav", np.full(RATE, 0.1), RATE)
    clips = [
        row,
        {**row, "id": "labelled", "text": "a"},
        {"audio_filepath": str(tmp_path / "short.wav"), "id": "short"},
    ]
    job = Preparation(tmp_path / "out", Options(segment="windows", segment_s=20.0))
    kept = job.measure(clips)
    assert [r["id"] for r in kept] == ["long@0.00", "long@17.00", "labelled", "short"]
    waveform = audio.load(kept[1]["audio_filepath"], offset_s=17.0, duration_s=17.0, sample_rate=RATE)
    assert len(waveform) == 17 * RATE
