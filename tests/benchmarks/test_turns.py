"""Figures from seconds, by hand; the processes themselves are tested with the command."""

from __future__ import annotations

import pytest

from speechssl.benchmarks import turns


def test_the_spread_is_the_middle_half():
    assert turns.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == 2.0  # from 2 to 4
    assert turns.spread([1.0]) == 0.0


def test_the_ratio_is_of_neighbours():
    ours = {"step_seconds_all": [1.0, 2.0, 1.0], "peak_memory_bytes": 100}
    peer = {"step_seconds_all": [4.0, 10.0, 6.0], "peak_memory_bytes": 400}
    ratio = turns._ratio(ours, peer)  # of 4, 5 and 6
    assert ratio == {"audio_seconds_per_second": 5.0, "spread": 1.0, "peak_memory": 0.25}


def test_speed_and_share_of_the_peak():
    result = turns._result([2.0, 4.0, 3.0], {"flops": 600}, audio_seconds=30.0, peak=1000.0)
    assert result["audio_seconds_per_second"] == 10.0
    assert result["step_seconds"] == 3.0
    assert result["mfu"] == pytest.approx(0.2)  # 200 a second of 1000
