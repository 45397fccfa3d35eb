"""The check of the torch and torchaudio pair, with faked metadata of what is installed."""

from __future__ import annotations

from importlib import metadata

import pytest

from speechssl.environment import check_pair
from speechssl.errors import UserError


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these versions are installed on this platform (None: not installed)."""

    def pretend(torch, torchaudio, platform="linux"):
        versions = {"torch": torch, "torchaudio": torchaudio}

        def version(package):
            if versions[package] is None:
                raise metadata.PackageNotFoundError(package)
            return versions[package]

        monkeypatch.setattr("importlib.metadata.version", version)
        monkeypatch.setattr("sys.platform", platform)

    return pretend


@pytest.mark.parametrize(
    ("torch", "torchaudio", "platform"),
    [
        ("2.11.0", "2.11.0", "linux"),
        ("2.11.1", "2.11.0", "linux"),
        ("2.11.0+cu130", "2.11.0", "linux"),
        ("2.11.0+cpu", "2.11.0+cpu", "linux"),
        ("2.11.0+cu126", "2.11.0+cu126", "linux"),
        ("2.11.0", "2.11.0", "darwin"),
        ("2.11.0", "2.11.0+cpu", "win32"),
    ],
)
def test_pairs_that_fit(installed, torch, torchaudio, platform):
    installed(torch, torchaudio, platform)
    check_pair()


@pytest.mark.parametrize(
    ("torch", "torchaudio", "forced"),
    [
        ("2.15.0", "2.11.0", False),
        ("2.1.1", "2.1.1", False),
        ("2.11.0", "2.11.1", False),
        ("2.11.0", None, False),
        (None, None, False),
        ("2.11.0+cpu", "2.11.0", True),
        ("2.11.0+cu132", "2.11.0", True),
    ],
)
def test_pairs_that_do_not_fit_are_named_with_the_mend(installed, torch, torchaudio, forced):
    installed(torch, torchaudio)
    with pytest.raises(UserError) as caught:
        check_pair()
    sentence = str(caught.value)
    assert torch is None or torch in sentence
    assert "'torch==2.11.*' 'torchaudio==2.11.0'" in sentence
    assert ("--force-reinstall" in sentence) is forced
    assert "\n" not in sentence
