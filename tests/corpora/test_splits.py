"""speechssl.corpora.splits: splits that depend on names and seeds alone, and clips left out by name."""

import pytest

from speechssl.corpora import splits
from speechssl.errors import UserError


def rows(count: int, **fields) -> list[splits.Row]:
    return [
        {"audio_filepath": f"/d/{i}.wav", "duration": 6.0, "text": f"t{i}", "id": f"clip{i}", **fields}
        for i in range(count)
    ]


def ids(some: list[splits.Row]) -> set[str]:
    return {row["id"] for row in some}


def test_split_is_a_partition_of_about_the_shares():
    parts = splits.split(rows(4000), shares={"valid": 0.05, "test": 0.1})
    assert sorted(row["id"] for part in parts.values() for row in part) == sorted(ids(rows(4000)))
    # Four standard deviations of a binomial: sqrt(4000 * 0.05 * 0.95) = 13.8, sqrt(4000 * 0.1 * 0.9) = 19.0.
    assert abs(len(parts["valid"]) - 200) < 56
    assert abs(len(parts["test"]) - 400) < 76


def test_split_of_a_clip_depends_neither_on_order_nor_on_what_is_added():
    few = splits.split(rows(300), shares={"valid": 0.2})
    shuffled = splits.split(rows(300)[::-1], shares={"valid": 0.2})
    more = splits.split(rows(900), shares={"valid": 0.2})
    assert ids(few["valid"]) == ids(shuffled["valid"])
    assert ids(few["valid"]) == ids(more["valid"]) & ids(rows(300))


def test_rows_alike_in_the_key_stay_together():
    many = [{**row, "text": f"sentence {i % 50}"} for i, row in enumerate(rows(400))]
    parts = splits.split(many, shares={"valid": 0.3}, key="text")
    assert parts["valid"]
    assert parts["train"]
    assert not {row["text"] for row in parts["valid"]} & {row["text"] for row in parts["train"]}


def test_a_share_gives_one_clip_at_least_but_never_the_last():
    small = splits.split(rows(3), shares={"valid": 1e-9, "test": 1e-9})
    assert {name: len(part) for name, part in small.items()} == {"train": 1, "valid": 1, "test": 1}
    assert [len(part) for part in splits.split(rows(1), shares={"valid": 1e-9}).values()] == [1, 0]
    assert splits.split(rows(100), shares={"valid": 0.0})["valid"] == []


def test_take_minutes_is_seeded_nested_and_transcribed():
    untranscribed = [{"audio_filepath": "/d/x.wav", "duration": 6.0, "id": f"x{i}"} for i in range(50)]
    pool = rows(100) + untranscribed
    two = splits.take_minutes(pool, minutes=2, seed=1)
    assert len(two) == 20  # 120 s of 6 s each
    assert all("text" in row for row in two)
    assert ids(two) == ids(splits.take_minutes(pool[::-1], minutes=2, seed=1))
    assert ids(two) < ids(splits.take_minutes(pool, minutes=4, seed=1))
    assert ids(two) != ids(splits.take_minutes(pool, minutes=2, seed=2))


def test_take_minutes_says_when_there_are_fewer(caplog):
    assert len(splits.take_minutes(rows(10), minutes=10, seed=0)) == 10
    assert "there are 1.0 min" in caplog.text


def test_take_one_each():
    pool = [row for speaker in "ab" for digit in "123" for row in _group(speaker, digit)]
    taken = splits.take_one_each(pool, keys=("speaker", "digit"), seed=0)
    assert sorted((row["speaker"], row["digit"]) for row in taken) == [(s, d) for s in "ab" for d in "123"]
    assert ids(taken) == ids(splits.take_one_each(pool[::-1], keys=("speaker", "digit"), seed=0))
    assert ids(taken) != ids(splits.take_one_each(pool, keys=("speaker", "digit"), seed=1))


def _group(speaker: str, digit: str) -> list[splits.Row]:
    return [{**row, "speaker": speaker, "digit": digit, "id": f"{speaker}{digit}{row['id']}"} for row in rows(20)]


def test_audio_files_are_sorted_and_hidden_ones_skipped(tmp_path, write_clip):
    for name in ("b/2.wav", "a.FLAC", "b/1.opus", "._a.wav", ".cache/c.wav"):
        write_clip(tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no audio")
    found = [path.relative_to(tmp_path).as_posix() for path in splits.audio_files(tmp_path)]
    assert found == ["a.FLAC", "b/1.opus", "b/2.wav"]


def test_find_root(tmp_path):
    (tmp_path / "corpus/train").mkdir(parents=True)
    wanted = {"holds": ("train",), "inside": ("corpus",), "expected": "train in it"}
    assert splits.find_root(tmp_path, **wanted) == tmp_path / "corpus"
    assert splits.find_root(tmp_path / "corpus", **wanted) == tmp_path / "corpus"
    with pytest.raises(UserError, match=r"no such folder; set corpus\.root to the folder with train in it"):
        splits.find_root(tmp_path / "none", **wanted)
    with pytest.raises(UserError, match=r"is not the folder of this corpus; .* train in it"):
        splits.find_root(tmp_path / "corpus/train", **wanted)
