"""speechssl.manifest: what a line may say, what is refused and where, and that clips come back as written."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from speechssl import manifest
from speechssl.errors import UserError
from speechssl.manifest import Manifest


def put(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_line_becomes_an_utterance(tmp_path):
    path = put(
        tmp_path / "a.jsonl",
        '{"audio_filepath": "clips/a.wav", "duration": 1.5}',
        "",
        '{"audio_filepath": "/d/b.wav", "duration": 3, "offset": 2.25, "text": "mwána ωngá", "speaker": 7,'
        ' "lang": "mdw", "id": "b", "mood": {"calm": 0.5}}',
    )
    clips = Manifest(path)
    assert len(clips) == 2
    first, second = clips[0], clips[1]
    assert first.audio_path == tmp_path / "clips/a.wav"
    assert (first.id, first.duration_s, first.offset_s) == ("clips/a.wav", 1.5, 0.0)
    assert first.text is None
    assert first.speaker is None
    assert second.audio_path == Path("/d/b.wav")
    assert (second.id, second.duration_s, second.offset_s) == ("b", 3.0, 2.25)
    assert (second.text, second.speaker) == ("mwána ωngá", "7")
    assert second.fields["mood"] == {"calm": 0.5}
    assert second.fields["lang"] == "mdw"
    assert list(clips) == [first, second]
    assert clips[-1] == second
    assert clips.durations_s.dtype == np.float32
    assert clips.durations_s.tolist() == [1.5, 3.0]


def test_without_id_the_file_and_offset_are_the_id(tmp_path):
    path = put(
        tmp_path / "a.jsonl",
        '{"audio_filepath": "a.wav", "duration": 1}',
        '{"audio_filepath": "a.wav", "duration": 1, "offset": 12345.61}',
        '{"audio_filepath": "a.wav", "duration": 1, "offset": 12345.62}',
    )
    assert [clip.id for clip in Manifest(path)] == ["a.wav", "a.wav@12345.61", "a.wav@12345.62"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"audio_filepath": "a.wav"}', "`duration`"),
        ('{"duration": 1}', "`audio_filepath`"),
        ('{"audio_filepath": "", "duration": 1}', "`audio_filepath`"),
        ('{"audio_filepath": 5, "duration": 1}', "`audio_filepath`"),
        ('{"audio_filepath": "a.wav", "duration": 0}', "`duration`"),
        ('{"audio_filepath": "a.wav", "duration": -1.5}', "`duration`"),
        ('{"audio_filepath": "a.wav", "duration": NaN}', "`duration`"),
        ('{"audio_filepath": "a.wav", "duration": Infinity}', "`duration`"),
        ('{"audio_filepath": "a.wav", "duration": "1.5"}', "`duration`"),
        ('{"audio_filepath": "a.wav", "duration": true}', "`duration`"),
        ('{"audio_filepath": "a.wav", "duration": 1, "offset": -0.1}', "`offset`"),
        ('{"audio_filepath": "a.wav", "duration": 1, "offset": "0"}', "`offset`"),
        ('{"audio_filepath": "a.wav", "duration": 1, "text": ["a"]}', "`text`"),
        ('{"audio_filepath": "a.wav", "duration": 1, "speaker": 1.5}', "`speaker`"),
        ('{"audio_filepath": "a.wav", "duration": 1, "id": {}}', "`id`"),
        ('{"audio_filepath": "a.wav", "duration": 1', "not JSON"),
        ("a.wav 1.5", "not JSON"),
        ('["a.wav", 1.5]', "not a JSON object"),
    ],
)
def test_faulty_line_is_named_by_file_line_and_key(tmp_path, line, key):
    path = put(tmp_path / "a.jsonl", '{"audio_filepath": "fine.wav", "duration": 1}', "", line)
    with pytest.raises(UserError) as caught:
        Manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert key in message
    assert "\n" not in message


def test_null_is_the_same_as_absent(tmp_path):
    line = '{"audio_filepath": "a.wav", "duration": 1, "offset": null, "text": null, "speaker": null}'
    clip = Manifest(put(tmp_path / "a.jsonl", line))[0]
    assert (clip.id, clip.offset_s, clip.text, clip.speaker) == ("a.wav", 0.0, None, None)


def test_repeated_id_is_refused_with_both_lines(tmp_path):
    path = put(
        tmp_path / "a.jsonl",
        '{"audio_filepath": "a.wav", "duration": 1, "id": "x"}',
        '{"audio_filepath": "b.wav", "duration": 1}',
        '{"audio_filepath": "c.wav", "duration": 1, "id": "x"}',
    )
    with pytest.raises(UserError, match=r"a\.jsonl:3: `id` x is that of line 1"):
        Manifest(path)


def test_missing_empty_and_misencoded_manifests(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot read this manifest \(No such file"):
        Manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="Is a directory"):
        Manifest(tmp_path)
    with pytest.raises(UserError, match="has no clip"):
        Manifest(put(tmp_path / "blank.jsonl", "", ""))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"audio_filepath": "é.wav", "duration": 1}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.jsonl:1: is not JSON .*UTF-8"):
        Manifest(latin)


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    line = '{{"audio_filepath": "{}.wav", "duration": 1}}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + (line.format("a") + line.format("b")).encode())
    clips = Manifest(path)
    assert [clip.id for clip in clips] == ["a.wav", "b.wav"]
    assert [clips[i].id for i in range(2)] == ["a.wav", "b.wav"]


def test_check_files_names_the_first_that_is_missing(tmp_path):
    (tmp_path / "a.wav").touch()
    path = put(tmp_path / "m.jsonl", *(f'{{"audio_filepath": "{name}.wav", "duration": 1}}' for name in "abc"))
    with pytest.raises(UserError, match=rf"m\.jsonl:2: there is no audio file {tmp_path}/b\.wav"):
        Manifest(path).check_files()
    (tmp_path / "b.wav").touch()
    (tmp_path / "c.wav").touch()
    Manifest(path).check_files()


def test_pickles_small_and_reads_on_in_another_place(tmp_path):
    rows = [{"audio_filepath": f"{i}.wav", "duration": 1.0, "text": "word " * 50} for i in range(1000)]
    manifest.write(tmp_path / "a.jsonl", rows)
    clips = Manifest(tmp_path / "a.jsonl")
    pickled = pickle.dumps(clips)
    assert len(pickled) < 1000 * (8 + 4) + 2000  # an offset and a duration a clip, and a header
    assert pickle.loads(pickled)[777] == clips[777]


def test_write_keeps_accents_readable_and_comes_back_equal(tmp_path):
    rows = [{"audio_filepath": "ŋ/é.wav", "duration": 0.25, "text": "ékáá", "extra": [1, None]}]
    manifest.write(tmp_path / "deep/a.jsonl", rows)
    assert "ékáá" in (tmp_path / "deep/a.jsonl").read_text(encoding="utf-8")
    assert [clip.fields for clip in Manifest(tmp_path / "deep/a.jsonl")] == rows


def test_interrupted_write_leaves_the_old_manifest_and_no_litter(tmp_path):
    path = tmp_path / "a.jsonl"
    manifest.write(path, [{"audio_filepath": "old.wav", "duration": 1}])

    def rows():
        yield {"audio_filepath": "new.wav", "duration": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manifest.write(path, rows())
    assert json.loads(path.read_text())["audio_filepath"] == "old.wav"
    assert list(tmp_path.iterdir()) == [path]


def test_line_changed_after_opening_is_reported(tmp_path):
    path = put(tmp_path / "a.jsonl", *(f'{{"audio_filepath": "{name}.wav", "duration": 1}}' for name in "ab"))
    clips = Manifest(path)
    put(path, '{"audio_filepath": "longer.wav", "duration": 1}')
    with pytest.raises(UserError, match=r"a\.jsonl, clip 2 \(was the file changed"):
        clips[1]
