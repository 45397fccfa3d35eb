"""Verification against plain loops, scikit-learn and cases by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from speechssl.errors import UserError
from speechssl.evaluation import speaker, verification
from speechssl.evaluation.verification import Calibration, calibrate, draw_trials, figures, read_trials, trial_names


def test_calibration_is_logistic_regression():
    """Equal weights of both kinds at a prior of a half; scikit-learn's penalty all but taken away."""
    rng = np.random.default_rng(1)
    is_target = rng.random(3000) < 0.3
    scores = rng.normal(size=3000) + 1.5 * is_target
    ours = calibrate(scores, is_target, p_target=0.5)
    theirs = LogisticRegression(C=1e9, class_weight="balanced").fit(scores[:, None], is_target)
    # Ours has a pull of 1e-4 on the scale, which moves it by far less than a percent.
    assert ours.scale == pytest.approx(theirs.coef_[0, 0], rel=0.01)
    assert ours.probability(0.4) == pytest.approx(theirs.predict_proba([[0.4]])[0, 1], abs=0.005)
    assert ours.probability(ours.threshold) == pytest.approx(0.5)
    # For these Gaussians the log likelihood ratio is 1.5 s - 1.125, whatever the prior.
    rare = calibrate(scores, is_target, p_target=0.01)
    assert rare.scale * 1.0 + rare.offset == pytest.approx(1.5 - 1.125, abs=0.25)
    assert rare.probability(1.0) < ours.probability(1.0) and rare.threshold > ours.threshold


def test_calibration_where_a_threshold_divides_without_error():
    found = calibrate(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False]), p_target=0.5)
    assert np.isfinite([found.scale, found.offset]).all() and 0.2 < found.threshold < 0.8
    assert found.probability(0.85) > 0.9 and found.probability(0.15) < 0.1
    assert Calibration.from_dict(found.to_dict(), "x") == found
    for wrong in ({}, {**found.to_dict(), "scale": -1.0}, {**found.to_dict(), "p_target": 1.0}):
        with pytest.raises(UserError, match="no calibration"):
            Calibration.from_dict(wrong, "x")


def test_a_threshold_above_a_cosine_of_one_is_said():
    """Likelihood ratio 2 s - 0.5: even odds at 0.25, 19 to 1 against at 0.25 + log(19) / 2 = 1.72."""
    weak = Calibration(scale=2.0, offset=-0.5, p_target=0.05, num_trials=9, num_target_trials=3)
    assert "p_target=0.05" in weak.doubt and "1.72" in weak.doubt
    assert replace(weak, p_target=0.5).doubt is None and replace(weak, cohort_top=300).doubt is None


def test_intervals_hold_the_figure_and_narrow_with_speakers():
    widths = []
    for num_speakers in (10, 80):
        rng = np.random.default_rng(2)
        labels = np.repeat(np.arange(num_speakers), 4)
        embeddings = rng.normal(size=(num_speakers, 8))[labels] + rng.normal(0, 0.9, (len(labels), 8))
        first, second, is_target = draw_trials(labels)
        scores = speaker.cosine_scores(embeddings, first, second)
        found = figures(scores, is_target, np.stack([labels[first], labels[second]]), p_target=0.05)
        assert found["eer"] == speaker.eer(scores, is_target)
        for name in ("eer", "min_dcf"):
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high
        widths.append(found["eer_interval"][1] - found["eer_interval"][0])
    assert widths[1] < widths[0]


def test_weights_count_as_repeats():
    rng = np.random.default_rng(3)
    scores, is_target, times = rng.integers(5, size=40), rng.random(40) < 0.4, rng.integers(3, size=40)
    repeated = np.repeat(scores, times), np.repeat(is_target, times)
    assert speaker.eer(scores, is_target, weights=times) == pytest.approx(speaker.eer(*repeated))
    assert speaker.min_dcf(scores, is_target, weights=times) == pytest.approx(speaker.min_dcf(*repeated))


def test_one_kind_of_pair_gives_no_figure(caplog):
    _, _, is_target = draw_trials(np.array(["a", "b", "c"]))
    found = figures(np.zeros(3), is_target, np.zeros((2, 3)), p_target=0.05)
    assert found["eer"] is None and found["num_target_trials"] == 0
    assert "two clips of data.test" in caplog.text


def test_a_draw_is_near_all_pairs():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 8
    embeddings = np.eye(8)[labels] + rng.normal(0, 0.5, (400, 8))
    found = []
    for most in (10**6, 20_000):
        first, second, is_target = draw_trials(labels, max_trials=most)
        found.append(speaker.eer(speaker.cosine_scores(embeddings, first, second), is_target))
    assert found[1] == pytest.approx(found[0], abs=0.02)


def test_a_clip_is_called_by_its_id_or_an_end_of_its_path_that_is_its_alone(tmp_path):
    paths = [tmp_path / "id1" / "v" / "1.wav", tmp_path / "id2" / "v" / "1.wav"]
    names = trial_names(["one", "two"], paths)
    assert names["one"] == 0 and names["id2/v/1.wav"] == 1 and names[str(paths[0])] == 0
    assert "1.wav" not in names and "v/1.wav" not in names


def test_a_trial_of_a_clip_with_itself_is_said(tmp_path, caplog):
    (tmp_path / "trials.txt").write_text("1 one one\n1 one two\n0 two three\n")
    read_trials(tmp_path / "trials.txt", {"one": 0, "two": 1, "three": 2})
    assert "1 trials are of a clip with itself" in caplog.text


def test_the_det_chart_is_an_svg(tmp_path):
    rng = np.random.default_rng(0)
    is_target = rng.random(500) < 0.3
    verification.det_chart(tmp_path / "det.svg", rng.normal(size=500) + is_target, is_target)
    text = (tmp_path / "det.svg").read_text()
    assert text.startswith("<svg") and "polyline" in text and "20 %" in text
    verification.det_chart(tmp_path / "det.svg", is_target.astype(float), is_target)  # no error at all: an empty chart


@pytest.mark.parametrize("counts", [(700, 1), (500, 500)])
def test_intervals_of_more_trials_than_are_resampled(counts, monkeypatch):
    """Hardly any trial by two speakers, and as many of either kind."""
    monkeypatch.setattr(verification, "MAX_RESAMPLED", 20_000)
    labels = np.repeat(["ann", "bob"], counts)
    first, second, is_target = draw_trials(labels)
    scores = np.random.default_rng(0).normal(size=len(first)) + 2 * is_target
    found = figures(scores, is_target, np.stack([labels[first], labels[second]]), p_target=0.5)
    # Equal errors of two Gaussians two deviations apart: 15.9 %.
    assert found["eer"] == pytest.approx(0.159, abs=0.02)
    low, high = found["eer_interval"]
    assert low <= 0.165 and high >= 0.153 and high - low < 0.05
