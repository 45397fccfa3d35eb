"""Reads the run folders of a recipe (recipes/common.sh says how they lie) and prints what came of them.

python summarize.py rate RUNS/ctc/TRANSCRIPTS/START    the learning rate with the lowest CER on valid
python summarize.py table RUNS                         the closing table, as plain text
python summarize.py plot RUNS FILE.svg                 CER over hours of transcripts, drawn
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STARTS = ("pretrained", "student_1", "student_2", "student_3", "scratch", "logmel")
UNKNOWN = "-"


def main(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    match arguments:
        case ["rate", start]:
            print(best_rate(Path(start)))
        case ["table", runs]:
            print(table(Path(runs)))
        case ["plot", runs, path]:
            plot(Path(runs), Path(path))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def best_rate(start: Path) -> str:
    """The rate of START/lr_RATE whose CER on valid is lowest; the lower rate where they are equal."""
    tried = cer_by_rate(start)
    return min(tried, key=tried.get)


def cer_by_rate(start: Path) -> dict[str, float]:
    """Rates of START/lr_RATE/seed_N, rising, each with its run's lowest CER on valid.

    Of the seed that has tried most rates: the others have runs at the best one only.
    """
    by_seed: dict[str, dict[str, float]] = {}
    folders = start.glob("lr_*/seed_*/.done")
    for run in sorted((path.parent for path in folders), key=lambda run: (float(rate_of(run)), run.name)):
        cers = [row["valid_cer"] for row in read_rows(run) if "valid_cer" in row]
        by_seed.setdefault(run.name, {})[rate_of(run)] = min(cers)
    return max(by_seed.values(), key=len, default={})


def rate_of(run: Path) -> str:
    """The learning rate of a run folder lr_RATE/seed_N, as it was given."""
    return run.parent.name.removeprefix("lr_")


def table(runs: Path) -> str:
    """Everything that has been measured under RUNS, as plain text."""
    comparisons = comparisons_of(runs)
    parts = [
        pretraining(runs / "pretrained"),
        "\n".join(["Error rates on the test split", *columns(error_rates(comparisons))]) if comparisons else "",
        rates_tried(comparisons),
        with_ngram(runs / "ctc"),
        *(probes(path) for path in sorted((runs / "probe").glob("*"))),
        speakers(runs / "speaker"),
        seconds(runs / "seconds.tsv"),
        f"Run folders: {runs}",
    ]
    return "\n\n".join(part for part in parts if part)


def pretraining(run: Path) -> str:
    """How far the contrastive loss of wav2vec 2.0, or HuBERT's of masked frames, has come."""
    rows = read_rows(run)
    perplexity = last_of(rows, "valid_code_perplexity")  # of wav2vec 2.0 alone
    for loss, name in (("loss_contrastive", "contrastive loss"), ("loss_masked", "loss of masked frames")):
        first, final = first_of(rows, loss), last_of(rows, f"valid_{loss}")
        if first is not None and final is not None:
            return (
                f"Pretraining: {name} {first:.2f} nats at step 1, {final:.2f} on valid at step {rows[-1]['step']}; "
                f"accuracy {percent(last_of(rows, 'valid_accuracy'))}, "
                f"by guessing {percent(last_of(rows, 'valid_chance'))}"
                + ("" if perplexity is None else f"; code perplexity {perplexity:.0f}")
            )
    return ""


def comparisons_of(runs: Path) -> list[Path]:
    """The folders RUNS/ctc/TRANSCRIPTS, those with the fewest hours first."""
    folders = [path for path in (runs / "ctc").glob("*") if path.is_dir()]
    return sorted(folders, key=lambda path: (hours(path), path.name))


def hours(comparison: Path) -> float:
    """Hours of transcribed speech that a comparison learned from; 0 where its manifest is not there."""
    name, data = comparison.name, comparison.parent.parent / "data"
    for path in (data / f"train_{name}.jsonl", data / "train.jsonl" if name.startswith("all") else None):
        if path and path.is_file():
            lines = path.read_text("utf-8").splitlines()
            return sum(json.loads(line)["duration"] for line in lines) / 3600
    return 0.0


def error_rates(comparisons: list[Path]) -> list[list[str]]:
    """A line for each seed of each comparison, the starts beside each other, and their means.

    A CER has half of its 95 % interval over utterances behind it.
    """
    starts = [start for start in STARTS if any((comparison / start).is_dir() for comparison in comparisons)]
    lines = [["transcripts", "seed", *(f"{name} {start}" for name in ("WER", "CER") for start in starts)]]
    for comparison in comparisons:
        tested = {start: metrics_by_seed(comparison / start) for start in starts}
        seeds = sorted({seed for found in tested.values() for seed in found})
        for seed in seeds:
            of_seed = [tested[start].get(seed, {}) for start in starts]
            cells = [percent(found.get("wer")) for found in of_seed]
            lines.append([comparison.name, str(seed), *cells, *map(cer_with_interval, of_seed)])
        if len(seeds) > 1:
            means = [mean(tested[start].values(), name) for name in ("wer", "cer") for start in starts]
            lines.append([comparison.name, "mean", *map(percent, means)])
    return lines


def cer_with_interval(metrics: dict[str, Any]) -> str:
    """The CER of one test, ± half of its interval."""
    ends = metrics.get("cer_interval")
    return percent(metrics.get("cer")) + (f" ± {50 * (ends[1] - ends[0]):.1f}" if ends else "")


def with_ngram(folder: Path) -> str:
    """What decoding with an n-gram gave, beside greedy decoding of the same network."""
    lines = [["", "decoder", "WER greedy", "WER n-gram", "CER greedy", "CER n-gram"]]
    for decoder in ("beam", "posterior"):
        for path in sorted(folder.glob(f"*/*/lr_*/seed_*/{decoder}/test/metrics.json")):
            run = path.parents[2]
            greedy, decoded = (json.loads(one.read_text("utf-8")) for one in (run / "test" / "metrics.json", path))
            cells = [percent(one[name]) for name in ("wer", "cer") for one in (greedy, decoded)]
            lines.append(["/".join(run.relative_to(folder).parts), decoder, *cells])
    return "\n".join(["Decoding with an n-gram", *columns(lines)]) if lines[1:] else ""


def plot(runs: Path, path: Path) -> None:
    """CER over hours of transcripts: a line for each start, through the means of its seeds, and a dot for each seed."""
    from matplotlib.figure import Figure  # takes longer than everything else here
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for start in STARTS:
        found = [(hours(one), metrics_by_seed(one / start).values()) for one in comparisons_of(runs)]
        found = [(x, [one["cer"] for one in tested]) for x, tested in found if tested]
        if not found:
            continue
        [line] = axes.plot([x for x, _ in found], [sum(cers) / len(cers) for _, cers in found], label=start)
        dots = [(x, cer) for x, cers in found for cer in cers]
        axes.plot(*zip(*dots, strict=True), "o", markersize=4, color=line.get_color())
    axes.set(xlabel="transcribed speech, hours", ylabel="CER on the test split", xscale="log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def metrics_by_seed(start: Path) -> dict[int, dict[str, Any]]:
    """What `evaluate` gave for each seed at the best rate."""
    if not cer_by_rate(start):
        return {}
    found = (start / f"lr_{best_rate(start)}").glob("seed_*/test/metrics.json")
    return {int(path.parts[-3].removeprefix("seed_")): json.loads(path.read_text("utf-8")) for path in found}


def mean(metrics: Any, name: str) -> float | None:
    """The mean of one figure over seeds, None without any."""
    values = [one[name] for one in metrics]
    return sum(values) / len(values) if values else None


def rates_tried(comparisons: list[Path]) -> str:
    """CER on valid of each learning rate, where more than one was tried."""
    sides = [one / start for one in comparisons for start in STARTS]
    tried = {f"{side.parent.name} {side.name}": cer_by_rate(side) for side in sides if side.is_dir()}
    rates = sorted({rate for cers in tried.values() for rate in cers}, key=float)
    if len(rates) < 2:
        return ""
    lines = [["", *rates]]
    lines += [[name, *(percent(cers.get(rate)) for rate in rates)] for name, cers in tried.items()]
    return "\n".join(["CER on valid by learning rate, first seed; the lowest is taken", *columns(lines)])


def probes(folder: Path) -> str:
    """The layer of each source that was best on valid, and the weighting of all, tested."""
    path = folder / "probe.json"
    if not path.is_file():
        return ""
    content = json.loads(path.read_text("utf-8"))
    metric, sign = content["metric"], -1 if content["metric"] == "cer" else 1
    best: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in content["results"]:
        key = row["source"], row["layer"] == "weighted"
        if key not in best or sign * row["valid"] > sign * best[key]["valid"]:
            best[key] = row
    lines = [["source", "layer", metric, "95 % interval", "EER", "95 % interval"]]
    for row in best.values():
        lines.append([row["source"], row["layer"], percent(row["test"]), interval(row["interval"])])
        lines[-1] += [percent(row.get("eer")), interval(row.get("eer_interval"))]
    return "\n".join([f"Probe {folder.name}: {metric} on test, EER of other speakers", *columns(lines)])


def speakers(run: Path) -> str:
    """How well speakers are told apart, by one head or by one for each start."""
    lines = [["speaker head", "tested on", "accuracy", "EER", "95 % interval", "minDCF"]]
    for path in sorted(run.glob("**/metrics.json")):
        metrics = json.loads(path.read_text("utf-8"))
        head = "/".join(path.parent.parent.relative_to(run).parts) or run.name
        lines.append([head, path.parent.name, percent(metrics["accuracy"]), percent(metrics["eer"])])
        lines[-1] += [interval(metrics.get("eer_interval")), number(metrics.get("min_dcf"))]
    if len(lines) == 2:
        return f"Speakers: accuracy {lines[1][2]}, equal error rate {lines[1][3]}"
    return "\n".join(["Speakers", *columns(lines)]) if lines[1:] else ""


def seconds(path: Path) -> str:
    """Seconds of each stage, those of repeated calls added up."""
    if not path.is_file():
        return ""
    totals: dict[str, int] = {}
    for line in path.read_text("utf-8").splitlines():
        stage, _, taken = line.rpartition("\t")
        totals[stage] = totals.get(stage, 0) + int(taken)
    lines = [[stage, str(taken)] for stage, taken in sorted(totals.items())]
    return "\n".join(["Seconds", *columns([*lines, ["all", str(sum(totals.values()))]])])


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of RUN/metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def first_of(rows: list[dict[str, Any]], key: str) -> Any:
    """The first value of a key."""
    return next((row[key] for row in rows if key in row), None)


def last_of(rows: list[dict[str, Any]], key: str) -> Any:
    """The last value of a key."""
    return first_of(rows[::-1], key)


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """A plain figure."""
    return UNKNOWN if value is None else f"{value:.3f}"


def interval(ends: list[float] | None) -> str:
    """Two fractions as percentages."""
    return UNKNOWN if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def columns(lines: list[list[str]]) -> list[str]:
    """Lines of cells as aligned text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        rows.append("  ".join(["", *cells]))
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
