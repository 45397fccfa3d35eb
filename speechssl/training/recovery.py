"""What a Trainer keeps of a run and how it goes on: checkpoints, resuming, going back after it has diverged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.errors import Interrupted, UserError
from speechssl.training import checkpoint as checkpoints
from speechssl.training import files, sharded
from speechssl.training.monitor import Averages, append_row, truncate_rows

log = logging.getLogger("speechssl")

# The learning rate's factor each time that a run goes back to a checkpoint.
ROLLBACK_SCALE = 0.5


class Diverged(Exception):
    """The weights, or too many gradients in a row, are not finite; the message says which."""


class Recovery:
    """The half of Trainer that touches the disk; its attributes are Trainer's."""

    def save(self) -> None:
        """Write a checkpoint of this step, unless that is done."""
        if self.saved_step != self.step:
            self._write_checkpoint()
            self.saved_step = self.step

    def _write_checkpoint(self, name: str | None = None) -> None:
        """A checkpoint of this step; one with a name is none to go on from."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        model, optimizer = self.model.state_dict(), checkpoints.optimizer_tensors(self.optimizer, names)
        bad = checkpoints.first_not_finite(model | optimizer)
        if self.is_sharded:  # of which each rank sees a part
            bad = next(filter(None, self.world.gather(bad)), None)
            model = sharded.whole(model)
        if bad:
            raise Diverged(f"{bad} is not finite after step {self.step}")
        folder = checkpoints.temporary(self.checkpoints, name or f"step_{self.step}")
        is_main = self.world.rank == 0
        with self._writing():
            if is_main:
                if self.monitor:
                    files.sync(self.monitor.path)
                checkpoints.begin(folder, model)
            if self.is_sharded:
                self.world.agree()  # that the folder is there
                sharded.save(folder, optimizer)
            elif is_main:
                files.write_tensors(folder / "optimizer.safetensors", optimizer)
            if is_main:
                checkpoints.publish(folder, config={**self.config, "step": self.step}, trainer=self._state())
                if name is None:
                    self._remove_old()

    def _remove_old(self) -> None:
        """Leave the newest checkpoints, the best, and what `last` and `best` point at."""
        keep = self.ranking.steps
        checkpoints.remove_old(self.checkpoints, keep_last=self.options.keep_last, keep=keep)

    def _state(self) -> dict[str, Any]:
        """What a resumed run has to know besides weights and optimiser."""
        return {
            "step": self.step,
            **self.loader_state,
            "bad_steps": self.bad_steps,
            "ranking": self.ranking.state(),
            "best_name": self.best_name,
            "validation_due": self.validation_due,
            "averages": self.averages.state(),
            "seed": self.options.seed,
        }

    def _loader_state(self, counts: list[tuple[int, int]]) -> dict[str, int]:
        """Where the loader is; `counts` are (clips read, clips broken) of all ranks, where there are several."""
        if self.loader is None:
            return {}
        num_read, num_broken = map(sum, zip(*counts or [(self.loader.num_read, self.loader.num_broken)], strict=True))
        return {"next_batch": self.loader.position, "num_read": num_read, "num_broken": num_broken}

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A disk that is full or cannot be written stops the run with one sentence; what is saved stays."""
        try:
            yield
        except OSError as error:
            kept = f"the checkpoint of step {self.saved_step} is whole" if self.saved_step else "there is no checkpoint"
            where = f" ({error.filename})" if error.filename else ""
            raise Interrupted(
                f"{self.run_dir} could not be written at step {self.step}: {error.strerror}{where}; {kept}; make room "
                "or give the right to write"
            ) from error

    def note(self, event: dict[str, Any]) -> None:
        """Rank 0 appends an event to metrics.jsonl."""
        if self.world.rank == 0:
            with self._writing():
                append_row(self.run_dir / "metrics.jsonl", event)

    def _rescue(self) -> None:
        """Save what a run that ends by an error has done, where that is whole."""
        if self.ready_step is None or self.ready_step == self.saved_step or self.is_sharded:
            return
        self.step = self.ready_step
        try:
            self.save()
        except (Diverged, Interrupted) as error:
            log.warning("step %d could not be saved: %s", self.step, error)
        else:
            log.info("saved at step %d; the same command goes on from there", self.step)

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint where there is one and the options say so."""
        metrics = self.run_dir / "metrics.jsonl"
        folder, damaged = self._find()
        if folder is None:
            if self.options.resume == "must":
                raise UserError(f"{self.run_dir} holds no checkpoint to resume from; drop trainer.resume=must")
            if self.world.rank == 0:  # what a run left that left no checkpoint
                with self._writing():
                    truncate_rows(metrics, last_step=0)
                    files.remove(self.run_dir / "rollbacks.json")
            if self.doctor.act == "rollback":  # the beginning is saved too: what it goes back to first
                self.saved_step = None
            return
        if self.options.resume == "never":
            raise UserError(f"{self.run_dir} holds a run already; choose another run_dir or trainer.resume=auto")
        self._restore(folder)
        if self.world.rank == 0:
            with self._writing():
                checkpoints.adopt(self.checkpoints, folder, damaged)
        if self._is_over():
            return
        if self.world.rank == 0:
            with self._writing():
                truncate_rows(metrics, last_step=self.step)
        self.note({"step": self.step, "event": "resumed", "resumed_from": self.step})
        log.info("resumed %s at step %d", self.run_dir, self.step)

    def _find(self) -> tuple[Path | None, list[Path]]:
        """The newest whole checkpoint and the damaged ones after it, as rank 0 finds them."""
        found = checkpoints.newest_whole(self.checkpoints) if self.world.rank == 0 else None
        return self.world.agree(found)

    def _restore(self, folder: Path) -> None:
        """Put everything back as it was at a checkpoint."""
        found = checkpoints.read(folder)
        difference = checkpoints.first_difference({**self.config, "step": 0}, {**found.config, "step": 0})
        if difference:
            raise UserError(f"{folder} is of another model: {difference}; choose another run_dir or the same settings")
        state = checkpoints.read_json(folder / "trainer.json")
        if state.get("seed") != self.options.seed:
            raise UserError(
                f"{self.run_dir} was begun with trainer.seed={state.get('seed')}, not {self.options.seed}; choose "
                "another run_dir or the same seed"
            )
        checkpoints.load_tensors(self.model, found.tensors, found.folder)
        named = dict(self.model.named_parameters())
        if (folder / "optimizer.safetensors").exists():
            tensors = checkpoints.read_tensors(folder / "optimizer.safetensors")
        else:
            tensors = sharded.load(folder, named)
        checkpoints.load_optimizer(self.optimizer, named, tensors, folder)
        try:
            self._load_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder}/trainer.json is no run's state ({error!r}); use another checkpoint") from error

    def _load_state(self, state: dict[str, Any]) -> None:
        self.step, self.bad_steps = int(state["step"]), int(state["bad_steps"])
        self.ranking.load(state["ranking"])
        self.best_name = state["best_name"]
        self.validation_due = state["validation_due"] and self.valid_loader is not None
        self.averages = Averages(state["averages"])
        self.loader.position = int(state["next_batch"])
        is_main = self.world.rank == 0  # counts of all ranks go on there
        self.loader.num_read, self.loader.num_broken = (
            int(state[name]) if is_main else 0 for name in ("num_read", "num_broken")
        )
        self.loader_state = {name: state[name] for name in ("next_batch", "num_read", "num_broken")}
        self.saved_step = self.ready_step = self.step
        rollbacks = self.run_dir / "rollbacks.json"
        self.num_rollbacks = int(checkpoints.read_json(rollbacks)["count"]) if rollbacks.exists() else 0

    def _go_back(self, reason: Diverged) -> None:
        """Go on from the last checkpoint with a lower rate; a run that keeps diverging ends."""
        folder, damaged = self._find()
        skipped = self.bad_steps >= self.options.max_bad_steps
        if self.num_rollbacks >= self.options.max_rollbacks or not (folder or skipped):
            raise UserError(
                f"{self.run_dir} stops after {self.num_rollbacks} times with half the rate (trainer.max_rollbacks="
                f"{self.options.max_rollbacks}): {reason}; the last checkpoint is kept; lower optim.lr"
            )
        failed_step, rollbacks = self.step, self.num_rollbacks + 1
        if self.world.rank == 0:
            with self._writing():  # outside of the checkpoints, so that a resume from an older one knows it too
                files.replace_text(self.run_dir / "rollbacks.json", f'{{"count": {rollbacks}}}\n')
        if folder:
            self._restore(folder)
        # Without a checkpoint the weights stay: steps that were skipped have not touched them.
        self.num_rollbacks, self.bad_steps = rollbacks, 0
        self.ready_step = self.step
        scale = ROLLBACK_SCALE**rollbacks
        if self.world.rank == 0:
            with self._writing():
                if folder:
                    checkpoints.adopt(self.checkpoints, folder, damaged)
                truncate_rows(self.run_dir / "metrics.jsonl", last_step=self.step)
        event = {"step": self.step, "event": "rolled_back", "rolled_back_from": failed_step, "rate_scale": scale}
        self.note(event)
        self.doctor.went_back(event)
        log.warning("%s; going on from step %d with the rate times %g", reason, self.step, scale)
