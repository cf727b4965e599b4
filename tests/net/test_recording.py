"""What a viewer was told before its session has a position is told again by another node, or the session ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.net.recording import Recording, ReplayDiverged


class RecordingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.recording = Recording(limit=10)

    def test_everything_goes_on_and_is_kept(self) -> None:
        self.assertEqual((b"hello", b"welcome"), (self.recording.heard(b"hello"), self.recording.said(b"welcome")))
        self.assertEqual((b"hello", b"welcome"), (self.recording.from_viewer, self.recording.to_viewer))
        self.assertFalse(self.recording.is_over)

    def test_replay_bytes(self) -> None:
        """One who says more, in either direction, is no longer kept; the bytes go on all the same."""
        for direction in ("heard", "said"):
            recording = Recording(limit=10)
            speak = getattr(recording, direction)
            speak(b"0123456789")
            self.assertTrue(recording.is_whole)
            self.assertEqual(b"a", speak(b"a"))
            self.assertEqual((False, True), (recording.is_whole, recording.is_over))
            self.assertEqual(b"", recording.from_viewer + recording.to_viewer)

    def test_what_the_viewer_has_is_not_sent_again(self) -> None:
        """What the first node said, but the viewer has not had, is."""
        self.recording.said(b"abcdef")
        self.recording.repeat(4)
        self.assertTrue(self.recording.is_repeating)
        self.assertEqual([b"", b"", b"eXY"], [self.recording.said(data) for data in (b"abc", b"d", b"eXY")])
        self.assertEqual((b"abcdeXY", False), (bytes(self.recording.to_viewer), self.recording.is_repeating))

    def test_viewer_that_has_nothing_yet_has_nothing_to_compare(self) -> None:
        self.recording.said(b"on its way")
        self.recording.repeat(0)
        self.assertFalse(self.recording.is_repeating)
        self.assertEqual(b"other", self.recording.said(b"other"))

    def test_other_bytes_are_refused(self) -> None:
        for data in (b"abX", b"X", b"abcdX"):
            self.setUp()
            self.recording.said(b"abcde")
            self.recording.repeat(5)
            self.assertRaises(ReplayDiverged, self.recording.said, data)

    def test_end_while_repeating_waits_for_the_comparison(self) -> None:
        """The session's position is known before the bytes are here: until they are, nothing is believed."""
        self.recording.said(b"abc")
        self.recording.repeat(3)
        self.recording.end()
        self.assertEqual((True, False), (self.recording.is_repeating, self.recording.is_over))
        self.assertRaises(ReplayDiverged, self.recording.said, b"abX")
        self.assertEqual(b"d", self.recording.said(b"abcd"))
        self.assertTrue(self.recording.is_over)


@given(st.binary(max_size=60), st.lists(st.integers(1, 9), max_size=30), st.data())
def test_viewer_never_sees_that_its_node_died(conversation: bytes, cuts: list[int], data: st.DataObject) -> None:
    """Deaths at any byte, any fragments, more said than delivered: what the viewer gets is the conversation."""
    recording = Recording(limit=100)
    delivered = b""
    for _ in range(data.draw(st.integers(0, 3))):
        at = 0
        for cut in cuts:
            delivered += recording.said(conversation[at : at + cut])
            at += cut
        delivered = delivered[: len(delivered) - data.draw(st.integers(0, 5))]  # the rest was in a pipe
        recording.repeat(len(delivered))
    delivered += recording.said(conversation)
    assert delivered == conversation
