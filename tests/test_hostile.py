"""Files made to do harm: each is refused with a sentence and exit code 2; nothing of them runs or fills memory."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save, save_file

from speechssl import cli

# A hostile file may not make the process larger than this.
ALLOWED_BYTES = 300 << 20


class Mischief:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refused(tmp_path, *arguments):
    """The sentence with which a command refuses, in a process of its own; asserts that it does, in little memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
        sys.stderr = os.fdopen(writer, "w", encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code = cli.main([str(argument) for argument in arguments])
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        sys.stderr.flush()
        os._exit(code if grown < ALLOWED_BYTES else 99)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 2, said
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert not (tmp_path / "marker").exists()
    return sentence


@pytest.fixture
def attack(tmp_path, ctc_run, audio_tools):
    """`attack(change)`: what transcribing says with a checkpoint that `change(folder)` has spoilt."""
    folder = ctc_run / "checkpoints" / "step_1"
    clip = audio_tools.save(tmp_path / "clip.wav", audio_tools.spell("ab"))

    def run(change):
        (folder / "checksums.json").unlink()  # an attacker's fit, or are not there
        change(folder)
        return refused(tmp_path, "transcribe", f"checkpoint={folder}", f"audio={clip}")

    return run


def edit(**changes):
    """A change of config.json: `encoder__num_layers=3` sets config["encoder"]["num_layers"]."""

    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = config
            for parent in parents:
                place = place[parent]
            place[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def put(name, content):
    def change(folder):
        (folder / name).write_bytes(content)

    return change


def header(length, text=b"{}"):
    return struct.pack("<Q", length) + text


def tensor_header(**tensors):
    text = json.dumps({name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in tensors.items()})
    return header(len(text), text.encode())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(put("model.safetensors", header(2**63)), "cannot be read", id="header-of-exabytes"),
        pytest.param(put("model.safetensors", header(2**20, b"{" * 2**20)), "cannot be read", id="header-not-json"),
        pytest.param(
            put("model.safetensors", tensor_header(a=("F32", [2**40], [0, 2**42]))), "cannot be read", id="tebibytes"
        ),
        pytest.param(
            put("model.safetensors", tensor_header(a=("F32", [2], [0, 8]), b=("F32", [2], [4, 12])) + bytes(12)),
            "cannot be read",
            id="overlapping-tensors",
        ),
        pytest.param(put("config.json", b"[" * 100_000), "cannot be read", id="nested-json"),
        pytest.param(put("config.json", b'{"format": "speechssl", "version": 1}'), "sample_rate", id="empty-config"),
        pytest.param(edit(encoder__num_layers=10**9), "num_layers is 1000000000", id="billion-layers"),
        pytest.param(edit(encoder__hidden_size=10**18), "hidden_size", id="huge-layer"),
        pytest.param(edit(encoder__hidden_size=2**18), "shape", id="large-layer"),
        pytest.param(edit(encoder__hidden_size="__import__('os')"), "hidden_size", id="code-as-number"),
        pytest.param(edit(encoder__conv_strides=[0] * 7), "conv_strides", id="stride-0"),
        pytest.param(edit(encoder___target_="os.system"), "unknown keys", id="target-in-encoder"),
        pytest.param(edit(objective___target_="os.system"), "cannot be built", id="target-in-objective"),
        pytest.param(edit(objective__name="../../evil"), "no objective", id="objective-path"),
        pytest.param(edit(objective__vocabulary=[["<blank>"], {}]), "vocabulary", id="vocabulary-not-text"),
        pytest.param(edit(objective__vocabulary=["<blank>", *map(str, range(99_999))]), "shape", id="large-vocabulary"),
        pytest.param(edit(objective__lora_rank=10**12), "lora_rank", id="huge-option"),
        pytest.param(edit(sample_rate=10**12), "sample_rate", id="sample-rate"),
        pytest.param(edit(version="1; rm -rf /"), "version", id="version"),
    ],
)
def test_a_hostile_checkpoint_is_refused(attack, change, reason):
    assert reason in attack(change)


def test_a_pickle_for_weights_is_not_run(attack, tmp_path):
    assert "cannot be read" in attack(put("model.safetensors", pickle.dumps(Mischief(tmp_path / "marker"))))


def test_weights_that_are_not_finite_are_refused(attack):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["objective.linear.bias"][0] = torch.nan
        save_file(tensors, folder / "model.safetensors")

    assert "not finite" in attack(spoil)


def test_weights_of_another_kind_are_refused(attack):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["objective.linear.bias"] = tensors["objective.linear.bias"].long()
        save_file(tensors, folder / "model.safetensors")

    assert "int64" in attack(spoil)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(attack):
    def spoil(folder):
        with (folder / "model.safetensors").open("ab") as file:
            file.truncate(2**43)  # sparse: it takes no room

    try:
        assert "larger than this machine's memory" in attack(spoil)
    except OSError:
        pytest.skip("this file system has no sparse files of 8 TiB")


def test_a_config_of_gigabytes_is_refused_before_it_is_read(attack):
    def spoil(folder):
        with (folder / "config.json").open("ab") as file:
            file.truncate(2**33)

    assert "larger than 64 MiB" in attack(spoil)


def test_a_torch_file_that_runs_code_is_refused(tmp_path, audio_tools):
    clip = audio_tools.save(tmp_path / "clip.wav", audio_tools.spell("ab"))
    torch.save({"model": Mischief(tmp_path / "marker")}, tmp_path / "model.pt")
    assert refused(tmp_path, "transcribe", f"checkpoint={tmp_path / 'model.pt'}", f"audio={clip}")


def test_a_zip_bomb_for_a_torch_file_is_refused(tmp_path, audio_tools):
    clip = audio_tools.save(tmp_path / "clip.wav", audio_tools.spell("ab"))
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(2**29))
    assert refused(tmp_path, "transcribe", f"checkpoint={tmp_path / 'model.pt'}", f"audio={clip}")


def test_an_index_may_not_name_files_outside_of_its_folder(tmp_path, audio_tools):
    clip = audio_tools.save(tmp_path / "clip.wav", audio_tools.spell("ab"))
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.safetensors").write_bytes(save({"a": torch.ones(1)}))
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert "index.json" in refused(tmp_path, "transcribe", f"checkpoint={folder}", f"audio={clip}")


# Audio and manifests


def wav(*, rate=16_000, channels=1, promised=64, data=b"\0" * 64):
    """A WAV file that claims what it likes."""
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) % 2**32, (channels * 2) % 2**16, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", promised) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(wav(rate=2**32 - 1), id="sample-rate"),
        pytest.param(wav(channels=1024, data=bytes(4096), promised=4096), id="channels"),
        pytest.param(wav(promised=2**31), id="promises"),
        pytest.param(b"RIFF\xff\xff\xff\xffWAVE", id="cut"),
        pytest.param(b"fLaC" + bytes(64), id="flac"),
        pytest.param(b"OggS" + b"\xff" * 512, id="ogg"),
        pytest.param(b"#!/bin/sh\ntouch marker\n", id="script"),
    ],
)
def test_hostile_audio_is_refused(tmp_path, ctc_run, content):
    (tmp_path / "clip.wav").write_bytes(content)
    assert "clip.wav" in refused(tmp_path, "transcribe", f"checkpoint={ctc_run}", f"audio={tmp_path / 'clip.wav'}")


def test_a_small_file_of_days_of_silence_does_not_fill_memory(tmp_path, ctc_run):
    with soundfile.SoundFile(tmp_path / "clip.flac", "w", 8_000, 8, format="FLAC") as file:
        for _ in range(20):
            file.write(np.zeros((2**20, 8), dtype=np.int16))
    content = bytearray((tmp_path / "clip.flac").read_bytes())
    content[21:26] = bytes([content[21] & 0xF0 | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # STREAMINFO's count: 2^36 - 1 samples
    (tmp_path / "clip.flac").write_bytes(content)
    assert "clip.flac" in refused(tmp_path, "transcribe", f"checkpoint={ctc_run}", f"audio={tmp_path / 'clip.flac'}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"audio_filepath": "pipe", "duration": 1.0}, "no audio file", id="pipe"),
        pytest.param({"audio_filepath": "/dev/zero", "duration": 1.0}, "/dev/zero", id="device"),
        pytest.param({"audio_filepath": "touch marker |", "duration": 1.0}, "no audio file", id="kaldi-pipe"),
        pytest.param({"audio_filepath": "x\0.wav", "duration": 1.0}, "audio", id="null-byte"),
        pytest.param({"audio_filepath": "0.wav", "duration": 1e300}, "", id="duration"),
        pytest.param({"audio_filepath": "0.wav", "duration": float("nan")}, "duration", id="nan"),
        pytest.param({"audio_filepath": "0.wav", "duration": 1.0, "offset": -1e9}, "offset", id="offset"),
        pytest.param({"audio_filepath": "0.wav", "duration": True}, "duration", id="bool"),
    ],
)
def test_a_hostile_manifest_is_refused(tmp_path, ctc_run, row, reason, audio_tools):
    audio_tools.save(tmp_path / "0.wav", audio_tools.spell("ab"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "ab", **row}) + "\n")
    found = refused(
        tmp_path,
        "evaluate",
        f"checkpoint={ctc_run}",
        f"data.test={tmp_path / 'test.jsonl'}",
        f"out={tmp_path / 'out'}",
        "trainer.device=cpu",
    )
    assert reason in found


def test_a_manifest_with_nested_json_is_refused(tmp_path, ctc_run):
    (tmp_path / "test.jsonl").write_text("[" * 100_000 + "\n")
    out = f"out={tmp_path / 'out'}"
    assert refused(tmp_path, "evaluate", f"checkpoint={ctc_run}", f"data.test={tmp_path / 'test.jsonl'}", out)
