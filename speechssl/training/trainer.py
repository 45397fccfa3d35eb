"""The one training loop, for pretraining and fine-tuning alike.

Every random choice is a function of (seed, step) or (seed, epoch, clip), so a checkpoint needs no generator's state:
weights, optimiser, step and the number of the next batch say everything.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechssl.data.loader import BatchLoader
from speechssl.errors import Interrupted, UserError
from speechssl.models.encoder import Encoder
from speechssl.rng import derive_seed, generator
from speechssl.training import checkpoint as checkpoints
from speechssl.training.monitor import Averages, Monitor, append_row, truncate_rows
from speechssl.training.optim import lr_scale
from speechssl.types import Batch, LossOutput

log = logging.getLogger("speechssl")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How to train.

    Attributes:
        max_steps: optimiser steps in all.
        accumulate: batches in a step; their gradient is that of one large batch.
        clip_norm: bound on the gradient's norm; 0 is no bound.
        log_every, valid_every, checkpoint_every: steps between rows, validations and checkpoints.
        keep_last: how many checkpoints stay.
        best: the validation figure that decides what `best` is; lower is better, a leading "-" says higher.
        max_bad_steps: so many steps with a non-finite gradient in a row end the run.
        seed: of every random choice.
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" for autocast.
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


class Trainer:
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
    ):
        self.encoder, self.objective = encoder, objective
        self.model = nn.ModuleDict({"encoder": encoder, "objective": objective})
        self.loader, self.valid_loader = loader, valid_loader
        self.optimizer, self.schedule = optimizer, schedule
        self.run_dir, self.run_config, self.config, self.options = run_dir, run_config, config, options
        self.device = torch.device(options.device)
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.step = self.saved_step = 0
        self.bad_steps = 0
        self.best = math.inf
        self.averages = Averages()
        self.stop_signal: int | None = None

    def fit(self) -> None:
        """Train to the last step; resumable at any."""
        self._resume()
        if self.step >= self.options.max_steps:
            log.info("%s is finished at step %d; nothing to do", self.run_dir, self.step)
            return
        # Written only now: a run that is finished, or that this one must not continue, keeps its own.
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.yaml").write_text(self.run_config, encoding="utf-8")
        monitor = Monitor(self.run_dir, max_steps=self.options.max_steps, first_step=self.step)
        stream = self.loader.stream()
        with self._signals(), contextlib.closing(monitor):
            clock = time.monotonic()
            while self.step < self.options.max_steps:
                self.step += 1
                self.run_step(stream)
                if self._due(self.options.log_every) or self.step == 1:
                    clock, elapsed_s = time.monotonic(), time.monotonic() - clock
                    monitor.write(self._row(elapsed_s))
                    self.averages = Averages()
                if self.valid_loader and self._due(self.options.valid_every):
                    paused = time.monotonic()
                    monitor.write(self.validate())
                    clock += time.monotonic() - paused
                if self._due(self.options.checkpoint_every) or self.stop_signal:
                    self.save()
                if self.stop_signal and self.step < self.options.max_steps:
                    raise Interrupted(
                        f"{self.run_dir} was interrupted and is saved at step {self.step} of {self.options.max_steps}"
                    )

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.options.max_steps

    def run_step(self, stream: Iterator[Batch]) -> None:
        """One optimiser step over `accumulate` batches of the stream."""
        options = self.options
        self.model.train()
        self.objective.begin_step(self.step, options.max_steps)
        batches = [next(stream).to(self.device) for _ in range(options.accumulate)]
        totals = self._totals(batches)
        for number, batch in enumerate(batches):
            # Dropout draws from torch's global generator: this makes it a function of the step.
            torch.manual_seed(derive_seed(options.seed, "dropout", self.step, number))
            output = self._forward(batch)
            totals_here = totals or {name: term.count for name, term in output.terms.items()}
            loss = sum(t.weight * t.sum / max(totals_here[name], 1) for name, t in output.terms.items())
            loss.backward()
            self._account(output)
        self._update()
        num_samples = sum(int(batch.lengths.sum()) for batch in batches)
        self.averages.add("audio_seconds", num_samples / self.config["sample_rate"], 1)

    def _totals(self, batches: list[Batch]) -> dict[str, int] | None:
        """Each term's count over all batches of the step, known before the first backward pass."""
        if len(batches) == 1:
            return None
        totals: dict[str, int] = {}
        for batch in batches:
            frames = [self.encoder.feature_encoder.num_frames(n) for n in batch.lengths.tolist()]
            for name, count in self.objective.counts(batch, frames).items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def _forward(self, batch: Batch) -> LossOutput:
        # One generator a step, the same for all batches and ranks: LayerDrop drops the same layers everywhere.
        layers = generator(self.options.seed, "layers", self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            return self.objective(self.encoder, batch, layers)

    def _account(self, output: LossOutput) -> None:
        for name, term in output.terms.items():
            self.averages.add(f"loss_{name}", term.sum, term.count)
            self.averages.add(f"weight_{name}", term.weight, 1)
        for name, (total, count) in output.metrics.items():
            self.averages.add(name, total, count)

    def _update(self) -> None:
        """Clip, check, step. A non-finite gradient leaves the weights alone."""
        options = self.options
        scale = lr_scale(self.step, options.max_steps, **self.schedule)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * scale
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if norm.isfinite():
            if options.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, options.clip_norm, norm)
            self.optimizer.step()
            self.bad_steps = 0
            self.averages.add("grad_norm", norm, 1)
        else:
            self.bad_steps += 1
            log.warning("step %d skipped: its gradient is not finite (%d in a row)", self.step, self.bad_steps)
            if self.bad_steps >= options.max_bad_steps:
                raise UserError(
                    f"{self.bad_steps} steps in a row had a gradient that is not finite, up to step {self.step}; the "
                    "last checkpoint is kept; lower optim.lr"
                )
        self.averages.add("skipped_steps", float(self.bad_steps > 0), 1)
        self.optimizer.zero_grad(set_to_none=True)

    def _row(self, elapsed_s: float) -> dict[str, Any]:
        audio_s = float(self.averages.sums["audio_seconds"][0])
        return {
            "step": self.step,
            **_figures(self.averages.means()),
            "lr": self.optimizer.param_groups[0]["lr"],
            "audio_seconds_per_second": audio_s / elapsed_s,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Means over the validation manifest, keys prefixed with valid_."""
        self.model.eval()
        self.objective.begin_step(self.step, self.options.max_steps)
        averages, trained = Averages(), self.averages
        self.averages = averages
        for batch in self.valid_loader.once():
            self._account(self._forward(batch.to(self.device)))
        self.averages = trained
        row = {f"valid_{name}": value for name, value in _figures(averages.means()).items()}
        figure = f"valid_{self.options.best.removeprefix('-')}"
        if figure not in row:
            raise UserError(
                f"validation gives no {figure} to choose the best checkpoint by, but {', '.join(sorted(row))}; change "
                "trainer.best, or add clips to data.valid that are long enough"
            )
        value = row[figure] * (-1 if self.options.best.startswith("-") else 1)
        if value < self.best:
            self.best = value
            self.save()
            checkpoints.link(self.run_dir / "checkpoints" / "best", f"step_{self.step}")
        return {"step": self.step, **row}

    def save(self) -> None:
        """Write a checkpoint of this step, unless that is done."""
        if self.saved_step == self.step:
            return
        folder = self.run_dir / "checkpoints"
        names = {id(p): name for name, p in self.model.named_parameters()}
        state = {
            "step": self.step,
            "next_batch": self.loader.position,
            "num_read": self.loader.num_read,
            "num_broken": self.loader.num_broken,
            "bad_steps": self.bad_steps,
            "best": None if math.isinf(self.best) else self.best,
            "averages": self.averages.state(),
            "seed": self.options.seed,
        }
        checkpoints.save_checkpoint(
            folder,
            step=self.step,
            config={**self.config, "step": self.step},
            model=self.model.state_dict(),
            optimizer=checkpoints.optimizer_tensors(self.optimizer, names),
            trainer=state,
        )
        checkpoints.remove_old(folder, keep_last=self.options.keep_last)
        self.saved_step = self.step

    def _resume(self) -> None:
        """Continue from `last` where there is one and the options say so."""
        last = self.run_dir / "checkpoints" / "last"
        if not last.exists():
            if self.options.resume == "must":
                raise UserError(f"{self.run_dir} holds no checkpoint to resume from; drop trainer.resume=must")
            truncate_rows(self.run_dir / "metrics.jsonl", last_step=0)  # of a run that left no checkpoint
            return
        if self.options.resume == "never":
            raise UserError(f"{self.run_dir} holds a run already; choose another run_dir or trainer.resume=auto")
        found = checkpoints.load_checkpoint(last)
        difference = checkpoints.first_difference({**self.config, "step": 0}, {**found.config, "step": 0})
        if difference:
            raise UserError(f"{last} is of another model: {difference}; choose another run_dir or the same settings")
        checkpoints.load_tensors(self.model, found.tensors, found.folder)
        self._load_state(found.folder)
        if self.step < self.options.max_steps:
            truncate_rows(self.run_dir / "metrics.jsonl", last_step=self.step)
            append_row(
                self.run_dir / "metrics.jsonl",
                {"step": self.step, "event": "resumed", "resumed_from": self.step},
            )
            log.info("resumed %s at step %d", self.run_dir, self.step)

    def _load_state(self, folder: Path) -> None:
        named = dict(self.model.named_parameters())
        tensors = checkpoints.read_tensors(folder / "optimizer.safetensors")
        checkpoints.load_optimizer(self.optimizer, named, tensors)
        state = checkpoints.read_json(folder / "trainer.json")
        if state["seed"] != self.options.seed:
            raise UserError(
                f"{self.run_dir} was begun with trainer.seed={state['seed']}, not {self.options.seed}; choose another "
                "run_dir or the same seed"
            )
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.averages = Averages(state["averages"])
        self.loader.position = state["next_batch"]
        self.loader.num_read, self.loader.num_broken = state["num_read"], state["num_broken"]

    @contextlib.contextmanager
    def _signals(self):
        """While training, SIGINT and SIGTERM ask for a save and a stop; a second SIGINT stops at once."""

        def ask(number: int, _frame: object) -> None:
            if self.stop_signal:
                raise KeyboardInterrupt
            self.stop_signal = number
            log.warning("stopping after this step; once more stops at once")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _figures(means: dict[str, float]) -> dict[str, float]:
    """Averages to a row: the loss is the weighted sum of its terms, and bookkeeping is left out."""
    weights = {name.removeprefix("weight_"): means[name] for name in means if name.startswith("weight_")}
    loss = sum(weight * means.get(f"loss_{name}", 0.0) for name, weight in weights.items())
    kept = {k: v for k, v in means.items() if not k.startswith("weight_") and k != "audio_seconds"}
    return {"loss": loss, **kept}
