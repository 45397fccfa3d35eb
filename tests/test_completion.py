"""How a word on the command line may go on, and that each shell's script is one that the shell takes."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from speechssl import cli, completion
from speechssl.errors import UserError


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["pre"], ["prepare", "pretrain"]),
        (["pretrain", "mod"], ["model="]),
        (["pretrain", "model="], ["model=base", "model=large", "model=small", "model=tiny"]),
        (["pretrain", "trainer.precision="], ["trainer.precision=fp32", "trainer.precision=bf16"]),
        (["doctor", "what="], ["what=run", "what=env"]),
        (["prepare", "corpus=folder", "corpus.sp"], ["corpus.speaker_level="]),
        (["nothing", ""], []),
    ],
)
def test_candidates(words, some):
    found = completion.candidates(words, cli.verbs())
    assert set(some) <= set(found)
    assert all(word.startswith(words[-1]) for word in found)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_can_read_its_script(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    (tmp_path / "script").write_text(completion.script(shell))
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_bash_completes_a_value(tmp_path):
    """Bash breaks words at `=`, and takes back only what follows it."""
    program = tmp_path / "speechssl"
    program.write_text("#!/bin/sh\necho model=base; echo model=tiny\n")
    program.chmod(0o755)
    line = "speechssl pretrain model="
    script = completion.BASH + f'COMP_LINE="{line}"; COMP_POINT={len(line)}; _speechssl; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "base tiny\n"


def test_an_unknown_shell_is_refused():
    with pytest.raises(UserError, match="bash, zsh, fish"):
        completion.script("tcsh")
