"""The one training loop, for pretraining and fine-tuning alike, on one process or many.

Every random choice is a function of (seed, step) or (seed, epoch, clip), so a checkpoint needs no generator's state:
weights, optimiser, step and the number of the next batch say everything. Ranks take batches in turns from the same
endless sequence, so W ranks do what one does with W times as many batches in a step.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechssl.data.loader import BatchLoader
from speechssl.doctor.doctor import Doctor
from speechssl.doctor.rules import BLANK
from speechssl.errors import Interrupted, UserError
from speechssl.models.encoder import Encoder
from speechssl.rng import derive_seed, generator
from speechssl.training import checkpoint as checkpoints
from speechssl.training import distributed, files, sharded
from speechssl.training.best import Ranking, average_weights
from speechssl.training.lock import lock
from speechssl.training.monitor import Averages, Monitor
from speechssl.training.optim import lr_scale
from speechssl.training.recovery import ROLLBACK_SCALE, Diverged, Recovery
from speechssl.training.rows import cost
from speechssl.training.signals import StopRequest
from speechssl.types import Batch, LossOutput

log = logging.getLogger("speechssl")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How to train.

    Attributes:
        max_steps: optimiser steps in all.
        accumulate: batches in a step, on each rank; their gradient is that of one large batch.
        clip_norm: bound on the gradient's norm; 0 is no bound.
        log_every, valid_every, checkpoint_every: steps between rows, validations and checkpoints.
        keep_last: how many checkpoints stay.
        best: the validation figure that decides what `best` is; lower is better, a leading "-" says higher.
        average_best: at the end, the weights of so many of the best checkpoints are averaged, and are `best` where that
            figure is better than each one's; 1 is none of it.
        patience: so many validations in a row without a better figure end the run; 0 is never.
        max_bad_steps: so many steps in a row with a loss or gradient that is not finite send the run back to its last
            checkpoint, at half the rate.
        max_rollbacks: how often that may happen before the run stops.
        seed: of every random choice.
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" for autocast.
        trackers: "wandb" and "trackio" get the rows too.
        resume: "auto" continues where there is a checkpoint, "never" refuses one, "must" needs one.
    """

    max_steps: int
    accumulate: int
    clip_norm: float
    log_every: int
    valid_every: int
    checkpoint_every: int
    keep_last: int
    best: str
    max_bad_steps: int
    seed: int
    device: str
    precision: str
    resume: str
    average_best: int = 1
    patience: int = 0
    max_rollbacks: int = 3
    trackers: tuple[str, ...] = ()


class Trainer(Recovery):
    """Trains an objective over an encoder.

    Args:
        encoder, objective: what trains; `objective(encoder, batch, generator)` gives a LossOutput.
        loader, valid_loader: batches; validation is optional.
        optimizer: over the parameters of both.
        schedule: keyword arguments of `lr_scale`.
        run_dir: the run folder.
        run_config: the composed config as yaml, written into the run folder.
        config: the model's plain config, written into each checkpoint.
        options: see TrainerOptions.
        world: this process among the run's processes.
        model: encoder and objective as one, where it has been sharded.
        doctor: watches the run; without one nobody does.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        objective: nn.Module,
        loader: BatchLoader,
        valid_loader: BatchLoader | None,
        optimizer: torch.optim.Optimizer,
        schedule: dict[str, Any],
        run_dir: Path,
        run_config: str,
        config: dict[str, Any],
        options: TrainerOptions,
        world: distributed.World | None = None,
        model: distributed.TrainingModel | None = None,
        doctor: Doctor | None = None,
    ):
        self.doctor = doctor or Doctor(act="off")
        self.encoder, self.objective = encoder, objective
        self.world = world or distributed.World()
        self.is_sharded = model is not None
        self.model = model or distributed.TrainingModel(encoder, objective)
        replicas = self.world.size > 1 and not self.is_sharded
        self.replica = distributed.replicate(self.model) if replicas else self.model
        self.loader, self.valid_loader = loader, valid_loader
        self.optimizer, self.schedule = optimizer, schedule
        self.run_dir, self.run_config, self.config, self.options = run_dir, run_config, config, options
        self.checkpoints = run_dir / "checkpoints"
        self.device = torch.device(options.device)
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.step = 0
        self.saved_step: int | None = 0  # None has step 0 saved too
        # The last step of which all is done and nothing of the next; None in between, when nothing may be saved.
        self.ready_step: int | None = 0
        self.loader_state = self._loader_state([])
        self.bad_steps = self.num_rollbacks = 0
        self.ranking = Ranking(keep=max(options.average_best, 1), patience=options.patience)
        self.best_name: str | None = None  # the checkpoint that `best` points at
        self.validation_due = False
        self.averages = Averages()
        self.stop, self.stop_agreed = StopRequest(), False
        self.monitor: Monitor | None = None

    def fit(self) -> None:
        """Train to the last step; resumable at any."""
        with lock(self.run_dir) if self.world.rank == 0 else contextlib.nullcontext():
            self._resume()
            if self._is_over():
                log.info("%s is finished at step %d; nothing to do", self.run_dir, self.step)
            else:
                self._train()
        self.world.close()

    def _train(self) -> None:
        with contextlib.ExitStack() as stack:
            if self.world.rank == 0:
                # Written only now: a run that is finished, or that this one must not continue, keeps its own.
                with self._writing():
                    files.write_text(self.run_dir / "config.yaml", self.run_config)
                    monitor = Monitor(
                        self.run_dir,
                        max_steps=self.options.max_steps,
                        first_step=self.step,
                        trackers=self.options.trackers,
                    )
                self.monitor = stack.enter_context(contextlib.closing(monitor))
            self.doctor.attend(self)
            stack.enter_context(self.stop.listening())
            self.clock = time.monotonic()
            stream = self.loader.stream()
            while True:
                try:
                    if not self._finish_step():
                        break
                    self._advance(stream)
                except Diverged as reason:
                    self._go_back(reason)
                    stream = self.loader.stream()
                except Interrupted:
                    raise
                except Exception:
                    self._rescue()
                    raise

    def _advance(self, stream: Iterator[Batch | None]) -> None:
        """One step and its row."""
        self.step += 1
        self.run_step(stream)
        if self._is_logged():
            clock, self.clock = self.clock, time.monotonic()
            row = self._row(self.clock - clock)
            self._write(row)
            self.averages = Averages()
            reason = self.doctor.judge(row)
            if reason:
                raise Diverged(reason)
        self.validation_due = self.valid_loader is not None and self._due(self.options.valid_every)
        self.ready_step = self.step

    def _finish_step(self) -> bool:
        """What follows a step: validation and checkpoints. False where it was the last.

        A resume comes here first: a run that was stopped may have a validation left to do.
        """
        if self.validation_due and not self._stopping():
            self._validate()
        if self._due(self.options.checkpoint_every) or self._stopping() or self._is_over():
            self.save()
        if self._is_over():
            return False
        if self._stopping():
            raise Interrupted(
                f"{self.run_dir} was interrupted and is saved at step {self.step} of {self.options.max_steps}"
            )
        return True

    def _is_over(self) -> bool:
        return (self.step >= self.options.max_steps or self.ranking.is_over) and not self.validation_due

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.options.max_steps

    def _is_logged(self) -> bool:
        return self._due(self.options.log_every) or self.step == 1

    def _stopping(self) -> bool:
        """Whether a signal asks for a stop, and all ranks know."""
        return bool(self.stop) if self.world.size == 1 else self.stop_agreed

    # The step

    def run_step(self, stream: Iterator[Batch | None]) -> None:
        """One optimiser step over `accumulate` batches of the stream, on each rank."""
        options, world = self.options, self.world
        self.model.train()
        self.objective.begin_step(self.step, options.max_steps)
        batches = self._take(stream)
        self.doctor.begin_step(batches, is_logged=self._is_logged())
        totals = self._totals(batches)
        averages, loss = Averages(), torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            # Dropout draws from torch's global generator: this makes it a function of the step and the batch.
            torch.manual_seed(derive_seed(options.seed, "dropout", self.step, number * world.size + world.rank))
            with self._keeping_gradients(more=number < len(batches) - 1):
                output = self._forward(self.replica, batch)
                totals_here = totals or {name: term.count for name, term in output.terms.items()}
                part = sum(t.weight * t.sum / max(totals_here[name], 1) for name, t in output.terms.items())
                # DDP and FSDP2 divide the sum over ranks by their number.
                (part * world.size).backward()
            loss = loss + part.detach()
            _account(averages, output)
        num_samples = sum(int(batch.lengths.sum()) for batch in batches)
        num_padded = sum(batch.waveforms.numel() for batch in batches)
        averages.add("audio_seconds", num_samples / self.config["sample_rate"], 1)
        averages.add("padding_share", num_padded - num_samples, num_padded)
        averages, loss = self._tell(averages, loss)
        self._update(averages, loss)

    def _take(self, stream: Iterator[Batch | None]) -> list[Batch]:
        """The step's batches. Where a whole batch could not be read on one rank, no rank uses its own."""
        batches = []
        while len(batches) < self.options.accumulate:
            batch = next(stream)
            if not self.world.any(batch is None):
                batches.append(batch.to(self.device))
        return batches

    def _totals(self, batches: list[Batch]) -> dict[str, int] | None:
        """Each term's count over all batches of the step on all ranks, known before the first backward pass."""
        if len(batches) == self.world.size == 1:
            return None
        totals: dict[str, int] = {}
        for batch in batches:
            frames = [self.encoder.feature_encoder.num_frames(n) for n in batch.lengths.tolist()]
            for name, count in self.objective.counts(batch, frames).items():
                totals[name] = totals.get(name, 0) + count
        ranks = self.world.gather(totals)
        return {name: sum(counts[name] for counts in ranks) for name in totals}

    def _forward(self, model: nn.Module, batch: Batch) -> LossOutput:
        # One generator a step, the same for all batches and ranks: LayerDrop drops the same layers everywhere.
        layers = generator(self.options.seed, "layers", self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            _, output = model(batch, layers)
        return output

    def _keeping_gradients(self, *, more: bool) -> contextlib.AbstractContextManager:
        """DDP sums gradients over ranks once a step, after the last batch."""
        if more and isinstance(self.replica, nn.parallel.DistributedDataParallel):
            return self.replica.no_sync()
        return contextlib.nullcontext()

    def _tell(self, averages: Averages, loss: torch.Tensor) -> tuple[Averages, torch.Tensor]:
        """Figures and loss over all ranks; with them travels what else ranks have to know of each other."""
        if self.world.size == 1:
            self.loader_state = self._loader_state([])
            return averages, loss
        mine = averages.state(), float(loss), bool(self.stop), (self.loader.num_read, self.loader.num_broken)
        figures, losses, stops, counts = zip(*self.world.gather(mine), strict=True)
        self.stop_agreed = any(stops)
        self.loader_state = self._loader_state(counts)
        return Averages.of(figures), torch.tensor(sum(losses), device=self.device)

    def _update(self, averages: Averages, loss: torch.Tensor) -> None:
        """Clip, check, step. A loss or gradient that is not finite leaves the weights and the figures alone."""
        options = self.options
        scale = lr_scale(self.step, options.max_steps, **self.schedule) * ROLLBACK_SCALE**self.num_rollbacks
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * scale
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if sharded.is_part(norm) else norm
        is_finite = bool((norm + loss).isfinite())
        self.ready_step = None
        if is_finite:
            with self.doctor.updating(self.model):
                if options.clip_norm:
                    torch.nn.utils.clip_grads_with_norm_(parameters, options.clip_norm, norm)
                self.optimizer.step()
            self.bad_steps = 0
            self.averages.merge(averages)
            self.averages.add("grad_norm", norm, 1)
        else:
            self.bad_steps += 1
            self.averages.add("audio_seconds", *averages.sums["audio_seconds"])
            log.warning("step %d skipped: its loss or gradient is not finite (%d in a row)", self.step, self.bad_steps)
        self.averages.add("skipped_steps", float(not is_finite), 1)
        self.optimizer.zero_grad(set_to_none=True)
        if self.bad_steps >= options.max_bad_steps:
            raise Diverged(
                f"{self.bad_steps} steps in a row, up to step {self.step}, had a loss or gradient that is not finite"
            )

    # Figures

    def _row(self, elapsed_s: float) -> dict[str, Any]:
        audio_s = float(self.averages.sums["audio_seconds"][0])
        return {
            "step": self.step,
            **self.doctor.figures(),
            **_figures(self.averages.means()),
            "lr": self.optimizer.param_groups[0]["lr"],
            "audio_seconds_per_second": audio_s / elapsed_s,
            "loader_share": self.loader.waiting_share(elapsed_s),
        }

    def _write(self, row: dict[str, Any]) -> None:
        if self.monitor:
            with self._writing():
                self.monitor.write(row)

    def _validate(self) -> None:
        """Validate, write the row, and save where it is one of the best. A stop leaves it to the resumed run."""
        paused = time.monotonic()
        row = self.validate()
        if row is not None:
            self._write({"step": self.step, **row})
            self.doctor.judge({"step": self.step, **row})
            self.validation_due = False
            self._rank(row)
        self.clock += time.monotonic() - paused

    def _rank(self, row: dict[str, float]) -> None:
        """Compare a validation with those before it; where the run is over, with the average of the best."""
        value, waits = cost(row, self.options.best), row.get("valid_blank_share", 0.0) >= BLANK
        if self.ranking.add(value, self.step, waits=waits) and self.ranking.steps[0] == self.step:
            self.best_name = f"step_{self.step}"
        if self.ranking.is_over:
            log.info("stopped at step %d: %d validations in a row were no better", self.step, self.options.patience)
        if self._is_over() and len(self.ranking.steps) > 1:
            self._average_best()
        if self.step in self.ranking.steps or self._is_over():
            self.save()
        if self.world.rank == 0 and self.best_name:
            with self._writing():
                checkpoints.point(self.checkpoints / "best", self.best_name)
                self._remove_old()  # what was the best until now may go

    def _average_best(self) -> None:
        """Average the weights of the best checkpoints, and make that `best` if validation says so."""
        steps = self.ranking.steps
        mine = {name: t.detach().clone() for name, t in sharded.whole(self.model.state_dict()).items()}
        parts = (mine if step == self.step else self._weights_of(step) for step in steps)
        checkpoints.load_tensors(self.model, average_weights(parts), self.checkpoints)
        row = self.validate(to_the_end=True)
        better = cost(row, self.options.best) < self.ranking.best[0][0]
        if better:
            self.best_name = "average"
            self._write_checkpoint("average")
        log.info(
            "the average of steps %s is %s than the best of them",
            ", ".join(map(str, sorted(steps))),
            "better" if better else "no better",
        )
        self._write({"step": self.step, "averaged": sorted(steps), **row})
        checkpoints.load_tensors(self.model, mine, self.checkpoints)

    def _weights_of(self, step: int) -> dict[str, torch.Tensor]:
        return checkpoints.read_tensors(self.checkpoints / f"step_{step}" / "model.safetensors")

    @torch.no_grad()
    def validate(self, *, to_the_end: bool = False) -> dict[str, float] | None:
        """Means over the validation manifest, keys prefixed with valid_; None where a signal asks for a stop first."""
        self.model.eval()
        self.objective.begin_step(self.step, self.options.max_steps)
        averages, batches, spare = Averages(), self.valid_loader.once(), None
        with distributed.apart():
            while True:
                batch = next(batches, None)
                have, stops = zip(*self.world.gather((batch is not None, bool(self.stop))), strict=True)
                self.stop_agreed = any(stops)
                if self.stop_agreed and not to_the_end:
                    return None
                if not any(have):
                    break
                if spare is None:
                    spare = batch if all(have) else self.world.agree(batch)
                # A rank without a batch takes part, since FSDP2 gathers weights from all, and its figures do not count.
                output = self._forward(self.model, (batch or spare).to(self.device))
                if batch is not None:
                    _account(averages, output)
        averages = Averages.of(self.world.gather(averages.state())) if self.world.size > 1 else averages
        row = {f"valid_{name}": value for name, value in _figures(averages.means()).items()}
        figure = f"valid_{self.options.best.removeprefix('-')}"
        if figure not in row:
            raise UserError(
                f"validation gives no {figure} to choose the best checkpoint by, but {', '.join(sorted(row))}; change "
                "trainer.best, or add clips to data.valid that are long enough"
            )
        return row


def _account(averages: Averages, output: LossOutput) -> None:
    """Add a batch's terms and metrics to the averages."""
    for name, term in output.terms.items():
        averages.add(f"loss_{name}", term.sum, term.count)
        averages.add(f"weight_{name}", term.weight, 1)
    for name, (total, count) in output.metrics.items():
        averages.add(name, total, count)


def _figures(means: dict[str, float]) -> dict[str, float]:
    """Averages to a row: the loss is the weighted sum of its terms, and bookkeeping is left out."""
    weights = {name.removeprefix("weight_"): means[name] for name in means if name.startswith("weight_")}
    # Without any term, every step was skipped.
    loss = sum(weight * means.get(f"loss_{name}", 0.0) for name, weight in weights.items()) if weights else math.nan
    kept = {k: v for k, v in means.items() if not k.startswith("weight_") and k != "audio_seconds"}
    return {"loss": loss, **kept}
