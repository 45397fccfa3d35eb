"""Which of torchrun's processes this is, from the environment: rank 0 speaks, and of failures the first. No torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Whether torchrun (or a person) has sent this process SIGTERM: if it fails then, it is not the reason.
asked_to_end = False
# A rank whose peer has died fails too, by a lost connection, and is ended within this time.
PATIENCE_S = 3.0


def rank() -> int:
    """The number of this process among the run's; 0 where it is alone."""
    return int(os.environ.get("RANK", 0)) if is_rank() else 0


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def may_speak(error: BaseException) -> bool:
    """Whether this process may say why it fails: alone, or as the first of the machine's ranks."""
    if not is_rank():
        return True
    if type(error) is not RuntimeError and not type(error).__module__.startswith("torch"):
        return _is_first()
    time.sleep(PATIENCE_S)  # it may be another rank's death that shows here; whoever fails for itself comes first
    return not asked_to_end and _is_first()


def _is_first() -> bool:
    # Of each rank and each restart there is a folder of its own below one that they share.
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return rank() == 0
    try:
        (Path(path).parent.parent / "first_to_fail").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
