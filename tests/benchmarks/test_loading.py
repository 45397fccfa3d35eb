"""what=data: all sides load the same batches, and the report has what was asked for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from speechssl import cli
from speechssl.benchmarks import loading, loading_peers
from speechssl.data.sampler import DurationBuckets

SETTINGS = {
    "peer": None,
    "trainer": {"seed": 0, "device": "cpu"},
    "data": {"workers": [0], "max_clip_s": 3.0, "batch_seconds": 8.0, "batches": 2, "rounds": 1},
}


def seconds(batches):
    return list(islice(batches, 3))


@pytest.mark.parametrize("name", loading.FORMATS)
def test_every_side_loads_the_same_audio(tmp_path, name):
    clips = loading.write_clips(tmp_path / name, name, seconds=20.0, seed=0, longest_s=5.0)
    durations_s = np.minimum(clips.durations_s, 3.0)
    keys = DurationBuckets(durations_s, batch_seconds=8.0, seed=0, shards=clips.shards).epoch(0)
    expected = [durations_s[batch[:, 1]].sum() for batch in islice(keys, 3)]
    assert seconds(loading._limit(clips, SETTINGS)) == pytest.approx(expected, abs=0.01)
    assert seconds(loading._ours(clips, SETTINGS, 0)) == pytest.approx(expected, abs=0.01)
    if clips.shards is None and name in ("wav", "flac_44k"):
        for peer in loading_peers.chosen("all"):
            assert loaded_apart(peer, name, tmp_path / peer) == pytest.approx(expected, abs=0.01), peer


def loaded_apart(peer, name, folder):
    """Seconds of three batches of a peer, in a process of its own: what SpeechBrain imports fails when looked into."""
    program = f"""
import json
from itertools import islice
from pathlib import Path
from speechssl.benchmarks import loading, loading_peers
settings = {SETTINGS!r}
clips = loading.write_clips(Path({str(folder)!r}), {name!r}, seconds=20.0, seed=0, longest_s=5.0)
batches = loading_peers.PEERS[{peer!r}](clips, loading.keys(clips, settings), settings, 0)
print(json.dumps(list(islice(batches, 3))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_report_and_the_table(tmp_path, capsys):
    options = ["model=tiny", "model.encoder.num_layers=1", "steps=1"]
    options += ["warmup_steps=1", "data.formats=[flac,shards]", "data.workers=[0,1]", "data.seconds=25"]
    options += ["data.batch_seconds=6", "data.batches=2", "data.rounds=1", "trainer.device=cpu"]
    assert cli.main(["benchmark", "what=data", *options, f"json={tmp_path}/r.json"]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["formats"]) == {"flac", "shards"}
    for sides in report["formats"].values():
        assert set(sides) == {loading.LIMIT, "speechssl, 0 workers", "speechssl, 1 workers"}
        assert all(side["audio_seconds_per_second"] > 0 and side["of_limit"] > 0 for side in sides.values())
    assert 0 <= report["loader_share"] <= 1 and report["loader_share_workers"] == 1
    assert "speechssl, 1 workers" in capsys.readouterr().out


def test_users_mistakes(capsys):
    for override, words in (
        ("data.formats=[wav,aac]", "data.formats has"),
        ("peer=nobody", "peer=nobody is not known"),
    ):
        assert cli.main(["benchmark", "what=data", override]) == 2
        assert words in capsys.readouterr().err


def test_only_what_is_installed_is_a_peer():
    assert set(loading_peers.chosen("all")) == {p for p in loading_peers.PEERS if importlib.util.find_spec(p)}
