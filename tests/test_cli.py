"""The entry point: help without torch, exit codes, and errors as one sentence on stderr."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import speechssl.commands
from speechssl import cli

COMMAND = '''"""Count to a number.

Examples:
  speechssl count upto=3
"""
import errno
import logging

from speechssl.errors import UserError


def run(config):
    if config.fail == "user":
        raise UserError("the count is off: give upto=N")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    if config.fail == "bug":
        raise RuntimeError("a mistake of ours")
    if config.fail == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "out.json")
    if config.fail == "access":
        raise PermissionError(errno.EACCES, "Permission denied", "out.json")
    logging.getLogger("speechssl").info("counting")
    for number in range(config.upto):
        print(config.corpus.word, number)
'''
CONFIGS = {
    "count.yaml": (
        "defaults:\n  - corpus: ???\n  - pace: slow\n  - _self_\n"
        "upto: 3  # how far to count\nfail: never\nout: ???\nmodel:\n  width: 1  # of the digits\n"
    ),
    "corpus/sheep.yaml": (
        "# animals of the meadow,\n# many of them. And more.\nword: sheep  # what is counted\nroot: null\n"
    ),
    "pace/slow.yaml": "seconds: 1.0\n",
    "pace/fast.yaml": "# in a hurry\nseconds: 0.1\n",
}


@pytest.fixture
def count(tmp_path, monkeypatch):
    """A verb `count` of its own, instead of the real ones."""
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "count.py").write_text(COMMAND)
    for name, text in CONFIGS.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(cli, "COMMANDS", tmp_path / "commands")
    monkeypatch.setattr(speechssl.commands, "__path__", [str(tmp_path / "commands")])
    monkeypatch.setattr("speechssl.config.config_dir", lambda: tmp_path / "configs")
    yield lambda *words: cli.main(["count", *words])
    sys.modules.pop("speechssl.commands.count", None)


GIVEN = ("corpus=sheep", "out=x")


def test_results_on_stdout_and_logs_on_stderr(count, capsys):
    assert count(*GIVEN, "upto=2") == 0
    out, err = capsys.readouterr()
    assert out == "sheep 0\nsheep 1\n"
    assert err.endswith("INFO counting\n")


@pytest.mark.parametrize(
    ("overrides", "code", "part"),
    [
        ((*GIVEN, "fail=user"), 2, "error: the count is off: give upto=N\n"),
        ((*GIVEN, "fail=interrupt"), 1, "interrupted\n"),
        ((*GIVEN, "fail=full"), 1, "error: the disk is full: out.json\n"),
        ((*GIVEN, "fail=access"), 2, "error: cannot use 'out.json': Permission denied\n"),
        ((*GIVEN, "upta=2"), 2, "did you mean upto?"),
        ((*GIVEN, "upto=two"), 2, "upto=two must be a whole number"),
        (("corpus=goats", "out=x"), 2, "did you mean corpus=sheep?"),
        (("out=x",), 2, "needs corpus=NAME (sheep)"),
        (("corpus=sheep",), 2, "speechssl count needs out=DIR"),
    ],
)
def test_what_goes_wrong_is_one_sentence(count, capsys, overrides, code, part):
    assert count(*overrides) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "5000"), ({"OMP_WAIT_POLICY": "active"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_wait_asleep_unless_the_user_says_how(count, monkeypatch, given, spins):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert count(*GIVEN, "upto=1") == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_a_bug_keeps_its_traceback(count, capsys):
    assert count(*GIVEN, "fail=bug") == 1
    assert "RuntimeError: a mistake of ours" in capsys.readouterr().err


def test_a_wrong_pair_is_reported_before_torch_is_needed(count, capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"torch": "2.15.0", "torchaudio": "2.11.0"}.get)
    assert count(*GIVEN) == 2
    assert "torch 2.15.0" in capsys.readouterr().err


def test_an_unknown_verb_is_answered_with_the_nearest(count, capsys):
    assert cli.main(["cuont", "upto=3"]) == 2
    assert "did you mean `speechssl count`?" in capsys.readouterr().err


def test_the_overview_lists_verbs_with_their_purpose(count, capsys):
    assert cli.main([]) == 0
    assert "  count       Count to a number.\n" in capsys.readouterr().out


def test_the_help_of_a_verb_lists_its_groups_and_keys(count, capsys):
    assert count("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Count to a number." in lines
    assert "  speechssl count upto=3" in lines
    assert "corpus=NAME, which must be chosen:" in lines
    assert "    sheep        animals of the meadow, many of them." in lines
    assert "  * slow" in lines
    assert "    fast         in a hurry" in lines
    assert "  out=DIR  (needed)" in lines
    assert [line.split() for line in lines if line.startswith("  upto=3 ")] == [["upto=3", "how", "far", "to", "count"]]
    assert any(line.startswith("  model.width=1 ") and line.endswith("of the digits") for line in lines)
    assert not any("corpus.word" in line for line in lines)


def test_help_of_a_choice_lists_its_keys(count, capsys):
    assert count("corpus=sheep", "pace=fast", "--help") == 0
    out = capsys.readouterr().out
    assert "  corpus.word=sheep " in out
    assert "what is counted" in out
    assert "  corpus.root=null" in out
    assert "  pace.seconds=0.1" in out


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


HELPS = [[], ["--help"], ["--version"], *([verb, "--help"] for verb in cli.verbs())]


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_imports_no_torch(arguments):
    done = run_python(
        "import sys; from speechssl.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'torchaudio', 'librosa'} & set(sys.modules); sys.exit(code)",
        *arguments,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "speechssl" in done.stdout


def test_a_reader_that_stops_early_gets_no_traceback():
    code = "from speechssl import cli; cli._dispatch = lambda _: print('word\\n' * 1000000); cli.main([])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "word\n"
        writer.stdout.close()
        assert writer.stderr.read() == ""
