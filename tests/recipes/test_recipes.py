"""recipes/*/run.sh: stages, options and skipping with a stand-in for the tool; and, slow, each of them for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = ("quickstart", "fsdd", "mboshi")
TINY = ("trainer.device=cpu", "data.num_workers=0", "data.batch_seconds=4")

# Takes the place of Python: notes its command lines, and writes what each verb would, with made-up figures.
STAND_IN = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
if sys.argv[1] != "-m":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
verb, *overrides = sys.argv[3:]
given = dict(override.split("=", 1) for override in overrides)
if (here / "broken").exists() and (here / "broken").read_text() in " ".join(sys.argv):
    sys.exit(print("error: x.wav is empty; remove it", file=sys.stderr) or 2)
with open(here / "calls", "a") as file:
    print(json.dumps([verb, given]), file=file)
folder = pathlib.Path(given.get("run_dir") or given["out"])
folder.mkdir(parents=True, exist_ok=True)
if verb == "prepare" and not (folder / "train.jsonl").exists():
    (folder / "train.jsonl").write_text('{{"text": "a", "duration": 1.0}}')
if given.get("task") in ("ctc_few", "distil_few"):
    best = "1e-3" if given["init"] != "none" else "3e-3"
    row = {{"step": 100, "valid_cer": 0.25 if given["optim.lr"] == best else 0.75}}
    (folder / "metrics.jsonl").write_text(json.dumps(row))
if verb == "evaluate":
    figure = 0.125 if "pretrained" in given["checkpoint"] else 0.5
    metrics = {{"wer": figure, "cer": figure / 2, "accuracy": 0.75, "eer": 0.25}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    print(json.dumps(metrics))
"""


def run(name, *arguments, python=sys.executable):
    """A recipe's finished process."""
    return subprocess.run(
        command(name, *arguments), env=environment(python), capture_output=True, text=True, timeout=300, check=False
    )


def command(name, *arguments):
    return ["bash", str(RECIPES / name / "run.sh"), *map(str, arguments)]


def environment(python):
    return {**os.environ, "SPEECHSSL_PYTHON": str(python), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def stand_in(tmp_path):
    """The stand-in for Python, in a folder with a blank in its name."""
    path = tmp_path / "a tool" / "python"
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    return path


def calls(stand_in):
    """The (verb, overrides) that the stand-in got so far."""
    return [json.loads(line) for line in (stand_in.parent / "calls").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", [RECIPES / "common.sh", *(RECIPES / name / "run.sh" for name in (*NAMES, "families"))])
def test_shell_syntax(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_help_and_documents_name_the_same_options(name):
    done = run(name, "--help")
    assert done.returncode == 0
    listed = set(re.findall(r"^  --([a-z-]+) VALUE", done.stdout, flags=re.M))
    assert {"out", "stage", "stop-stage", "lrs", "seeds", "finetune-steps"} <= listed
    for document in ("README.md", "RESULTS.md"):
        text = (RECIPES / name / document).read_text(encoding="utf-8")
        assert set(re.findall(r"(?<!\w)--([a-z][a-z-]+)", text)) <= {*listed, "help"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "x", "--lr", "1"], "there is no option --lr"),
        (["--data"], "--data needs a value"),
        ([], "--data DIR is needed"),
        (["--data", "x", "--stage", "two"], "whole numbers"),
        (["--data", "x", "--rounds", "4"], "0 to 3 rounds"),
        (["--data", "x", "tiny"], "'tiny' is neither"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, arguments, said):
    done = run("mboshi", "--out", tmp_path / "out", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_families_compares_what_it_is_given(tmp_path, stand_in):
    options = ["--data", "some data", "--out", tmp_path / "run s", "--objectives", "hubert apc", "--minutes", "10 60"]
    options += ["--speakers", "other data"]
    done = run("families", *options, "--front", "fbank", "trainer.device=cpu", python=stand_in)
    assert done.returncode == 0, done.stderr
    prepared, halves, (verb, given) = calls(stand_in)
    assert (prepared[0], halves[0], verb) == ("prepare", "prepare", "compare")
    assert (halves[1]["corpus"], halves[1]["corpus.root"]) == ("halves", "other data")
    assert given["data.speakers_test"] == f"{tmp_path / 'run s' / 'speakers' / 'test_all.jsonl'}"
    data = tmp_path / "run s" / "data"
    assert given["objectives"] == "['hubert','apc']"
    assert given["data.labelled"] == f"['{data}/train_10min.jsonl','{data}/train_60min.jsonl']"
    assert "'encoder.dropout=0.1'," in given["finetune"]
    assert given["finetune"].endswith("'data.batch_seconds=10']")
    assert (given["budget"], given["feature_encoder"], given["trainer.device"]) == ("600", "fbank", "cpu")


def test_the_comparison_is_fair_and_tested_once(tmp_path, stand_in):
    options = ["--data", "some data", "--out", tmp_path / "run s", "--lrs", "3e-4 1e-3 3e-3", "--seeds", "0 1 2"]
    done = run("fsdd", *options, "trainer.precision=bf16", python=stand_in)
    assert done.returncode == 0, done.stderr
    made = calls(stand_in)
    assert [verb for verb, _ in made[:2]] == ["prepare", "pretrain"]
    assert made[0][1]["corpus.root"] == "some data"
    finetuned = [given for verb, given in made if verb == "finetune" and given["task"] == "ctc_few"]
    for manifest in ("train_60", "train"):
        sides = {}
        for given in finetuned:
            if Path(given["data.train"]).stem == manifest:
                how = (given["optim.lr"], given["trainer.seed"])
                alike = {key: given[key] for key in ("trainer.max_steps", "data.valid", "trainer.precision")}
                sides.setdefault(given["init"], {})[how] = alike
        assert set(sides) == {"none", f"{tmp_path}/run s/pretrained"}
        # Three rates with the first seed, then the other seeds at the best, which the stand-in's figures decide.
        tried = {("3e-4", "0"), ("1e-3", "0"), ("3e-3", "0")}
        assert set(sides["none"]) == tried | {("3e-3", "1"), ("3e-3", "2")}
        assert set(sides[f"{tmp_path}/run s/pretrained"]) == tried | {("1e-3", "1"), ("1e-3", "2")}
        assert len({json.dumps(alike) for side in sides.values() for alike in side.values()}) == 1
    tested = [given for verb, given in made if verb == "evaluate"]
    assert len(tested) == 2 * 2 * 3 + 1
    assert {Path(given["data.test"]).name for given in tested} == {"test.jsonl"}
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["60_clips", "1", "12.5", "%", "50.0", "%", "6.2", "%", "25.0", "%"] in lines
    assert (tmp_path / "run s" / "table.txt").read_text(encoding="utf-8") == done.stdout


def test_what_is_done_is_skipped_and_more_seeds_are_added(tmp_path, stand_in):
    options = ["--data", "d", "--out", tmp_path / "out", "--lrs", "1e-3"]
    first = run("mboshi", *options, "--seeds", "0", python=stand_in)
    assert first.returncode == 0, first.stderr
    before = calls(stand_in)
    again = run("mboshi", *options, "--seeds", "0", python=stand_in)
    assert again.returncode == 0
    assert calls(stand_in) == before
    run("mboshi", *options, "--seeds", "0 5", python=stand_in)
    added = [(verb, given.get("trainer.seed")) for verb, given in calls(stand_in)[len(before) :]]
    assert added == [("finetune", "5"), ("evaluate", None)] * 5  # three starts and two rounds of students


def test_other_options_do_not_mix_with_what_is_there(tmp_path, stand_in):
    run("mboshi", "--data", "d", "--out", tmp_path / "out", "--stop-stage", "1", python=stand_in)
    done = run("mboshi", "--data", "d", "--out", tmp_path / "out", "--finetune-steps", "7", python=stand_in)
    assert done.returncode == 2
    assert "was made with other options" in done.stderr
    assert [verb for verb, _ in calls(stand_in)] == ["prepare"]


def test_an_error_of_the_tool_stops_the_recipe_and_the_same_command_goes_on(tmp_path, stand_in):
    options = ["--data", "d", "--out", tmp_path / "out", "--lrs", "1e-3", "--seeds", "0"]
    (stand_in.parent / "broken").write_text("scratch")
    done = run("mboshi", *options, python=stand_in)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: x.wav is empty; remove it" in done.stderr
    before = calls(stand_in)
    assert [verb for verb, _ in before] == ["prepare", "pretrain", "finetune", "evaluate"]
    (stand_in.parent / "broken").unlink()
    done = run("mboshi", *options, python=stand_in)
    assert done.returncode == 0, done.stderr
    later = [(verb, given.get("init"), given.get("feature_encoder")) for verb, given in calls(stand_in)[len(before) :]]
    tested = ("evaluate", None, None)
    sides = [("finetune", "none", "stack40"), tested, ("finetune", "none", "fbank40"), tested]
    student = ("finetune", f"{tmp_path}/out/pretrained", None)
    ngram, weights = ("lm", None, None), ("tune", None, None)
    decoded = [ngram, weights, tested, ngram, weights, tested, *[weights, tested] * 6]  # four networks, two decoders
    assert later == [*sides, ngram, *[student, tested] * 2, *decoded]


def test_the_label_curve_has_a_line_for_each_start(tmp_path, stand_in):
    data = tmp_path / "out" / "data"
    data.mkdir(parents=True)
    for name, seconds in (("train_10min", 600), ("train", 7200)):
        (data / f"{name}.jsonl").write_text(json.dumps({"duration": seconds}) + "\n")
    options = ["--data", "d", "--out", tmp_path / "out", "--amounts", "10min all", "--lrs", "1e-3", "--seeds", "0"]
    done = run("mboshi", *options, python=stand_in)
    assert done.returncode == 0, done.stderr
    made = [given for verb, given in calls(stand_in) if verb == "finetune"]
    tuned = [given for given in made if given["task"] == "ctc_few"]
    learned = {(Path(given["data.train"]).stem, given["trainer.max_steps"]) for given in tuned}
    assert learned == {("train_10min", "1500"), ("train", "6000")}
    assert done.stdout.index("  10min") < done.stdout.index("  all")
    drawn = (tmp_path / "out" / "label_curve.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {start} -->" in drawn for start in ("pretrained", "scratch", "logmel"))
    # Where all is transcribed there is nothing to learn from besides.
    students = [given for given in made if given["task"] == "distil_few"]
    runs = tmp_path / "out" / "ctc" / "10min"
    taught = [f"[{runs}/{start}/lr_1e-3/seed_0]" for start in ("pretrained", "student_1")]
    assert [given["task.teacher"] for given in students] == taught
    for given in students:
        assert given["data.train"] == f"[{data}/train_10min.jsonl,{data}/train_untranscribed.jsonl]"
        assert given["task.lm"] == f"{runs}/lm/4/units.arpa"


def test_stages_and_an_encoder_of_ones_own(tmp_path, stand_in):
    options = ["--data", "d", "--out", tmp_path / "out", "--init", "my/encoder", "--stop-stage", "2"]
    assert run("fsdd", *options, python=stand_in).returncode == 0
    assert [verb for verb, _ in calls(stand_in)] == ["prepare"]
    assert run("fsdd", *options[:-2], "--stage", "5", "--stop-stage", "5", python=stand_in).returncode == 0
    assert [(verb, given.get("init")) for verb, given in calls(stand_in)[1:]] == [
        ("finetune", "my/encoder"),
        ("evaluate", None),
    ]


def tone(path, *, pitch, seconds, rate, seed):
    """A tone over seeded noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time_s))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time_s) + noise, rate)


@pytest.fixture
def digits(tmp_path):
    """Two speakers say two digits nine times each, in fsdd's layout: 20 clips to test, 8 for validation, 8 to train."""
    for seed, (digit, speaker, index) in enumerate((d, s, i) for d in (0, 7) for s in ("ann", "bob") for i in range(9)):
        path = tmp_path / "digits" / "recordings" / f"{digit}_{speaker}_{index}.wav"
        tone(path, pitch=200 + 40 * digit + 100 * (speaker == "bob"), seconds=0.8, rate=8000, seed=seed)
    return tmp_path / "digits"


@pytest.fixture
def sentences(tmp_path):
    """Two speakers read 36 sentences of accented words, in Mboshi's layout, and 4 in dev."""
    words = ("mbá", "ngɔ́", "yéka", "á", "bvúrú", "ka")
    texts = [f"{first} {second}" for first in words for second in words]
    for part, count in (("train", 36), ("dev", 4)):
        for i in range(count):
            path = tmp_path / "sentences" / part / f"{('ann', 'bob')[i % 2]}_2015_{i}.wav"
            tone(path, pitch=150 + 20 * i, seconds=1.0, rate=16000, seed=i)
            path.with_suffix(".mb.cleaned").write_text(texts[i] + "\n", encoding="utf-8")
    return tmp_path / "sentences"


def measured(out):
    """What was measured under a recipe's folder, by run folder."""
    return {
        str(path.parent.parent.relative_to(out)): json.loads(path.read_text("utf-8"))
        for path in out.rglob("test/metrics.json")
    }


def steps(run_dir):
    """The step of a run's last checkpoint."""
    return json.loads((run_dir / "checkpoints" / "last" / "config.json").read_text("utf-8"))["step"]


def test_the_tools_sentence_and_exit_code_come_through(tmp_path):
    done = run("fsdd", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "nowhere") in sentence


@pytest.mark.slow
def test_quickstart(tmp_path):
    pytest.importorskip("espeakng_loader")
    out = tmp_path / "my runs"
    sizes = ["--num-train", 12, "--num-labelled", 6, "--num-test", 4, "--num-voices", 2]
    lengths = ["--pretrain-steps", 3, "--finetune-steps", 2, "--speaker-steps", 2, "--lrs", "1e-3"]
    done = run("quickstart", "--out", out, *sizes, *lengths, *TINY)
    assert done.returncode == 0, done.stderr
    found = measured(out)
    assert set(found) == {"speaker", *(f"ctc/6_clips/{start}/lr_1e-3/seed_0" for start in ("pretrained", "scratch"))}
    assert {metrics["num_utterances"] for metrics in found.values()} == {4}
    assert steps(out / "pretrained") == 3
    for wanted in ("WER scratch", "6_clips", "Speakers: accuracy", "Pretraining: contrastive loss", "Seconds"):
        assert wanted in done.stdout
    # The command that it closes with is one that runs.
    following = subprocess.run(
        ["bash", "-c", done.stdout.splitlines()[-1]], capture_output=True, timeout=120, check=False
    )
    assert following.returncode == 0, following.stderr


@pytest.mark.slow
def test_fsdd(tmp_path, digits):
    lengths = ["--pretrain-steps", 3, "--finetune-steps", 2, "--speaker-steps", 2]
    done = run("fsdd", "--data", digits, "--out", tmp_path / "out", "--lrs", "1e-3", "--seeds", "0", *lengths, *TINY)
    assert done.returncode == 0, done.stderr
    found = measured(tmp_path / "out")
    runs = [
        f"ctc/{few}/{start}/lr_1e-3/seed_0" for few in ("60_clips", "all_clips") for start in ("pretrained", "scratch")
    ]
    assert set(found) == {"speaker", *runs}
    assert {metrics["num_utterances"] for metrics in found.values()} == {20}
    assert {steps(tmp_path / "out" / run_dir) for run_dir in found} == {2}


@pytest.mark.slow
def test_mboshi(tmp_path, sentences):
    lengths = ["--pretrain-steps", 3, "--finetune-steps", 2, "--lrs", "1e-3 3e-3", "--seeds", "3"]
    done = run("mboshi", "--data", sentences, "--out", tmp_path / "out", *lengths, *TINY)
    assert done.returncode == 0, done.stderr
    found = measured(tmp_path / "out")
    # Greedy decoding and two decoders with an n-gram; the first students are only the teachers of the second.
    decoded = Counter(Path(run_dir).parts[2] for run_dir in found)
    assert decoded == {"pretrained": 3, "scratch": 3, "logmel": 3, "student_1": 1, "student_2": 3}
    assert "Decoding with an n-gram" in done.stdout
    assert {metrics["num_utterances"] for metrics in found.values()} == {4}
    assert "CER on valid by learning rate" in done.stdout


@pytest.mark.slow
def test_an_interrupted_recipe_goes_on(tmp_path, sentences):
    pretrained = tmp_path / "out" / "pretrained"
    options = ["--data", sentences, "--out", tmp_path / "out", "--pretrain-steps", 150, "--stop-stage", 2, *TINY]
    process = subprocess.Popen(
        command("mboshi", *options), env=environment(sys.executable), start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (pretrained / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 1
    assert 0 < steps(pretrained) < 150
    done = run("mboshi", *options)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert any(row.get("event") == "resumed" for row in rows)
    assert steps(pretrained) == 150
