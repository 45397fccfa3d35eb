"""Every command line of the guides is understood, and run (small) where it can be; the site builds without a warning.

A block after `<!-- only checked: REASON -->` is not run here: it needs a GPU, the network or another toolkit's files.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl import cli
from speechssl.config import compose

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# In the order in which one makes what another needs.
GUIDES = ("index", "own-recordings", "speakers", "no-gpu", "many-gpus", "from-fairseq", "from-huggingface", "watching")
BLOCK = re.compile(r"(<!-- only checked: [^>]+-->\n)?^```(?:bash|sh|console)\n(.*?)^```", flags=re.S | re.M)
SMALL = (
    *("model.encoder.hidden_size=16", "model.encoder.num_layers=3", "model.encoder.num_heads=2"),
    *("model.encoder.feed_forward_size=32", "model.encoder.position_kernel=8", "model.encoder.position_groups=4"),
)
SHORT = ("trainer.max_steps=3", "data.batch_seconds=4", "data.num_workers=0", "trainer.device=cpu")


def commands(page):
    """(arguments, whether it can be run here) of each command line."""
    for only_checked, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("speechssl ") and "--" not in line:
                yield shlex.split(line, comments=True)[1:], not only_checked


SHOWN = [(page.stem, arguments) for page in PAGES for arguments, _ in commands(page)]


@pytest.mark.parametrize(("page", "arguments"), SHOWN, ids=lambda value: value if isinstance(value, str) else None)
def test_a_command_is_understood(page, arguments):
    verb, *overrides = (arg for arg in arguments if arg != "objective=loudness")  # the one that a guide has one add
    compose(verb, overrides)


def test_the_guides_are_all_there():
    assert {page.stem for page in PAGES} >= {*GUIDES, "concepts"}
    assert all(any(commands(ROOT / "docs" / f"{name}.md")) for name in GUIDES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with RECORDINGS of two speakers, each with its transcript, and OTHERS of two more without."""
    place = tmp_path_factory.mktemp("guide")
    random = np.random.default_rng(0)
    for i in range(32):
        clip = place / ("RECORDINGS/ann", "RECORDINGS/bob", "OTHERS/eve", "OTHERS/fay")[i % 4] / f"{i // 4 + 1}.wav"
        clip.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(16_000 + 400 * i) / 16_000
        soundfile.write(
            clip, 0.2 * np.sin(2 * np.pi * (200 + 20 * i) * time) + 0.02 * random.standard_normal(len(time)), 16_000
        )
        if clip.parts[-3] == "RECORDINGS":
            clip.with_suffix(".txt").write_text("ab" if i % 2 else "ba ab")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_runs(guide, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if guide not in ("index", "own-recordings") and not (folder / "DATA").exists():
        assert cli.main(["prepare", "corpus=folder", "corpus.root=RECORDINGS", "out=DATA"]) == 0
    for arguments, runs in commands(ROOT / "docs" / f"{guide}.md"):
        if runs:
            small = (
                [*(SMALL if "model=tiny" in arguments else ()), *SHORT]
                if arguments[0] in ("pretrain", "finetune")
                else []
            )
            assert cli.main([*arguments, *small]) == 0, arguments


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=300)
    page = (tmp_path / "commands" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="{verb}"' in page for verb in cli.verbs())
    assert "load_encoder" in (tmp_path / "python" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "images" / "contrast.svg").exists()
