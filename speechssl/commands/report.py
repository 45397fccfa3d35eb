"""Write a page about a run: curves, findings, clips, error rates; or about several runs side by side.

Examples:
  speechssl report run_dir=runs/first
  speechssl report run_dir=[runs/first,runs/second] out=comparison.html
  speechssl report run_dir=runs/ctc clips=0    # no spectrograms, which need the model

One HTML file (RUN/report.html where out= does not say another) that opens anywhere, without a network. Evaluations
that lie in the run's folder (evaluate out=RUN/test) are in it, with the audio of some clips.
"""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from speechssl.errors import UserError
from speechssl.reporting import page


def run(config: DictConfig) -> None:
    """Write the report of one run or of several."""
    many = isinstance(config.run_dir, ListConfig)
    folders = [Path(folder) for folder in (config.run_dir if many else [config.run_dir])]
    if not folders:
        raise UserError("run_dir=[] names no run: give run_dir=DIR or run_dir=[DIR,DIR]")
    names = _names(folders)
    runs = [
        page.read(folder, name=name, views=_views(folder, config.clips))
        for folder, name in zip(folders, names, strict=True)
    ]
    beside = folders[0] if folders[0].is_dir() else folders[0].parent
    out = Path(config.out) if config.out else beside / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page.render(runs), encoding="utf-8")
    print(out)


def _views(folder: Path, count: int) -> list:
    """Some clips as the model hears them, where there is a model of ours."""
    if not count or not (folder / "checkpoints").is_dir():
        return []
    from speechssl.doctor import logs
    from speechssl.reporting.listening import listen  # needs torch

    return listen(folder, logs.read(folder).settings, count=count)


def _names(folders: list[Path]) -> list[str]:
    """What tells the folders apart: their paths without what all have in common."""
    if len(folders) == 1:
        return [folders[0].resolve().name]
    common = os.path.commonpath([folder.resolve() for folder in folders])
    return [str(folder.resolve().relative_to(common)) for folder in folders]
