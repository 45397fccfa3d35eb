"""The report: one file, complete, nothing from outside; opened in a real browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from itertools import product

import numpy as np
import pytest
import soundfile

from speechssl import cli, manifest
from speechssl.corpora import shards
from speechssl.evaluation import wer
from speechssl.evaluation.normalisation import CHOICES, Normalisation
from speechssl.evaluation.testset import names
from speechssl.manifest import Manifest
from speechssl.reporting import charts, evaluations, listening, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

REFERENCES = ["the cat sat", "a dog ran home", "the cat sat"]
HYPOTHESES = ["the cut sat", "a dog ran home", "the cut sat down"]


def write_test(folder, rows, normalisation=None):
    """What `evaluate` writes about a recogniser's hypotheses; returns its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder / "hypotheses.jsonl", rows)
    texts = ([row[key] for row in rows] for key in ("reference", "hypothesis"))
    metrics = wer.error_rates(*texts, normalisation=normalisation)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


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
                    "duration": 1.0,
                    "reference": reference,
                    "hypothesis": hypothesis,
                }
            )
        write_test(run / "test", lines)
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


NORMALISATIONS = [Normalisation(*chosen) for chosen in product((False, True), CHOICES, CHOICES)]


@pytest.mark.parametrize("normalisation", NORMALISATIONS, ids=str)
def test_rates_and_alignments_are_those_of_evaluate(tmp_path, normalisation):
    """Each choice changes the count: letter case, an accent and a comma that count as errors if they are kept."""
    rows = [
        {"id": "1", "reference": "The café, closed", "hypothesis": "the cafe closed"},
        {"id": "2", "reference": "a b", "hypothesis": "a c"},
    ]
    metrics = write_test(tmp_path / "test", rows, normalisation)
    [test] = evaluations.find(tmp_path)
    assert test.intervals["WER"] == (metrics["wer"], *metrics["wer_interval"])
    assert test.intervals["CER"] == (metrics["cer"], *metrics["cer_interval"])
    counts = [count for _, _, count in test.confusions["words"]]
    assert counts == [count for _, _, count in metrics["confusions"]]
    edits = metrics["substitutions"] + metrics["deletions"] + metrics["insertions"]
    assert sum(clip.edits for clip in test.clips) == edits
    assert sum(clip.num_words for clip in test.clips) == metrics["num_words"]


def test_rates_are_taken_from_the_file_and_counted_only_where_it_lacks_them(tmp_path):
    rows = [{"id": str(i), "reference": "A b", "hypothesis": "a c"} for i in range(2)]
    metrics = write_test(tmp_path / "test", rows, Normalisation(lowercase=True))
    path = tmp_path / "test" / "metrics.json"
    path.write_text(json.dumps(metrics | {"wer": 0.125, "confusions": [["x", "", 7]]}))
    [test] = evaluations.find(tmp_path)
    assert test.intervals["WER"][0] == 0.125 and test.confusions["words"] == [("x", "–", 7)]
    path.write_text(json.dumps({key: metrics[key] for key in ("wer", "cer", "num_utterances", "normalisation")}))
    [test] = evaluations.find(tmp_path)
    assert test.intervals["WER"] == (0.5, 0.5, 0.5) and test.confusions["words"] == [("b", "c", 2)]


def test_one_clip_has_a_rate_without_an_interval(make_run):
    run = make_run()
    write_test(run / "test", [{"id": "1", "reference": "a b", "hypothesis": "a c"}])
    render(f"run_dir={run}")
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "word error rate of 50.0 % on 1 clips" in html and "95 %" not in html


def hertz(player):
    """Of the loudest tone of a player's audio, and its seconds."""
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(player.split(",")[1])))
    return round(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples), -1), len(samples) / rate


@pytest.fixture
def tones(tmp_path):
    """Rows of a manifest: three seconds of one stereo file, each with tones of its own in both channels."""
    time = np.arange(16_000) / 16_000
    channels = [np.concatenate([np.sin(2 * np.pi * f * time) for f in tones]) for tones in TONES]
    soundfile.write(tmp_path / "long.wav", 0.3 * np.stack(channels, axis=1), 16_000)
    path = str(tmp_path / "long.wav")
    return [
        {"audio_filepath": path, "offset": float(i), "duration": 1.0, "channel": 1, "text": "a", "id": str(i)}
        for i in range(3)
    ]


TONES = ((300, 500, 700), (400, 600, 800))


def pack(folder, rows):
    """The manifest of the same clips as one tar shard."""
    [shard] = shards.plan(folder, "packed", rows, shard_bytes=10**9)
    manifest.write(folder / "packed.jsonl", shards.pack(shard).rows)
    return folder / "packed.jsonl"


def test_players_have_the_clip_and_not_the_file(tones, tmp_path):
    manifest.write(tmp_path / "parts.jsonl", tones)
    for path in (tmp_path / "parts.jsonl", pack(tmp_path, tones)):
        clips = Manifest(path)
        write_test(tmp_path / "run" / "test", [{**names(u), "reference": "a", "hypothesis": "a"} for u in clips])
        [test] = evaluations.find(tmp_path / "run")
        heard = {clip.name: hertz(clip.audio) for clip in test.clips}
        assert heard == {str(i): (tone, 1.0) for i, tone in enumerate(TONES[1])}


def test_a_clip_that_cannot_be_read_has_no_player(tones, tmp_path, caplog):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    kept, *rows = [{**row, "reference": "a", "hypothesis": "a"} for row in tones]
    rows[0]["audio_filepath"] = str(tmp_path / "gone.wav")
    rows[1] |= {"audio_filepath": str(tmp_path / "broken.wav"), "bytes": [2, 4]}
    unknown = {key: value for key, value in kept.items() if key not in ("offset", "duration")} | {"id": "unknown"}
    write_test(tmp_path / "run" / "test", [kept, *rows, unknown])
    [test] = evaluations.find(tmp_path / "run")
    assert [clip.name for clip in test.clips if clip.audio] == ["0"]
    assert "gone.wav" in caplog.text and "broken.wav" in caplog.text


def test_what_the_model_hears_is_the_clip_too(tones, ctc_run, tmp_path):
    """The same pictures of parts of a file, of shards, and of a file for each clip."""
    manifest.write(tmp_path / "parts.jsonl", tones)
    sound, rate = soundfile.read(tmp_path / "long.wav")
    alone = []
    for i, row in enumerate(tones):
        soundfile.write(tmp_path / f"{i}.wav", sound[i * rate : (i + 1) * rate, 1], rate)
        alone.append({"audio_filepath": f"{i}.wav", "duration": 1.0, "text": "a", "id": row["id"]})
    manifest.write(tmp_path / "alone.jsonl", alone)
    paths = [str(path) for path in (tmp_path / "parts.jsonl", pack(tmp_path, tones), tmp_path / "alone.jsonl")]
    parts, packed, files = (listening.listen(ctc_run, {"data.train": path}, count=3) for path in paths)
    assert len(files) == 3 and len({view.drawing for view in files}) == 3
    assert parts == packed == files
    both = listening.listen(ctc_run, {"data.train": paths[::2], "data.valid": None}, count=6)
    assert both == [*parts, *files]


def test_a_classifier_has_a_confusion_matrix(make_run):
    run = make_run()
    (run / "speaker").mkdir()
    rows = [{"label": a, "prediction": b} for a, b in ("aa", "ab", "bb", "bb")]
    (run / "speaker" / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "speaker" / "metrics.json").write_text('{"accuracy": 0.75, "num_utterances": 4}')
    [test] = [one for one in evaluations.find(run) if one.name == "speaker"]
    assert test.counts.tolist() == [[1, 1], [0, 2]]
    assert charts.matrix(test.labels, test.counts).startswith("<svg")


def test_verification_is_shown_with_what_it_was_measured_on(make_run):
    """And the WER of each speaker, the worst first."""
    run = make_run()
    (run / "veri").mkdir()
    figures = {"eer": 0.026, "eer_interval": [0.002, 0.035], "min_dcf": 0.1225, "min_dcf_interval": [0.02, 0.21]}
    counts = {"p_target": 0.05, "num_trials": 3003, "num_target_trials": 39, "score": "AS-norm"}
    rates = {"speaker_attributed_wer": 0.4, "wer_by_speaker": {"ann": 0.25, "bob": 0.5}}
    (run / "veri" / "metrics.json").write_text(json.dumps({**figures, **counts, **rates, "num_utterances": 78}))
    [test] = [one for one in evaluations.find(run) if one.name == "veri"]
    assert test.tables == {"WER by speaker": (["speaker", "WER, %"], [["bob", "50.0"], ["ann", "25.0"]])}
    render(f"run_dir={run}")
    html = (run / "report.html").read_text(encoding="utf-8")
    for part in (
        "<strong>2.6 %</strong>",
        "0.2 % to 3.5 %",
        "0.122 (0.020 to 0.210) where 5 % of pairs are by one speaker",
        "3,003, 39 by one speaker",
        "AS-norm",
        "<dt>Speaker-attributed WER</dt><dd><strong>40.0 %</strong>",
    ):
        assert part in html, part


def test_a_probe_is_shown_layer_by_layer(make_run):
    run = make_run()
    (run / "probe").mkdir()
    row = {"source": "encoder", "layer": "0", "lr": 0.01, "test": 0.813, "interval": [0.765, 0.857]}
    row |= {"eer": 0.021, "min_dcf": 0.109}
    weighted = {**row, "layer": "weighted", "eer": None, "min_dcf": None}
    (run / "probe" / "probe.json").write_text(json.dumps({"metric": "accuracy", "results": [row, weighted]}))
    [test] = [one for one in evaluations.find(run) if one.name == "probe"]
    head, rows = test.tables["What each layer knows"]
    assert head == ["source", "layer", "accuracy, %", "95 %", "rate", "EER, %", "minDCF"]
    assert rows[0] == ["encoder", "0", "81.3", "76.5–85.7", "0.01", "2.1", "0.109"] and rows[1][5:] == ["–", "–"]


def test_drawings_of_probes_and_maps_are_shown_too(make_run):
    run = make_run()
    vectors = ("vectors/mean", "embeddings.jsonl", "map.svg")
    for folder, name, drawing in (("probe", "probe.json", "probe.svg"), vectors):
        (run / folder).mkdir(parents=True)
        (run / folder / name).write_text('{"metric": "accuracy", "results": []}')
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


def test_every_run_has_a_line_of_its_own():
    lines = [charts.Line(str(i), [0, 1], [i, i + 1]) for i in range(2 * len(charts.LINES) + 1)]
    drawing = charts.curves(lines)
    styles = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="fill: none;([^"]*var\(--line-[^"]*)"', drawing)
    assert len(styles) == len(set(styles)) == len(lines)
    keys = [charts.key(i) for i in range(len(lines))]
    assert len(set(keys)) == len(lines)
    for style, key in zip(styles, keys, strict=True):
        assert re.search(r"var\(--line-\d\)", style)[0] in key
        assert ("stroke-dasharray:" in style) == ('stroke-dasharray="none"' not in key)


def test_labels_may_hold_any_character():
    name = r"C:\1\g<0> $\x$"
    assert f'aria-label="{name.replace("<", "&lt;")}"' in charts.curves([charts.Line(name, [0, 1], [0, 1])], label=name)
    assert name.replace("<", "&lt;").replace(">", "&gt;") in charts.matrix([name, "b"], np.eye(2, dtype=int))
    charts.spectrogram(np.ones((4, 5)), hop_s=0.01, symbols=[(0.02, r"$\x$")], label=name)


def test_the_page_of_another_toolkits_log_claims_no_command(tmp_path):
    history = [{"step": step, "loss": 3 - step / 100, "learning_rate": 1e-4} for step in range(0, 200, 10)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 200}))
    render(f"run_dir={tmp_path}")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    origin = html[html.index('<section id="origin"') :]
    assert "trainer_state.json, does not say by which command" in origin
    assert "<pre>" not in origin and "speechssl finetune" not in html


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
