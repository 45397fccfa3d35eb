"""Span masks and distractors, as pure functions of a length and a generator."""

from __future__ import annotations

from math import comb

import pytest
import torch

from speechssl.models.masking import sample_distractors, span_mask

PAPER = {"start_probability": 0.065, "span": 10, "min_spans": 2}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spans(mask):
    """Lengths of the runs of hidden frames."""
    return [len(run) for run in "".join("x" if hidden else " " for hidden in mask.tolist()).split()]


def expected_share(num_frames, *, start_probability, span, min_spans):
    """Share of hidden frames by counting: a frame stays visible if none of the starts that would cover it is drawn."""
    places = num_frames - span + 1
    wanted = start_probability * num_frames
    share = 0.0
    for num_spans, probability in ((int(wanted), 1 - wanted % 1), (int(wanted) + 1, wanted % 1)):
        num_spans = max(num_spans, min_spans)
        for frame in range(num_frames):
            covering = min(frame, places - 1) - max(frame - span + 1, 0) + 1
            visible = comb(places - covering, num_spans) / comb(places, num_spans)
            share += probability * (1 - visible) / num_frames
    return share


@pytest.mark.parametrize("num_frames", [49, 100, 499, 750])
def test_the_share_of_hidden_frames_is_what_counting_says(num_frames):
    shares = torch.tensor([span_mask(num_frames, generator=generator(i), **PAPER).float().mean() for i in range(600)])
    error = 4 * shares.std() / 600**0.5
    assert shares.mean() == pytest.approx(expected_share(num_frames, **PAPER), abs=error.item())


def test_about_half_of_a_long_clip_is_hidden():
    """The paper: p = 0.065 and spans of 10 hide 49 % of the frames of a clip of 15 s."""
    assert expected_share(749, **PAPER) == pytest.approx(0.49, abs=0.01)


def test_spans_are_whole_and_lie_within_the_clip():
    for seed in range(50):
        for num_frames in (10, 11, 23, 150):
            mask = span_mask(num_frames, generator=generator(seed), **PAPER)
            assert mask.shape == (num_frames,)
            assert mask.dtype == torch.bool
            assert min(spans(mask)) >= 10  # overlaps make runs longer, the clip's end never makes one shorter


def test_every_frame_can_be_hidden():
    hidden = sum(span_mask(40, generator=generator(seed), **PAPER).long() for seed in range(300))
    assert hidden.min() > 0


def test_a_clip_shorter_than_a_span_is_not_masked():
    for num_frames in range(10):
        assert not span_mask(num_frames, generator=generator(), **PAPER).any()
    assert span_mask(10, generator=generator(), **PAPER).all()


def test_min_spans_holds_where_there_is_room():
    one = {"start_probability": 0.0, "span": 5, "min_spans": 1}
    assert all(int(span_mask(60, generator=generator(seed), **one).sum()) == 5 for seed in range(20))
    none = one | {"min_spans": 0}
    assert not any(span_mask(60, generator=generator(seed), **none).any() for seed in range(20))
    four = one | {"min_spans": 4}
    counts = [int(span_mask(200, generator=generator(seed), **four).sum()) for seed in range(20)]
    assert max(counts) == 20
    assert min(counts) > 5


def test_a_mask_is_a_function_of_its_generator():
    assert torch.equal(*(span_mask(200, generator=generator(3), **PAPER) for _ in range(2)))
    assert not torch.equal(*(span_mask(200, generator=generator(seed), **PAPER) for seed in (3, 4)))


@pytest.mark.parametrize(("num_masked", "num_distractors"), [(2, 100), (3, 1), (150, 100)])
def test_distractors_are_others_of_the_same_clip(num_masked, num_distractors):
    drawn = sample_distractors([num_masked], num_distractors, generators=[generator()])
    assert drawn.shape == (num_masked, num_distractors)
    assert not (drawn == torch.arange(num_masked)[:, None]).any()
    assert 0 <= drawn.min() <= drawn.max() < num_masked


def test_distractors_are_uniform():
    num_masked, num_distractors = 20, 3000
    drawn = sample_distractors([num_masked], num_distractors, generators=[generator()])
    expected = num_distractors / (num_masked - 1)
    for frame, row in enumerate(drawn):
        counts = torch.bincount(row, minlength=num_masked).float()
        others = torch.cat([counts[:frame], counts[frame + 1 :]])
        chi_square = ((others - expected) ** 2 / expected).sum()
        assert chi_square < 42.3  # 18 degrees of freedom, p = 0.001
