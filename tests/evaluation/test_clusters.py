"""Groups of clips whose grouping is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from speechssl.errors import UserError
from speechssl.evaluation.clusters import cluster, map_chart


@pytest.fixture
def voices():
    """Five voices, eight clips each, of different loudness: vectors [40, 16] and whose they are."""
    rng = np.random.default_rng(0)
    whose = np.repeat(np.arange(5), 8)
    return (rng.normal(size=(5, 16))[whose] + 0.2 * rng.normal(size=(40, 16))) * rng.uniform(0.1, 9, (40, 1)), whose


@pytest.mark.parametrize("how_many", ["5", "auto"])
def test_voices_are_found(voices, how_many):
    embeddings, whose = voices
    assert adjusted_rand_score(whose, cluster(embeddings, how_many)) == 1.0


def test_fewer_groups_are_as_many_as_asked_for(voices):
    assert set(cluster(voices[0], "3").tolist()) == {0, 1, 2}


@pytest.mark.parametrize("how_many", ["1", "0", "many", "41"])
def test_what_cannot_be(voices, how_many):
    with pytest.raises(UserError, match=f"clusters={how_many}"):
        cluster(voices[0], how_many)


def test_too_few_clips_and_too_many_voices_are_said(voices, caplog):
    with pytest.raises(UserError, match="three clips"):
        cluster(voices[0][:2], "auto")
    assert adjusted_rand_score(np.arange(105) // 3, cluster(np.repeat(np.eye(35), 3, axis=0), "auto")) == 1.0
    assert not caplog.text
    cluster(np.repeat(np.eye(305), 2, axis=0), "auto")
    assert "tries 300 groups at most" in caplog.text


def test_a_map_has_every_clip(voices, tmp_path):
    for few in (40, 3):
        map_chart(tmp_path / "map.svg", voices[0][:few], [str(i) for i in voices[1][:few]])
        assert (tmp_path / "map.svg").read_text().count("<circle") == few
