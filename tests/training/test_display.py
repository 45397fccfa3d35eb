"""The time left, on a clock of our own, and plain lines."""

from __future__ import annotations

import logging

import pytest

from speechssl.training.display import Display, TimeLeft, clock


def test_the_time_left_is_within_a_tenth_after_a_tenth():
    """A first step of 30 s, then 2 s a step and a validation of 10 s after each 5 steps: 4 s a step in all."""
    moment = [0.0]
    left = TimeLeft(max_steps=100, now=lambda: moment[0])
    assert left.seconds is None
    moment[0] = 30.0
    left.see(1)
    for step in range(2, 12):
        moment[0] += 2.0
        left.see(step)
        if step % 5 == 1:
            moment[0] += 10.0
            left.see(step)
    assert left.seconds == pytest.approx(89 * 4.0, rel=0.1)


def test_a_line_says_step_figures_and_time(caplog):
    display = Display(max_steps=10, first_step=0, title="run")
    with caplog.at_level(logging.INFO, logger="speechssl"):
        display.show({"step": 1, "loss": 2.5, "grad_norm": 1.0})
        display.show({"step": 2, "valid_loss": 2.0, "valid_cer": None})
    display.close()
    assert caplog.messages[0] == "step 1/10  loss 2.5  left -"
    assert caplog.messages[1].startswith("step 2/10  valid_loss 2  left 0:00:0")


def test_a_live_panel_shows_figures_and_the_last_validation():
    from rich.console import Console

    display = Display(max_steps=2000, first_step=0, title="first")
    display.show({"step": 1000, "loss": 2.5, "accuracy": 0.25, "energy_gap": 0.125})
    display.show({"step": 1000, "valid_loss": 2.25})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(display._panel())
    text = console.export_text()
    for part in ("first", "step 1,000 of 2,000", "loss", "2.5", "0.125", "valid_loss", "2.25"):
        assert part in text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (59.6, "0:01:00"), (3661, "1:01:01"), (90000, "25:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text
