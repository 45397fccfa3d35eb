"""AS-norm against its formula, one trial after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speechssl.errors import UserError
from speechssl.evaluation import speaker
from speechssl.evaluation.cohort import Cohort, as_norm, likeness
from speechssl.evaluation.verification import draw_trials


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_as_norm_is_the_papers_formula():
    """Each side against its own nearest three of the cohort (Matejka et al. 2017, section 2)."""
    rng = np.random.default_rng(0)
    clips, others = rng.normal(size=(8, 5)), rng.normal(size=(11, 5))
    first, second, _ = draw_trials(np.arange(8))
    expected = []
    for i, j in zip(first, second, strict=True):
        sides = []
        for k in (i, j):
            nearest = np.sort([cosine(clips[k], other) for other in others])[-3:]
            sides.append((cosine(clips[i], clips[j]) - nearest.mean()) / nearest.std())
        expected.append(sum(sides) / 2)
    cohort = Cohort.of(others, top=3)
    statistics = cohort.statistics(clips)
    cosines = speaker.cosine_scores(clips, first, second)
    found = as_norm(cosines, statistics[:, first], statistics[:, second])
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    # The first clip with all others, as `identify` asks.
    np.testing.assert_allclose(likeness(clips[0], clips[1:], cohort), expected[:7], rtol=1e-10)
    np.testing.assert_allclose(likeness(clips[0], clips[1:], None), cosines[:7], rtol=1e-10)


def test_a_cohort_of_fewer_than_top_counts_whole():
    rng = np.random.default_rng(0)
    clips, others = rng.normal(size=(8, 5)), rng.normal(size=(11, 5))
    whole, more = (Cohort.of(others, top=top).statistics(clips) for top in (11, 500))
    np.testing.assert_allclose(more, whole)
    with pytest.raises(UserError, match="two or more"):
        Cohort.of(others[:1], top=3)


def test_a_cohort_is_kept_beside_what_is_measured_by_it(tmp_path):
    cohort = Cohort.of(np.random.default_rng(0).normal(size=(11, 5)), top=3)
    cohort.save(tmp_path)
    again = Cohort.load(tmp_path)
    assert again.top == 3
    np.testing.assert_allclose(again.directions, cohort.directions, atol=1e-7)
    save_file({"top": torch.tensor(3)}, tmp_path / "cohort.safetensors")
    with pytest.raises(UserError, match="holds no cohort"):
        Cohort.load(tmp_path)
    (tmp_path / "cohort.safetensors").unlink()
    with pytest.raises(UserError, match="copy it too"):
        Cohort.load(tmp_path)
