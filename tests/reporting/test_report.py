"""The report: one file, complete, nothing from outside; opened in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from speechssl import cli
from speechssl.reporting import charts, evaluations, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

REFERENCES = ["the cat sat", "a dog ran home", "the cat sat"]
HYPOTHESES = ["the cut sat", "a dog ran home", "the cut sat down"]


@pytest.fixture
def make_run(tmp_path):
    """A run folder as training and evaluation leave it: collapsed codes, and a test of three clips."""

    def make(name="run"):
        run = tmp_path / name
        (run / "test").mkdir(parents=True)
        rows = [
            {
                "step": 0,
                "event": "began",
                "command": "speechssl pretrain model=tiny",
                "versions": {"torch": "2.11"},
                "machine": "a PC",
            }
        ]
        for step in (1, *range(10, 210, 10)):
            figures = {
                "loss": 5 - step / 100,
                "accuracy": 0.05 + step / 1e4,
                "chance": 0.02,
                "code_perplexity": 3 + step / 1e3,
                "loader_share": 0.01,
            }
            rows.append({"step": step, **figures, "loss_contrastive": 4.7 - step / 300, "loss_diversity": 0.5})
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "config.yaml").write_text(
            "objective: {name: wav2vec2, num_groups: 2, num_codewords: 320, diversity_weight: 0.1}\n"
            "trainer: {max_steps: 200}\ndata: {train: <b>.jsonl}\n"
        )
        time = np.arange(16_000) / 16_000
        lines = []
        for i, (reference, hypothesis) in enumerate(zip(REFERENCES, HYPOTHESES, strict=True)):
            soundfile.write(tmp_path / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 220 * (i + 1) * time), 16_000)
            lines.append(
                {
                    "id": f"clip{i}",
                    "audio_filepath": str(tmp_path / f"{i}.wav"),
                    "reference": reference,
                    "hypothesis": hypothesis,
                }
            )
        (run / "test" / "hypotheses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "test" / "metrics.json").write_text(
            json.dumps({"wer": 0.3, "num_utterances": 3, "normalisation": "case kept"})
        )
        return run

    return make


def render(*arguments):
    assert cli.main(["report", *arguments]) == 0


def test_rates_and_mistakes_are_those_of_a_count_by_hand(make_run):
    [test] = evaluations.find(make_run())
    rate, low, high = test.intervals["WER"]
    assert rate == pytest.approx(3 / 10)  # cut for cat twice, and "down"
    assert low < rate < high
    assert test.intervals["CER"][0] == pytest.approx(7 / 36)
    assert test.confusions["words"] == [("cat", "cut", 2), ("–", "down", 1)]
    assert test.clips[0].words[1] == ("substitute", "cat", "cut")
    assert [clip.audio[:22] for clip in test.clips] == ["data:audio/ogg;base64,"] * 3


def test_the_interval_is_that_of_the_binomial(make_run):
    """1,000 clips of one word each, a tenth wrong: the interval is about ±1.96 sqrt(pq/n)."""
    edits = np.array([1] * 100 + [0] * 900)
    _, low, high = evaluations._interval(edits, np.ones(1000, dtype=int))
    assert (low, high) == (pytest.approx(0.1 - 0.0186, abs=0.004), pytest.approx(0.1 + 0.0186, abs=0.004))


def test_a_classifier_has_a_confusion_matrix(make_run):
    run = make_run()
    (run / "speaker").mkdir()
    rows = [{"label": a, "prediction": b} for a, b in ("aa", "ab", "bb", "bb")]
    (run / "speaker" / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "speaker" / "metrics.json").write_text('{"accuracy": 0.75, "num_utterances": 4}')
    [test] = [one for one in evaluations.find(run) if one.name == "speaker"]
    assert test.counts.tolist() == [[1, 1], [0, 2]]
    assert charts.matrix(test.labels, test.counts).startswith("<svg")


def test_drawings_of_probes_and_maps_are_shown_too(make_run):
    run = make_run()
    vectors = ("vectors/mean", "embeddings.jsonl", "map.svg")
    for folder, name, drawing in (("probe", "probe.json", "probe.svg"), vectors):
        (run / folder).mkdir(parents=True)
        (run / folder / name).write_text("{}")
        (run / folder / drawing).write_text("<svg/>")
    found = {test.name: list(test.drawings) for test in evaluations.find(run)}
    assert found == {"probe": ["probe"], "test": [], "vectors/mean": ["map"]}
    render(f"run_dir={run}")
    assert (run / "report.html").read_text(encoding="utf-8").count("data:image/svg+xml;base64,") == 2


def test_the_page_has_the_story_and_nothing_from_outside(make_run, capsys):
    run = make_run()
    render(f"run_dir={run}")
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    html = (run / "report.html").read_text(encoding="utf-8")
    html = re.sub(r"data:[a-z/+]+;base64,[^\"]+", "data:", html)
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+", html)) - {"http://www.w3.org"}  # SVG's name spaces
    assert addresses == set()
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    for part in (
        "30.0 %",
        "codebook_collapse",
        "objective.diversity_weight=0.2",
        "speechssl pretrain model=tiny",
        "torch 2.11",
    ):
        assert part in html
    assert "&lt;b&gt;.jsonl" in html
    assert "<b>.jsonl" not in html
    assert "healthy runs" in html


def test_several_runs_are_side_by_side(make_run, tmp_path):
    first, second = make_run("one"), make_run("two")
    render(f"run_dir=[{first},{second}]", f"out={tmp_path / 'both.html'}")
    html = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Side by side" in html
    assert re.search(r"test: WER</th><td>30\.0 % .*?</td><td>30\.0 %", html)


def test_mistakes_of_the_user_are_one_sentence(tmp_path, capsys):
    assert cli.main(["report", f"run_dir={tmp_path / 'gone'}"]) == 2
    assert "there is no run at" in capsys.readouterr().err
    assert cli.main(["report", "run_dir=[]"]) == 2


PROBE = """
<script>addEventListener("load", () => setTimeout(() => {
  const bad = [...document.querySelectorAll("figure svg")].filter(x => x.getBoundingClientRect().height < 50).length;
  const audio = [...document.querySelectorAll("audio")].filter(x => x.readyState >= 1 && x.duration > 0.9).length;
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.getElementById("theme").click();
  const dark = getComputedStyle(document.body).backgroundColor;
  document.title = JSON.stringify({errors: window.errors, bad, audio, wide, dark,
    charts: document.querySelectorAll("figure svg").length});
}, 300));</script>"""


@pytest.mark.skipif(not BROWSER, reason="no chromium here")
@pytest.mark.parametrize("size", ["390,844", "1280,900"])
def test_a_browser_opens_it_without_errors(make_run, tmp_path, size):
    run = make_run()
    render(f"run_dir={run}")
    html = (run / "report.html").read_text(encoding="utf-8")
    watch = '<script>window.errors = []; addEventListener("error", e => errors.push(e.message), true);</script>'
    (run / "watched.html").write_text(html.replace("<head>", f"<head>{watch}").replace("</body>", f"{PROBE}</body>"))
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={size}", "--virtual-time-budget=8000")
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", f"file://{run / 'watched.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert seen["errors"] == []
    assert (seen["bad"], seen["audio"], seen["wide"]) == (0, 3, False)
    assert seen["charts"] >= 6
    assert seen["dark"] == "rgb(20, 23, 26)"
    assert page.GROUPS.keys() >= {"Codebook"}
