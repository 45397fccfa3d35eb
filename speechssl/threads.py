"""How torch's threads wait for each other on a CPU. Needs no torch: OpenMP reads this when torch is first imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# A few tens of microseconds: alone on a machine hardly slower than OpenMP's own milliseconds, and twice as fast beside
# other work (recipes/benchmark/RESULTS.md).
NAME, SPINS = "GOMP_SPINCOUNT", "5000"


def sleep_soon() -> None:
    """Let threads sleep soon, unless the environment says how they wait.

    By default they spin for milliseconds, on the very core that the awaited one needs where the machine has other work.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(NAME, SPINS)


@contextlib.contextmanager
def as_given() -> Iterator[None]:
    """Processes that begin within have OpenMP's own ways, as the user's other programs do."""
    ours = os.environ.get(NAME) == SPINS
    if ours:
        del os.environ[NAME]
    try:
        yield
    finally:
        if ours:
            os.environ[NAME] = SPINS
