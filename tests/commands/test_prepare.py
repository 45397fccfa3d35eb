"""`speechssl prepare`: manifests written, nothing on stdout, mistakes told in one sentence."""

import pytest
import soundfile
import torch

from speechssl.cli import main
from speechssl.manifest import Manifest


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "my recordings, [1] = é"
    folder.mkdir()
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", torch.rand(8000).numpy() - 0.5, 16_000)
    return folder


def test_folder_to_manifests(tmp_path, recordings, capsys):
    out = tmp_path / "out"
    assert main(["prepare", "corpus=folder", f"corpus.root={recordings}", f"out={out}"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    parts = {path.stem: Manifest(path) for path in out.glob("[!.]*.jsonl")}
    assert set(parts) == {"train", "valid", "test"}
    assert sum(map(len, parts.values())) == 6
    for name, clips in parts.items():
        clips.check_files()
        hours = len(clips) * 0.5 / 3600
        assert f"wrote {out / name}.jsonl: {len(clips)} clips, {hours:.2f} h, 0 speakers" in captured.err


@pytest.mark.parametrize("corpus", ["folder", "fsdd", "mboshi", "librispeech"])
def test_wrong_root_is_one_sentence_and_code_2(tmp_path, corpus, capsys):
    assert main(["prepare", f"corpus={corpus}", f"corpus.root={tmp_path / 'none'}", f"out={tmp_path}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'none'}: no such folder; set corpus.root to" in line


def test_options_reach_the_corpus(tmp_path, recordings, capsys):
    options = ["corpus.valid_share=0", "corpus.test_share=0"]
    assert main(["prepare", "corpus=folder", f"corpus.root={recordings}", f"out={tmp_path / 'o'}", *options]) == 0
    assert [path.name for path in (tmp_path / "o").glob("[!.]*.jsonl")] == ["train.jsonl"]
