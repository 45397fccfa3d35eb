"""An installed wheel holds what a run needs, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel of this checkout was unpacked, as an installer does it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_every_module_and_every_config_is_in_the_wheel(installed):
    modules = {path.relative_to(ROOT) for path in (ROOT / "speechssl").rglob("*.py")}
    configs = {Path("speechssl") / path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(installed) for path in (installed / "speechssl").rglob("*.py")} == modules
    assert {path.relative_to(installed) for path in (installed / "speechssl").rglob("*.yaml")} == configs
    assert {path.name for path in installed.iterdir()} == {"speechssl", "speechssl-0.1.0.dist-info"}


def test_the_installed_package_runs_from_its_own_configs(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "speechssl.cli", "pretrain", "trainer.max_step=3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean trainer.max_steps?" in done.stderr
    where = "from speechssl.config import config_dir; print(config_dir())"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.strip() == str(installed / "speechssl" / "configs")


def test_the_version_is_the_same_everywhere(installed):
    metadata = (installed / "speechssl-0.1.0.dist-info" / "METADATA").read_text(encoding="utf-8")
    assert "\nVersion: 0.1.0\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nversion: 0.1.0\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
