"""Voices whose embeddings are set by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speechssl.enrolment import Voices, enrol, fingerprint, read_calibration
from speechssl.errors import UserError
from speechssl.evaluation.cohort import Cohort, likeness
from speechssl.evaluation.verification import Calibration, calibrate

ONES = Calibration(scale=20.0, offset=-10.0, p_target=0.5, num_trials=2, num_target_trials=1)  # threshold 0.5


def test_the_nearest_voice_or_unknown(voice_model):
    embeddings = np.array([[2.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 3.0, 1.0]])
    voices = enrol(embeddings, ["ann", "bob", "bob"], model=voice_model, p_target=0.5, calibration=ONES)
    assert (voices.names, voices.num_clips) == (["ann", "bob"], [1, 2])
    # bob is the mean of two directions, not of two vectors.
    expected = np.array([0, 1, 0]) + np.array([0, 3, 1]) / 10**0.5
    np.testing.assert_allclose(voices.centroids[1], expected / np.linalg.norm(expected), rtol=1e-6)
    match = voices.match(np.array([5.0, 1.0, 0.0]))
    assert match.name == "ann" and match.score == pytest.approx(5 / 26**0.5)
    assert match.probability == pytest.approx(1 / (1 + np.exp(-(20 * match.score - 10))))
    stranger = voices.match(np.array([0.3, 0.0, 1.0]))
    assert stranger.name == "unknown" and stranger.probability < 0.5


def test_what_likeness_is_enough_comes_from_the_clips_themselves(voice_model):
    rng = np.random.default_rng(0)
    speakers = [name for name in ("ann", "bob", "cid", "dot") for _ in range(5)]
    embeddings = np.repeat(np.eye(4), 5, axis=0) + rng.normal(0, 0.1, (20, 4))
    voices = enrol(embeddings, speakers, model=voice_model, p_target=0.5, calibration=None)
    calibration = voices.calibration
    # Each clip against its own voice without it and against the nearest of the three others.
    assert (calibration.num_trials, calibration.num_target_trials) == (40, 20)
    assert 0.2 < calibration.threshold < 0.9
    assert voices.match(np.array([0.0, 1.0, 0.0, 0.0])).name == "bob"
    assert voices.match(np.array([-1.0, -1.0, -1.0, 1e-3])).name == "unknown"
    for few in (["ann"] * 20, [str(i) for i in range(20)]):
        with pytest.raises(UserError, match="calibration="):
            enrol(embeddings, few, model=voice_model, p_target=0.5, calibration=None)


def test_a_folder_of_voices_belongs_to_its_model(voice_model, tmp_path):
    embeddings = np.array([[2.0, 0.0], [0.0, 1.0]])
    voices = enrol(embeddings, ["ann", "bob"], model=voice_model, p_target=0.5, calibration=ONES)
    voices.save(tmp_path / "v")
    again = Voices.load(tmp_path / "v", voice_model)
    assert again.names == voices.names and again.calibration == voices.calibration
    np.testing.assert_array_equal(again.centroids, voices.centroids)
    save_file({"centroids": torch.zeros(3, 2)}, tmp_path / "v" / "voices.safetensors")
    with pytest.raises(UserError, match="does not hold the voices"):
        Voices.load(tmp_path / "v", voice_model)
    voice_model.objective.linear.bias.data += 1
    with pytest.raises(UserError, match="another checkpoint"):
        Voices.load(tmp_path / "v", voice_model)
    with pytest.raises(UserError, match="give the out= of `speechssl enrol`"):
        Voices.load(tmp_path / "gone", voice_model)
    for damaged in ({"format": "x"}, {"format": "speechssl voices", "names": ["ann"]}):
        (tmp_path / "v" / "voices.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="no voices"):
            Voices.load(tmp_path / "v", voice_model)


def test_strangers_stay_unknown_among_many_voices(voice_model):
    """Of sixty voices one is always rather near: a threshold for any one of them would name many a stranger."""
    rng = np.random.default_rng(0)
    voices, strangers = rng.normal(size=(2, 60, 12))
    clips = np.repeat(voices, 4, axis=0) + rng.normal(0, 0.5, (240, 12))
    found = enrol(clips, [str(i // 4) for i in range(240)], model=voice_model, p_target=0.5, calibration=None)
    named = sum(found.match(x).name != "unknown" for x in strangers)
    known = sum(found.match(x + rng.normal(0, 0.5, 12)).name == str(i) for i, x in enumerate(voices))
    # With all pairs of a clip and another's voice as the strangers of the calibration, 44 of 60 were named.
    assert named <= 9 and known >= 48


def test_with_a_cohort_scores_are_those_of_as_norm(voice_model, tmp_path):
    """What the calibration is fitted to, clip by clip, and a match."""
    rng = np.random.default_rng(0)
    embeddings = np.repeat(np.eye(3, 6), (3, 2, 1), axis=0) + rng.normal(0, 0.2, (6, 6))
    speakers, cohort = list("aaabbc"), Cohort.of(rng.normal(size=(20, 6)), top=5)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    voices = {name: unit[[i for i, who in enumerate(speakers) if who == name]].sum(0) for name in "abc"}

    def score(x, y):
        return likeness(x, y[None], cohort)[0]

    strangers = [
        max(score(x, v) for name, v in voices.items() if name != who) for x, who in zip(unit, speakers, strict=True)
    ]
    own = [score(x, voices[who] - x) for x, who in zip(unit, speakers, strict=True) if who != "c"]
    expected = calibrate(np.array(strangers + own), np.arange(11) >= 6, p_target=0.5)
    found = enrol(embeddings, speakers, model=voice_model, p_target=0.5, calibration=None, cohort=cohort)
    assert found.calibration.cohort_top == 5
    assert (found.calibration.scale, found.calibration.offset) == pytest.approx((expected.scale, expected.offset))
    match = found.match(embeddings[0])
    assert (match.name, match.score) == ("a", pytest.approx(score(unit[0], voices["a"])))
    found.save(tmp_path / "v")
    assert Voices.load(tmp_path / "v", voice_model).match(embeddings[0]).score == pytest.approx(match.score, rel=1e-5)


def test_a_given_calibration_keeps_its_likelihood_ratio_at_the_prior_of_use(voice_model):
    rare = enrol(np.eye(2), ["ann", "bob"], model=voice_model, p_target=0.01, calibration=ONES).calibration
    assert (rare.scale, rare.offset, rare.p_target) == (20.0, -10.0, 0.01)
    with pytest.raises(UserError, match="'unknown'"):
        enrol(np.eye(2), ["ann", "unknown"], model=voice_model, p_target=0.5, calibration=ONES)


def test_a_calibration_belongs_to_its_model(voice_model, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(replace(ONES, fingerprint=fingerprint(voice_model)).to_dict()))
    assert read_calibration(path, voice_model)[0].scale == 20.0
    voice_model.objective.linear.bias.data += 1
    with pytest.raises(UserError, match="another checkpoint"):
        read_calibration(path, voice_model)
