"""`trainer.devices=N`: starts the command once for each device of this machine, by torchrun's own engine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from speechssl.errors import UserError

# All of them reach the ranks, which then save and end; torchrun's default lacks SIGUSR1.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def launch(arguments: Sequence[str], config: DictConfig) -> int:
    """Run `speechssl ARGUMENTS` on `trainer.devices` processes; its exit code.

    Raises:
        UserError: there are not so many GPUs, or a rank was ended by a signal.
    """
    number = config.trainer.devices
    if config.trainer.device != "cpu" and 0 < torch.cuda.device_count() < number:
        raise UserError(
            f"trainer.devices={number}, but torch sees {torch.cuda.device_count()} GPUs; lower it, or use "
            "trainer.device=cpu"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // number, 1)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch keeps one store for all attempts, where a restarted rank would find the addresses of those that are gone.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what a rank says itself is enough
    with tempfile.TemporaryDirectory(prefix="speechssl_ranks_") as folder:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=f"speechssl_{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=config.trainer.restarts,
            signals_to_handle=SIGNALS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(settings, sys.executable)("-m", "speechssl", *arguments)
        except SignalException:
            return 1  # rank 0 has said where it saved
        except ChildFailedError as error:
            return _exit_code(error)
    return 0


def _exit_code(error: ChildFailedError) -> int:
    """Of the rank that failed first; a rank that a signal ended could not say so itself."""
    for rank, failure in error.failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            raise UserError(
                f"rank {rank} (process {failure.pid}) was ended by {signal.Signals(-failure.exitcode).name}; the last "
                "checkpoint is kept, and the same command goes on from there (out of memory is the usual cause)"
            )
    return 2 if any(failure.exitcode == 2 for failure in error.failures.values()) else 1
