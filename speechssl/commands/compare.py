"""Compare objectives: the same data, encoder, seconds of compute and fine-tuning for each, in a table and plots.

Examples:
  speechssl compare budget=600 data.train=train.jsonl data.valid=valid.jsonl data.labelled=[10min.jsonl] \\
    data.test=test.jsonl out=compared
  speechssl compare "objectives=[byol,'byol teacher=none','byol optim.lr=3e-4']" data.train=train.jsonl \\
    data.valid=valid.jsonl data.labelled=[10min.jsonl,1h.jsonl] data.test=test.jsonl out=kin

Each objective is pretrained for as many steps as fit the budget, fine-tuned on each amount of transcripts, and probed
for the speaker, as `speechssl probe` does it: the encoder frozen, its layers weighted, the rate chosen on valid.
finetunings= has the ways to fine-tune, each a column: ctc on the transcripts alone, selftrain on what that model then
makes of data.train (half of the steps each), semi with the pretraining's own loss on data.train beside it. OUT
gets results.json, table.md and plots. Runs are in OUT/runs; the same command again goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from speechssl.commands.selftrain import row_in, write_rows
from speechssl.config import config_dir, nearest, objective_class, options
from speechssl.data.sampler import DurationBuckets
from speechssl.errors import UserError
from speechssl.evaluation.comparison import Contender, Measured, run_measured, write
from speechssl.manifest import Manifest, ManifestSet
from speechssl.training.run import choose_device, open_manifest

log = logging.getLogger("speechssl")

# Where a run stops, and goes on from, that says how long a step takes: preparation is before the first stop, and each
# start costs the same from then on. Where the steps to the third stop take less than SHOWS of a start, they go on to
# later ones: what the machine does besides would be taken for steps.
STOPS = (4, 8, 44, 176, 704, 2816)
SHOWS = 0.25
HEALTH = ("output_variance", "effective_rank", "code_usage", "energy_gap", "target_variance")
FINETUNINGS = ("ctc", "selftrain", "semi")
RANDOM = Contender("random", "best_rq", ())  # a step at no rate leaves an encoder as it began


def run(config: DictConfig) -> None:
    """Compare as the config says."""
    contenders = [_contender(str(text)) for text in config.objectives]
    if config.random:
        contenders.insert(0, RANDOM)
    if len({contender.label for contender in contenders}) < len(contenders):
        raise UserError("objectives= names one twice; give each once, or with other settings")
    if isinstance(config.data.labelled, str):
        config.data.labelled = [config.data.labelled]
    if isinstance(config.finetunings, str):
        config.finetunings = [config.finetunings]
    for way in config.finetunings:
        if way not in FINETUNINGS:
            raise UserError(f"finetunings= has {way!r}: did you mean {nearest(str(way), FINETUNINGS)}?")
    data = config.data
    stems = [Path(path).stem for path in data.labelled]
    if len(set(stems)) < len(stems):
        raise UserError("data.labelled= has two files of one name, which is what their columns are called; rename one")
    speakers = [path for path in (data.speakers, data.speakers_valid, data.speakers_test) if path]
    train, *_ = [open_manifest(path) for path in (data.train, data.valid, data.test, *data.labelled, *speakers)]
    durations_s = train.durations_s.clip(max=config.model.pretrain.max_clip_s)
    batches = DurationBuckets(durations_s, batch_seconds=config.data.batch_seconds, seed=0).epoch(0)
    unlabelled = _without_text(train, Path(config.out)) if set(config.finetunings) - {"ctc"} else None
    rows = []
    for contender in contenders:
        batch_s = float(durations_s.sum()) / len(batches)
        comparison = _Comparison(config, contender, batch_s=batch_s, unlabelled=unlabelled)
        rows.append(comparison.row())
        write(Path(config.out), rows)
    print((Path(config.out) / "table.md").read_text(encoding="utf-8"), end="")


def _without_text(train: Manifest | ManifestSet, folder: Path) -> str:
    """A manifest of the same clips without their transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{key: value for key, value in row_in(clip, folder).items() if key != "text"} for clip in train]
    found = write_rows(folder, rows, name="unlabelled")
    if not isinstance(found, str):
        raise UserError("finetunings= besides ctc need data.train= to be all shards or all files; give one of them")
    return found


def _contender(text: str) -> Contender:
    """`NAME key=value ...`, the keys those of the objective, or `optim.` and one of the optimiser's."""
    name, *settings = text.split()
    settings = [setting.removeprefix("objective.") for setting in settings]
    known = options("objective", configs=config_dir())
    if name not in known:
        raise UserError(f"objectives= has {name!r}: did you mean {nearest(name, known)}? (they are {', '.join(known)})")
    label = "_".join([name, *(setting.replace("=", "-").replace("/", "-") for setting in settings)])
    return Contender(label, name, tuple(x if x.startswith("optim.") else f"objective.{x}" for x in settings))


class _Comparison:
    """One objective's runs.

    Args:
        config: of the command.
        contender: what is trained.
        batch_s: mean audio seconds of a step.
        unlabelled: manifest of what it is pretrained on, without transcripts, where a way to fine-tune needs that.
    """

    def __init__(self, config: DictConfig, contender: Contender, *, batch_s: float, unlabelled: str | None):
        self.config, self.contender, self.batch_s, self.unlabelled = config, contender, batch_s, unlabelled
        self.folder = Path(config.out) / "runs" / contender.label
        self.shared = [f"trainer.device={config.trainer.device}", f"trainer.seed={config.trainer.seed}"]
        self.on_gpu = choose_device(config.trainer.device) == "cuda"

    def row(self) -> dict[str, Any]:
        """Pretrain, fine-tune, probe: all figures."""
        data = self.config.data
        row: dict[str, Any] = {"objective": self.contender.label, **self._pretrain()}
        for path in data.labelled:
            for way in self.config.finetunings:
                metrics = self._tune(way, path)
                column = Path(path).stem + ("" if way == "ctc" else f"_{way}")
                row |= {f"{rate}_{column}": metrics.get(rate) for rate in ("cer", "wer")}
        return row | {"speaker_accuracy": self._probe()}

    def _seconds(self, measured: Measured) -> float:
        return measured.wall_s if self.on_gpu else measured.cpu_s

    def _train(self, name: str, steps: int, *more: str, record: str | None = None) -> Measured:
        data = self.config.data
        return run_measured(
            self.folder / f"{record or name}.json",
            "pretrain",
            [
                f"model={self.config.model.name}",
                f"objective={self.contender.objective}",
                *self.contender.settings,
                *self.shared,
                f"data.train={data.train}",
                f"data.batch_seconds={data.batch_seconds}",
                f"run_dir={self.folder / name}",
                # Validated at the end alone, so that the budget is the training's.
                *(f"trainer.{key}={steps}" for key in ("max_steps", "valid_every", "checkpoint_every")),
                *more,
            ],
            self.config.model,
        )

    def _pretrain(self) -> dict[str, Any]:
        valid = f"data.valid={self.config.data.valid}"
        if self.contender == RANDOM:
            self._train("pretrained", 1, valid, "optim.lr=1e-12")
            return {"steps": 0, **self._health()}
        step_s, start_s = self._speed()
        steps = int((self.config.budget - start_s) / step_s)
        if steps < 1:
            raise UserError(
                f"budget={self.config.budget:g} is less than one step of {self.contender.label} takes, "
                f"{start_s + step_s:.0f} s; give more"
            )
        used = self._train("pretrained", steps, valid)
        return {
            "steps": steps,
            "audio_hours": steps * self.batch_s / 3600,
            "seconds_per_hour": step_s * 3600 / self.batch_s,
            "pretrain_s": self._seconds(used),
            "memory_mib": used.memory_mib,
            **self._health(),
        }

    def _speed(self) -> tuple[float, float]:
        """Seconds of a step, and of what comes before the first."""

        def until(stop: int) -> float:
            return self._seconds(self._train("speed", stop, record=f"speed_{stop}"))

        first, short = until(STOPS[0]), until(STOPS[1])
        for before, stop in itertools.pairwise(STOPS[1:]):
            taken, steps = until(stop) - short, stop - before - (STOPS[1] - STOPS[0])
            if taken >= SHOWS * short:
                break
        step_s = max(taken, SHOWS * short) / steps
        return step_s, max(first - STOPS[0] * step_s, 0.0)

    def _health(self) -> dict[str, Any]:
        """The figures of the last validation."""
        text = (self.folder / "pretrained" / "metrics.jsonl").read_text(encoding="utf-8")
        last = [row for row in map(json.loads, text.splitlines()) if "valid_loss" in row][-1]
        return {key: last.get(f"valid_{key}") for key in HEALTH}

    def _tune(self, way: str, manifest: str) -> dict[str, Any]:
        """Fine-tune on transcripts in one of FINETUNINGS, and test; the metrics of `speechssl evaluate`.

        None of them where a way cannot be: semi where the pretraining's labels belong to its own run (HuBERT),
        selftrain where the model, all blanks, wrote nothing to learn from.
        """
        name = f"{way}_{Path(manifest).stem}"
        run_dir, data, steps = self.folder / name, self.config.data, self.config.finetune_steps
        verb, tested, train = "finetune", run_dir, [f"data.train={manifest}"]
        if way == "semi":
            if objective_class(self.contender.objective).has_frame_labels is True:
                return {}
            train = [f"data.train=['{manifest}','{self.unlabelled}']", "data.mix_temperature=100"]
        elif way == "selftrain":
            verb, tested, steps = "selftrain", run_dir / "round_1", max(steps // 2, 1)
            train += [f"data.unlabelled={self.unlabelled}", "rounds=1"]
        command = [
            "task=semi" if way == "semi" else "task=ctc",
            f"init={self.folder / 'pretrained'}",
            *train,
            f"data.valid={data.valid}",
            "data.skip_invalid=true",
            f"trainer.max_steps={steps}",
            f"trainer.checkpoint_every={steps}",
            f"trainer.valid_every={max(steps // 5, 1)}",
            f"optim.lr={self.config.finetune_lr}",
            f"run_dir={run_dir}",
            *self.shared,
            *self.config.finetune,
        ]
        try:
            run_measured(self.folder / f"{name}.json", verb, command)
        except UserError as error:
            if way != "selftrain" or tested.exists():
                raise
            log.warning("%s has no figures of self-training: %s", self.contender.label, error)
            return {}
        overrides = [f"checkpoint={tested}", f"data.test={data.test}", f"out={run_dir / 'test'}"]
        run_measured(self.folder / f"{name}_test.json", "evaluate", overrides)
        return json.loads((run_dir / "test" / "metrics.json").read_text(encoding="utf-8"))

    def _probe(self) -> float:
        """Accuracy of naming the speaker from all layers, weighted."""
        out, data = self.folder / "speaker", self.config.data
        run_measured(
            self.folder / "speaker.json",
            "probe",
            [
                f"checkpoint={self.folder / 'pretrained'}",
                f"data.train={data.speakers or data.labelled[-1]}",
                f"data.valid={data.speakers_valid or data.valid}",
                f"data.test={data.speakers_test or data.test}",
                "data.skip_invalid=true",
                "floors=false",
                f"steps={self.config.probe_steps}",
                f"seed={self.config.trainer.seed}",
                f"trainer.device={self.config.trainer.device}",
                f"out={out}",
            ],
        )
        rows = json.loads((out / "probe.json").read_text(encoding="utf-8"))["results"]
        return next(row["test"] for row in rows if row["layer"] == "weighted")
