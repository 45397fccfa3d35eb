"""Parts of a recording put together."""

from __future__ import annotations

from speechssl.decoding import transcript
from speechssl.decoding.transcript import Alternative, Character, Transcript, join


def test_that_a_cut_recording_has_no_alternatives_is_said_once(caplog):
    transcript._say_there_are_no_alternatives.cache_clear()
    one = (Character("a", 0, 1, 1.0),)
    sure = Transcript(one, 2, 1, alternatives=(Alternative("a", 0.0),))
    unsure = Transcript(one, 2, 1, alternatives=(Alternative("a", 0.0), Alternative("b", -1.0)))
    assert join([(0, sure), (3, sure)], num_frames=5).alternatives == () and not caplog.text
    for _ in range(2):
        found = join([(0, sure), (3, unsure)], num_frames=5)
        assert (found.text, found.alternatives) == ("a a", ())
    assert caplog.text.count("no n best readings; window_s=null") == 1
