"""One run folder, one run: a lock that the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from speechssl import ranks
from speechssl.errors import UserError

NAME = ".lock"


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, which is made where it is not there.

    The lock is of fcntl's kind, as NFS and Lustre have it too, and unlike flock's it does not live on in the loader's
    workers, which outlive a trainer that was killed by some seconds.

    Raises:
        UserError: another process holds it; the sentence says which.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / NAME
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process, which is just starting"
            file.close()
            raise UserError(
                f"{run_dir} is in use by {holder}; wait until it ends, stop it, or choose another run_dir"
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # its holder removed it in between: another process may lock a new one
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {platform.node()}, started {started}: {shlex.join(sys.argv)}\n")
    file.flush()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


@contextlib.contextmanager
def in_turn(run_dir: Path) -> Iterator[None]:
    """One rank after the other: what the first makes in the run folder, the others find. Alone, at once."""
    if not ranks.is_rank():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".turn").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # until it is closed
        yield
