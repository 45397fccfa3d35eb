"""The corpora that users bring as tables: Kaldi, NeMo, lhotse, STM, Common Voice, Libri-Light, VoxCeleb, tar shards."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from speechssl import audio
from speechssl.corpora import commonvoice, kaldi, lhotse, librilight, nemo, stm, voxceleb, webdataset
from speechssl.corpora.preparing import Preparation
from speechssl.errors import UserError
from speechssl.manifest import Manifest


@pytest.fixture
def job(tmp_path):
    return Preparation(tmp_path / "out")


def reasons(job):
    return {item["id"]: item["reason"] for item in job.report.left_out}


# Kaldi


@pytest.fixture
def data(tmp_path, write_clip):
    """A Kaldi data folder of two recordings of 4 s and what could be wrong with one; a path relative to its parent."""
    folder = tmp_path / "exp/data/train"
    folder.mkdir(parents=True)
    for name in ("r1.wav", "r2.flac", "r3.flac", "r 4.wav"):
        write_clip(tmp_path / "exp/audio" / name, seconds=4.0)
    (folder / "wav.scp").write_text(
        f"r1 audio/r1.wav\nr2\tflac -c -d -s {tmp_path}/exp/audio/r2.flac |\n"
        f"r3 touch {tmp_path}/pwned; cat {tmp_path}/exp/audio/r3.flac |\n"
        f"r4 cat '{tmp_path}/exp/audio/r 4.wav' |\nr5 foo.ark:123\n"
        f"r6 sox {tmp_path}/exp/audio/r1.wav -t wav -r 8k - |\n"
    )
    return folder


def test_kaldi_recordings_and_pipes_that_are_not_run(tmp_path, data, job, read_manifest):
    (data / "text").write_text("r1 hello  wörld\nr2 two\n", encoding="utf-8")
    (data / "utt2spk").write_text("r1 ann\nr2 bob\nr4 ann\n")
    assert kaldi.prepare(data, job) == {"train": 3, "left_out": 3}
    clips = read_manifest(tmp_path / "out/train.jsonl")
    assert clips["r1"].audio_path == tmp_path / "exp/audio/r1.wav"
    assert (clips["r1"].text, clips["r1"].speaker, clips["r4"].text) == ("hello  wörld", "ann", None)
    assert not (tmp_path / "pwned").exists()
    assert "is a shell command, which is not run (touch" in reasons(job)["r3"]
    assert "is a shell command" in reasons(job)["r6"]
    assert "part of an archive" in reasons(job)["r5"]


def test_kaldi_segments(tmp_path, data, job, read_manifest):
    (data / "segments").write_text(
        "u1 r1 0.5 1.75\nu2 r1 2 -1\nu3 r2 3.0 5.0\nu4 r2 2 1\nu5 r2 -1 1\nu6 none 0 1\nu7 r2 0\nu8 r2 0 x\n"
    )
    (data / "utt2spk").write_text("u1 ann\n")
    assert kaldi.prepare(data.parent, job)["train"] == 2
    clips = read_manifest(tmp_path / "out/train.jsonl")
    assert (clips["u1"].offset_s, clips["u1"].duration_s, clips["u1"].speaker) == (0.5, 1.25, "ann")
    assert (clips["u2"].offset_s, clips["u2"].duration_s) == (2.0, 2.0)
    for name, reason in [
        ("u3", "to 5.000 s, the file lasts 4.000 s"),
        ("u4", "less than one frame"),
        ("u5", "from -1.000 s"),
        ("u6", "which wav.scp does not have"),
        ("u7", "has 3 columns, not 4"),
        ("u8", "'x' is no number of seconds"),
    ]:
        assert reason in reasons(job)[name], name


def test_kaldi_channels_and_folders(tmp_path, job, read_manifest):
    stereo = np.stack([np.full(16_000, 0.25), np.full(16_000, 0.5)], axis=1)
    for part in ("train_clean", "dev", "eval1"):
        folder = tmp_path / "data" / part
        folder.mkdir(parents=True)
        soundfile.write(folder / "call.wav", stereo, 16_000)
        (folder / "wav.scp").write_text("call call.wav\n")
        (folder / "segments").write_text("a call 0 1\n")
        (folder / "reco2file_and_channel").write_text("call call B\n")
    assert kaldi.prepare(tmp_path / "data", job) == {"train": 1, "valid": 1, "test": 1, "left_out": 0}
    clip = read_manifest(tmp_path / "out/test.jsonl")["a"]
    assert clip.channel == 1
    assert audio.load(clip.audio_path, channel=clip.channel).mean().item() == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"has no wav\.scp; set corpus\.train"):
        kaldi.prepare(tmp_path / "data", job, train=["none"])
    with pytest.raises(UserError, match=r"has no train\*/wav\.scp"):
        kaldi.prepare(tmp_path, job)


# NeMo


def test_nemo_manifests(tmp_path, write_clip, job, read_manifest):
    write_clip(tmp_path / "in/sub/a.wav", seconds=3.0)
    lines = [
        {"audio_filepath": "sub/a.wav", "duration": 3.0, "text": "whole", "emotion": "calm"},
        {"audio_filepath": str(tmp_path / "in/sub/a.wav"), "duration": 1.0, "offset": "0.5", "text": "part"},
        {"audio_filepath": "sub/a.wav", "offset": 1.0, "text": None},
        {"audio_filepath": "sub/a.wav", "offset": -1.0, "duration": 1.0},
        {"audio_filepath": "sub/a.wav", "duration": "long"},
        {"audio_filepath": "gone.wav", "duration": 1.0},
        {"duration": 1.0},
        {"audio_filepath": "sub/a.wav", "duration": 3.0, "text": "whole"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "in/train.json").write_text("\ufeff" + text + "\n[1]\n{\n" + "[" * 100_000 + "\n", encoding="utf-8")
    (tmp_path / "in/dev.jsonl").write_text(json.dumps(lines[0]))
    assert nemo.prepare(tmp_path / "in", job) == {"train": 3, "valid": 1, "left_out": 8}
    clips = read_manifest(tmp_path / "out/train.jsonl")
    assert clips["sub/a.wav"].fields["emotion"] == "calm"
    part = clips[f"{tmp_path}/in/sub/a.wav@0.5"]
    assert (part.offset_s, part.duration_s, part.text) == (0.5, 1.0, "part")
    assert (clips["sub/a.wav@1"].duration_s, clips["sub/a.wav@1"].text) == (2.0, None)
    assert any("has the name of" in reason for reason in reasons(job).values())
    with pytest.raises(UserError, match=r"has no train\.json"):
        nemo.prepare(tmp_path, job)


# lhotse


@pytest.fixture
def cut():
    def make(name, **changes):
        recording = {
            "id": "rec",
            "sources": [{"type": "file", "channels": [0], "source": "wavs/a.wav"}],
            "sampling_rate": 16_000,
            "num_samples": 64_000,
            "duration": 4.0,
            "channel_ids": [0],
        }
        common = {"id": name, "start": 0.5, "duration": 2.0, "channel": 0, "supervisions": [], "type": "MonoCut"}
        return {**common, "recording": recording, **changes}

    return make


def supervision(name, start, duration, text):
    times = {"start": start, "duration": duration, "channel": 0}
    return {"id": name, "recording_id": "rec", **times, "text": text, "speaker": "ann", "language": "en"}


def test_lhotse_cuts(tmp_path, cut, write_clip, job, read_manifest):
    import gzip

    write_clip(tmp_path / "in/wavs/a.wav", seconds=4.0)
    cuts = [
        cut("one", supervisions=[supervision("s", 0.0, 2.0, "héllo")]),
        cut("none"),
        cut("two", supervisions=[supervision("x", 0.25, 0.5, "a"), supervision("y", 1.0, 1.0, "b")]),
        cut("mixed", type="MixedCut"),
        {"id": "odd"},
        cut("memory", recording={**cut("x")["recording"], "sources": [{"type": "memory", "source": "…"}]}),
        cut("stretched", recording={**cut("x")["recording"], "transforms": [{"name": "Speed"}]}),
    ]
    with gzip.open(tmp_path / "in/cuts_train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in cuts)
    assert lhotse.prepare(tmp_path / "in", job) == {"train": 4, "left_out": 4}
    clips = read_manifest(tmp_path / "out/train.jsonl")
    assert (clips["one"].offset_s, clips["one"].duration_s, clips["one"].text) == (0.5, 2.0, "héllo")
    assert (clips["one"].speaker, clips["one"].fields["lang"]) == ("ann", "en")
    assert (clips["x"].offset_s, clips["x"].duration_s, clips["y"].offset_s) == (0.75, 0.5, 1.5)
    (tmp_path / "in/cuts_train.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read as JSON Lines"):
        lhotse.prepare(tmp_path / "in", job)


def test_cuts_that_lhotse_wrote(tmp_path, write_clip, job, read_manifest):
    library = pytest.importorskip("lhotse")
    recording = library.Recording.from_file(write_clip(tmp_path / "in/a.wav", seconds=4.0))
    segments = [library.SupervisionSegment("s", recording.id, 0.5, 1.5, text="hello", speaker="ann")]
    whole = library.MonoCut("c", 0, 4.0, 0, supervisions=segments, recording=recording)
    parts = library.CutSet.from_cuts([whole]).trim_to_supervisions()
    parts.to_file(tmp_path / "in/cuts.jsonl.gz")
    lhotse.prepare(tmp_path / "in", job)
    [clip] = read_manifest(tmp_path / "out/train.jsonl").values()
    assert (clip.offset_s, clip.duration_s, clip.text, clip.speaker) == (0.5, 1.5, "hello", "ann")
    [theirs] = parts
    expected = theirs.load_audio()[0]
    np.testing.assert_allclose(audio.load(clip.audio_path, offset_s=0.5, duration_s=1.5), expected, atol=1e-6)


# STM, as TED-LIUM has it


def test_stm_segments(tmp_path, write_clip, job, read_manifest):
    write_clip(tmp_path / "in/train/sph/Talk_2001.flac", seconds=10.0)
    table = tmp_path / "in/train/stm/Talk_2001.stm"
    table.parent.mkdir()
    table.write_text(
        ";; a comment\n"
        "Talk_2001 1 spk_a 0.5 3.25 <o,f0,male> we don 't read(2) it\n"
        "Talk_2001 1 spk_a 3.25 6 <o,f0,male> ignore_time_segment_in_scoring\n"
        "Talk_2001 1 spk_b 6 9.5 <o,f0,female> thanks <unk>\n"
        "Talk_2001 1 spk_b 9 12 <o,f0,female> too far\n"
        "Gone 1 spk_b 1 2 <o,f0,female> x\n"
        "Talk_2001 1 spk_b nan 2 <o> x\nTalk_2001 1\n"
    )
    assert stm.prepare(tmp_path / "in", job, valid=[], test=[]) == {"train": 2, "left_out": 4}
    clips = read_manifest(tmp_path / "out/train.jsonl")
    first = clips["Talk_2001-0.5-3.25"]
    assert (first.offset_s, first.duration_s, first.text, first.speaker) == (0.5, 2.75, "we don't read it", "spk_a")
    assert clips["Talk_2001-6-9.5"].text == "thanks <unk>"
    with pytest.raises(UserError, match="has no STM file below dev"):
        stm.prepare(tmp_path / "in", job, test=[])


# Common Voice


def test_common_voice(tmp_path, write_clip, job, read_manifest):
    root = tmp_path / "cv/fr"
    for name in ("a.mp3", "b.mp3", "c.mp3"):
        write_clip(root / "clips" / name, seconds=1.0)
    head = "client_id\tpath\tsentence\tlocale\n"
    (root / "train.tsv").write_text(
        head + 's1\ta.mp3\t"Il a dit : « "ça va »\tfr\ns2\tb\tBon\tfr\ns3\tc.mp3\n', "utf-8"
    )
    (root / "dev.tsv").write_text(head + "s2\tc.mp3\tOui\tfr\n", "utf-8")
    assert commonvoice.prepare(root, job, test=[]) == {"train": 2, "valid": 1, "left_out": 1}
    clips = read_manifest(tmp_path / "out/train.jsonl")
    assert clips["a.mp3"].text == '"Il a dit : « "ça va »'  # quotes are characters in these tables
    assert (clips["b.mp3"].speaker, clips["b.mp3"].fields["lang"]) == ("s2", "fr")
    with pytest.raises(UserError, match=r"has no test\.tsv; set corpus\.test to some of \[dev, train\]"):
        commonvoice.prepare(root, job)


# Libri-Light


def test_libri_light_limited_splits(tmp_path, write_clip, job, read_manifest):
    root = tmp_path / "librispeech_finetuning"
    for number in range(6):
        write_clip(root / f"1h/{number}/clean/{number}/9/{number}-9-0000.flac")
        (root / f"1h/{number}/clean/{number}/9/{number}-9.trans.txt").write_text(f"{number}-9-0000 TEN {number}\n")
    write_clip(root / "9h/other/77/8/77-8-0000.flac")
    (root / "9h/other/77/8/77-8.trans.txt").write_text("77-8-0000 NINE\n")
    counts = librilight.prepare(tmp_path, job, ten_minutes=2)
    assert counts == {"train": 7, "train_10min": 1, "train_1h": 6, "train_10h": 7, "left_out": 0}
    [clip] = read_manifest(tmp_path / "out/train_10min.jsonl").values()
    assert (clip.id, clip.text, clip.speaker) == ("2-9-0000", "TEN 2", "2")
    with pytest.raises(UserError, match=r"has no set 6; set corpus\.ten_minutes to one of \[0, 1, 2, 3, 4, 5\]"):
        librilight.prepare(tmp_path, job, ten_minutes=6)


def test_libri_light_untranscribed(tmp_path, write_clip, job, read_manifest):
    for speaker in range(30):
        write_clip(tmp_path / f"in/small/{speaker}/book/x.flac")
    counts = librilight.prepare(tmp_path / "in", job, valid_share=0.1)
    assert counts["train"] + counts["valid"] == 30
    assert read_manifest(tmp_path / "out/train.jsonl")["small/7/book/x.flac"].speaker == "7"
    with pytest.raises(UserError, match="is not the folder of this corpus"):
        librilight.prepare(tmp_path / "in/small/7", job)


# VoxCeleb


def test_voxceleb(tmp_path, write_clip, job, read_manifest):
    for name in ("id10001/abc/00001.wav", "id10001/abc/00002.wav", "id10001/def/00001.wav", "id10002/ghi/00001.wav"):
        write_clip(tmp_path / "in/wav" / name)
    assert sum(voxceleb.prepare(tmp_path / "in", job, valid_share=0, test_share=0).values()) == 4
    (tmp_path / "in/iden_split.txt").write_text(
        "1 id10001/abc/00001.wav\n3 id10001/def/00001.wav\n2 id10001/abc/00002.wav\n"
    )
    assert voxceleb.prepare(tmp_path / "in", job) == {"train": 1, "valid": 1, "test": 1, "left_out": 1}
    assert read_manifest(tmp_path / "out/test.jsonl")["id10001/def/00001.wav"].speaker == "id10001"
    assert "is not in iden_split.txt" in reasons(job)["id10002/ghi/00001.wav"]


# Tar shards


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def wav(value, seconds=0.5):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(round(16_000 * seconds), value), 16_000, format="WAV")
    return buffer.getvalue()


def test_shards_of_others(tmp_path, job, read_manifest):
    outside = tmp_path / "outside.wav"
    tar(
        tmp_path / "in/a.tar",
        [
            ("0001.wav", wav(0.1)),
            ("0001.txt", "né  a\n".encode()),
            ("sub/0002.json", json.dumps({"text": "b", "speaker": 7, "duration": 99, "id": "x"}).encode()),
            ("sub/0002.wav", wav(0.2)),
            (str(outside), wav(0.3)),
            ("../../escape.wav", wav(0.4)),
            ("0003.flac", b"broken"),
            ("0004.txt", b"no audio"),
            ("0005.wav", b""),
            ("0006.json", b"{"),
            ("0006.wav", wav(0.6)),
        ],
    )
    tar(tmp_path / "in/valid-0.tar", [("1.wav", wav(0.9))])
    counts = webdataset.prepare(tmp_path / "in", job, valid=["valid-*.tar"])
    assert counts == {"train": 4, "valid": 1, "left_out": 3}
    assert not outside.exists() and not list(tmp_path.rglob("escape.wav"))
    clips = read_manifest(tmp_path / "out/train.jsonl")
    assert (clips["a/0001"].text, clips["a/0001"].duration_s) == ("né a", 0.5)
    assert (clips["a/sub/0002"].text, clips["a/sub/0002"].speaker, clips["a/sub/0002"].duration_s) == ("b", "7", 0.5)
    values = [audio.load(c.audio_path, byte_range=c.byte_range).mean().item() for c in clips.values()]
    assert values == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-4)


@pytest.mark.parametrize("kind", ["compressed", "cut", "junk"])
def test_shards_that_cannot_be_read(tmp_path, job, kind):
    path = tmp_path / "in/a.tar"
    tar(path, [("0001.wav", wav(0.1)), ("0002.wav", wav(0.1))])
    data = path.read_bytes()
    if kind == "compressed":
        import gzip

        data = gzip.compress(data)
    path.write_bytes({"cut": data[:20_000], "junk": b"junk" * 999}.get(kind, data))
    with pytest.raises(UserError, match=r"a\.tar: cannot be read as an uncompressed tar"):
        webdataset.prepare(tmp_path / "in", job)


def test_a_shard_does_not_fill_memory(tmp_path, job):
    members = [("1.wav", wav(0.1)), ("1.txt", b"a" * (2**20 + 1)), ("2.wav", wav(0.2)), ("2.json", b"[" * 10**6)]
    tar(tmp_path / "in/a.tar", [*members, ("3.wav", wav(0.3))])
    assert webdataset.prepare(tmp_path / "in", job) == {"train": 1, "left_out": 2}
    assert "more than 1 MiB of text" in reasons(job)["a/1"] and "cannot be read" in reasons(job)["a/2"]


def test_a_shard_with_a_file_that_is_larger_than_it_says_is_refused(tmp_path, job):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("1.txt")
        member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**40)}
        file.addfile(member)
    with pytest.raises(UserError, match=r"a\.tar: its 1\.txt is a sparse file"):
        webdataset.prepare(tmp_path / "in", job)


def test_links_in_a_shard_lead_nowhere(tmp_path, job, read_manifest):
    tar(tmp_path / "in/a.tar", [("1.wav", wav(0.1))])
    with tarfile.open(tmp_path / "in/a.tar", "a") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("1.txt")
            member.type, member.linkname = kind, "/etc/hostname"
            file.addfile(member)
    webdataset.prepare(tmp_path / "in", job)
    assert read_manifest(tmp_path / "out/train.jsonl")["a/1"].text is None


def test_no_corpus_is_one_sentence(tmp_path, job):
    for reader in (kaldi, nemo, lhotse, stm, commonvoice, librilight, voxceleb, webdataset):
        with pytest.raises(UserError, match=r"set corpus\.\w+ to"):
            reader.prepare(tmp_path, job)
        with pytest.raises(UserError, match=r"no such folder; set corpus\.root to"):
            reader.prepare(tmp_path / "none", job)


def test_what_is_written_is_a_manifest(tmp_path, write_clip, job):
    write_clip(tmp_path / "in/wav/id1/v/a.wav")
    voxceleb.prepare(tmp_path / "in", job, valid_share=0, test_share=0)
    assert len(Manifest(tmp_path / "out/train.jsonl")) == 1
