"""`speechssl probe` on tones: the files, the table, the floors and what is refused."""

from __future__ import annotations

import json

import pytest

QUICK = ("steps=20", "lrs=[1e-2,1e-1]", "trainer.device=cpu")


@pytest.fixture
def probe(speechssl, speaker_run, tmp_path):
    """Run the command on a manifest for all splits -> the result of `speechssl`, and probe.json."""

    def run(manifest, *overrides):
        splits = [f"data.{name}={manifest}" for name in ("train", "valid", "test")]
        done = speechssl("probe", f"checkpoint={speaker_run}", f"out={tmp_path / 'out'}", *splits, *QUICK, *overrides)
        path = tmp_path / "out" / "probe.json"
        return done, json.loads(path.read_text()) if path.is_file() else None

    return run


def test_every_layer_and_both_floors(probe, write_corpus, tmp_path):
    manifest = write_corpus("clips", seconds=(0.5, 0.6, 0.4, 0.8, 0.5, 0.7))
    others = tmp_path / "others.jsonl"
    others.write_text(manifest.read_text().replace("ann", "eve").replace("bob", "fay"))
    done, found = probe(manifest, f"data.verify={others}")
    assert done.code == 0
    layers = ["0", "1", "2", "weighted"]
    expected = [(name, layer) for name in ("encoder", "random encoder") for layer in layers] + [("log-mel", "log-mel")]
    assert [(row["source"], row["layer"]) for row in found["results"]] == expected
    assert found["metric"] == "accuracy" and found["num_outputs"] == 2 and found["num_train"] == 6
    for row in found["results"]:
        assert 0 <= row["interval"][0] <= row["test"] <= row["interval"][1] <= 1 and row["lr"] in (1e-2, 1e-1)
        assert ("eer" in row) == (row["layer"] != "weighted")
    assert done.out.count("\n") == 1 + 9 and "EER" in done.out
    done, _ = probe(manifest, f"data.verify={manifest}")
    assert done.code == 2 and "no speaker in common, and 'ann' is in both (2 in all)" in done.sentence
    assert "random encoder" in (tmp_path / "out" / "probe.svg").read_text()


def test_silence_is_named(probe, write_corpus, silence):
    manifest = write_corpus("clips")
    silence(manifest, 1)
    done, _ = probe(manifest)
    assert done.code == 2 and "clips/1.wav: is silence" in done.sentence
    done, _ = probe(manifest, "target=characters", "floors=false")  # it says nothing, which can be written
    assert done.code == 0


def test_characters(probe, write_corpus):
    done, found = probe(write_corpus("clips"), "target=characters", "floors=false")
    assert done.code == 0 and found["metric"] == "cer" and found["num_outputs"] == 3  # the blank, a and b
    assert {row["source"] for row in found["results"]} == {"encoder"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("label=colour",), "0 different values of 'colour'"),
        (("target=words",), "target=words must be label or characters"),
        (("pooling=attentive",), "pooling=attentive must be mean or statistics"),
        (("target=characters", "data.verify=x.jsonl"), "data.verify"),
        (("data.test=gone.jsonl",), "gone.jsonl"),
        (("lrs=[]",), "lrs=[] must be"),
        (("lrs=[-1e-3]",), "above 0"),
    ],
)
def test_mistakes_are_one_sentence(probe, write_corpus, overrides, words):
    done, _ = probe(write_corpus("clips"), *overrides)
    assert done.code == 2 and words in done.sentence


def test_one_speaker_only_and_a_speaker_without_training_clips(probe, write_corpus):
    done, _ = probe(write_corpus("one", speaker="ann"))
    assert done.code == 2 and "1 different values of 'speaker'" in done.sentence
    other = write_corpus("other", speaker="zoe")
    done, _ = probe(write_corpus("two"), f"data.test={other}")
    assert done.code == 2 and "'zoe' does not occur" in done.sentence
