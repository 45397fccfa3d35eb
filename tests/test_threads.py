"""Threads wait as the commands set it, and other programs' processes as the user has it."""

import os
import subprocess
import sys

import pytest

from speechssl import threads

SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(("given", "within"), [(None, "None"), ("7", "7")])
def test_processes_of_others_have_what_the_user_gave(monkeypatch, given, within):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    threads.sleep_soon()
    before = os.environ["GOMP_SPINCOUNT"]
    with threads.as_given():
        shown = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == within
    assert os.environ["GOMP_SPINCOUNT"] == before
