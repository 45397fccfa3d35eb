"""`speechssl embed`: arrays against the encoder itself and, in Hugging Face format, against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import speechssl as package
from speechssl import audio, cli


@pytest.fixture
def embed(capsys, tmp_path):
    """Run the command -> (exit code, rows of embeddings.jsonl, stderr)."""

    def run(checkpoint, source, *overrides):
        capsys.readouterr()
        given = (f"checkpoint={checkpoint}", f"audio={source}", f"out={tmp_path / 'out'}", "trainer.device=cpu")
        code = cli.main(["embed", *given, *overrides])
        path = tmp_path / "out" / "embeddings.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return code, rows, capsys.readouterr().err

    return run


@pytest.fixture
def states(speaker_run, tmp_path):
    """Hidden states [layers + 1, T, C] of a clip of `write_corpus`, alone."""

    def compute(name):
        encoder = package.load_encoder(speaker_run)
        waveform = audio.normalize_waveform(audio.load(tmp_path / name))
        with torch.no_grad():
            output = encoder(waveform[None], torch.tensor([len(waveform)]))
        return torch.stack(output.hidden_states)[:, 0].numpy()

    return compute


def test_frames_and_pooled_vectors_are_the_encoders(embed, speaker_run, write_corpus, states, tmp_path):
    source = write_corpus("clips")
    expected = [states(f"clips/{i}.wav") for i in range(4)]
    for overrides, make in (
        ((), lambda x: x[-1]),
        (("layer=1",), lambda x: x[1]),
        (("layer=all",), lambda x: x),
        (("layer=all", "pooling=mean"), lambda x: x.mean(1)),
        (("layer=0", "pooling=statistics"), lambda x: np.concatenate([x[0].mean(0), np.sqrt(x[0].var(0) + 1e-5)])),
    ):
        code, rows, _ = embed(speaker_run, source, *overrides)
        assert code == 0 and [row["id"] for row in rows] == list("0123")
        for row, x in zip(rows, expected, strict=True):
            array = np.load(tmp_path / "out" / row["embedding_filepath"])
            assert array.dtype == np.float32 and list(array.shape) == row["embedding_shape"]
            np.testing.assert_allclose(array, make(x), atol=1e-4)
        assert rows[1]["speaker"] == "bob"  # the manifest's columns stay


def test_other_formats_hold_the_same(embed, speaker_run, write_corpus, tmp_path):
    source = write_corpus("clips")
    _, rows, _ = embed(speaker_run, source, "pooling=mean")
    wanted = [np.load(tmp_path / "out" / row["embedding_filepath"]) for row in rows]
    from safetensors.numpy import load_file

    _, rows, _ = embed(speaker_run, source, "pooling=mean", "format=safetensors")
    found = load_file(tmp_path / "out" / rows[0]["embedding_filepath"])
    for row, x in zip(rows, wanted, strict=True):
        np.testing.assert_array_equal(found[row["embedding_key"]], x)
    parquet = pytest.importorskip("pyarrow.parquet")
    _, rows, _ = embed(speaker_run, source, "pooling=mean", "format=parquet")
    table = parquet.read_table(tmp_path / "out" / rows[0]["embedding_filepath"]).to_pylist()
    for row, x in zip(rows, wanted, strict=True):
        line = table[row["embedding_row"]]
        assert line["id"] == row["id"] and json.loads(line["manifest"])["speaker"] == row["speaker"]
        np.testing.assert_array_equal(np.float32(line["embedding"]).reshape(line["shape"]), x)


def test_a_folder_of_recordings_and_the_heads_embedding(embed, speaker_run, write_corpus, tmp_path):
    write_corpus("clips")
    code, rows, _ = embed(speaker_run, tmp_path / "clips", "pooling=head")
    assert code == 0 and len(rows) == 4 and rows[0]["embedding_shape"] == [64]  # mean and deviation of 32 channels


def test_unknown_voices_are_grouped_and_drawn(embed, speaker_run, write_corpus, tmp_path):
    source = write_corpus("clips", seconds=(0.5, 0.5, 0.6, 0.6, 0.7, 0.7))
    code, rows, _ = embed(speaker_run, source, "pooling=mean", "clusters=2", "map=true")
    assert code == 0 and {row["cluster"] for row in rows} == {0, 1}
    assert (tmp_path / "out" / "map.svg").read_text().count("<circle") == 6
    assert {row["cluster"] for row in embed(speaker_run, source, "pooling=mean", "clusters=auto")[1]} >= {0, 1}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("layer=3",), "layer=3 must be all, or a number up to 2"),
        (("layer=last",), "layer=last"),
        (("pooling=max",), "pooling=max must be none, mean, statistics or head"),
        (("format=csv",), "format=csv"),
        (("clusters=2",), "add pooling=mean"),
        (("clusters=9", "pooling=mean"), "clusters=9 needs more clips than the 4"),
        (("clusters=some", "pooling=mean"), "clusters=some"),
    ],
)
def test_mistakes_are_one_sentence(embed, speaker_run, write_corpus, overrides, words):
    code, _, err = embed(speaker_run, write_corpus("clips"), *overrides)
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_a_checkpoint_without_a_classifier_has_no_head_to_embed_with(embed, ctc_run, write_corpus):
    code, _, err = embed(ctc_run, write_corpus("clips"), "pooling=head")
    assert code == 2 and "pooling=head" in err


def test_recordings_of_one_name_in_two_folders_stay_apart(embed, speaker_run, write_corpus, tmp_path):
    from safetensors.numpy import load_file

    write_corpus("clips", seconds=(0.5, 0.6))
    for i, who in enumerate(("ann", "bob")):
        (tmp_path / "clips" / who).mkdir()
        (tmp_path / "clips" / f"{i}.wav").rename(tmp_path / "clips" / who / "x.wav")
    code, rows, _ = embed(speaker_run, tmp_path / "clips", "pooling=mean", "format=safetensors")
    assert code == 0 and [row["id"] for row in rows] == ["ann/x.wav", "bob/x.wav"]
    found = load_file(tmp_path / "out" / "embeddings.safetensors")
    assert len(found) == 2 and not np.allclose(*found.values(), atol=1e-3)
