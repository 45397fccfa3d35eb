"""Is the torch that is installed the one that torchaudio was built for?

torchaudio 2.11.0 fails at import beside another torch, or another build of the same one, and 2.11.1 beside torch 2.11
itself, with a page of linker errors. Reading the installed versions finds that out without importing either.
"""

from __future__ import annotations

import sys
from importlib import metadata

from speechssl.errors import UserError

PAIR = "'torch==2.11.*' 'torchaudio==2.11.0'"


def check_pair() -> None:
    """UserError with the command that mends it, unless torch and torchaudio are there and fit each other."""
    torch, torchaudio = _version("torch"), _version("torchaudio")
    fits = bool(torch and torchaudio) and torch.startswith("2.11.") and torchaudio.partition("+")[0] == "2.11.0"
    if fits and _build(torch) == _build(torchaudio):
        return
    # Two builds of the right version satisfy `==` already, so pip has to be forced.
    force = "--force-reinstall " if fits else ""
    raise UserError(
        f"torch {torch or '(missing)'} and torchaudio {torchaudio or '(missing)'} do not fit each "
        f"other: run `{sys.executable} -m pip install {force}{PAIR}`"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """The local part of a version, as `cpu` of 2.11.0+cpu; the package index serves cu130 on Linux."""
    _, _, build = version.partition("+")
    return build or ("cu130" if sys.platform == "linux" else "cpu")
