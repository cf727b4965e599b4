"""Who writes a stream, and what happens when somebody else wants to.  (FAULTS rows 8 and 17.)"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from relay.log.points import LogStart
from relay.log.timeline import Timeline
from relay.net.ingest import Ingest, PublishRefused, SecondPublisher
from relay.rtmp import amf0
from relay.rtmp.messages import MediaMessage, MessageType
from relay.testing import ManualReactor, make_hub, memory_log
from tests.log.model import audio, contents, gops, video
from tests.net.driving import read_messages
from tests.wire import aac_header, avc_header, metadata

TAKEOVER, END = 3.0, 30.0
HEADERS = [metadata(), avc_header(), aac_header()]


class Encoder:
    """A connection that publishes, as the ingest sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent_away_for: list[str] = []

    def describe(self) -> str:
        return self.name

    def sent_away(self, description: str, outcome: str = "replaced") -> None:
        self.sent_away_for.append(description)


class IngestTestCase(SynchronousTestCase):
    policy = SecondPublisher.REFUSE

    def setUp(self) -> None:
        self.clock = ManualReactor()
        self.hub, self.stream = make_hub(clock=self.clock)
        self.hub.set_live(self.stream, False, "")
        self.addCleanup(self.hub.close)
        self.ingest = Ingest(
            self.stream,
            self.hub,
            Timeline(),
            policy=self.policy,
            takeover_seconds=TAKEOVER,
            end_seconds=END,
        )
        self.addCleanup(self.ingest.close)
        self.first, self.second = Encoder("first"), Encoder("second")

    def send(self, publication, messages) -> None:
        """One read's worth."""
        for message in messages:
            publication.receive(message)
        publication.flush()

    def send_in_time(self, publication, messages, step=0.04) -> None:
        """A message each 40 ms."""
        for message in messages:
            self.clock.advance(step)
            self.send(publication, [message])

    @property
    def stored(self) -> list[MediaMessage]:
        raws = read_messages(contents(self.stream.log.rtmp))
        return [MediaMessage(raw.message_type, raw.timestamp, raw.payload) for raw in raws]

    def assert_timestamps_grow(self) -> None:
        for kind in (8, 9):
            times = [message.timestamp for message in self.stored if message.message_type == kind]
            self.assertEqual(sorted(times), times)


class OnePublisherTests(IngestTestCase):
    def test_first_publisher_is_written_as_it_is(self) -> None:
        publication = self.ingest.admit(self.first)
        messages = HEADERS + gops(2)
        self.send(publication, messages)
        self.assertEqual(messages, self.stored)
        self.assertEqual((True, "first"), (self.stream.is_live, self.stream.source))

    def test_inter_frames_before_the_first_keyframe_are_dropped(self) -> None:
        """They can't be decoded; sound and headers before it are kept."""
        publication = self.ingest.admit(self.first)
        messages = [*HEADERS, video(0), audio(0), video(40), *gops(1, start=80)]
        self.send(publication, messages)
        self.assertEqual([*HEADERS, audio(0), *gops(1, start=80)], self.stored)
        self.assertEqual(2, self.ingest.messages_dropped)

    def test_cue_points_keep_their_time(self) -> None:
        """Only metadata is without a time of its own; captions and cue points belong to a moment."""
        publication = self.ingest.admit(self.first)
        cue = MediaMessage(MessageType.DATA_AMF0, 420, amf0.encode("onCuePoint", {"name": "goal"}))
        messages = [*HEADERS, *gops(1), cue]
        self.send(publication, messages)
        self.assertEqual(420, self.stored[-1].timestamp)

    def test_sound_alone_is_a_stream(self) -> None:
        publication = self.ingest.admit(self.first)
        messages = [aac_header(), *[audio(23 * index) for index in range(10)]]
        self.send(publication, messages)
        self.assertEqual(messages, self.stored)

    def test_broadcast_is_over_a_while_after_the_publisher_left(self) -> None:
        publication = self.ingest.admit(self.first)
        self.send(publication, HEADERS + gops(1))
        publication.end()
        self.assertFalse(self.stream.is_live)
        self.clock.advance(END - 0.1)
        self.assertFalse(self.stream.log.is_finished)
        self.clock.advance(0.2)
        self.assertTrue(self.stream.log.is_finished)

    def test_publisher_that_returns_goes_on_in_the_same_log(self) -> None:
        """Same epoch, fresh headers, a keyframe first, timestamps that grow by the time it was away."""
        publication = self.ingest.admit(self.first)
        self.send_in_time(publication, HEADERS + gops(2))
        last = self.stored[-1].timestamp
        before = self.stream.log.end
        publication.end()
        self.clock.advance(5)
        again = self.ingest.admit(self.second)
        self.send_in_time(again, [*HEADERS, video(0), video(40), *gops(1, start=80)])
        self.assertEqual(1, self.stream.log.epoch)
        self.assertGreater(self.stream.log.end, before)
        added = self.stored[len(HEADERS) + 20 :]
        self.assertEqual([18, 9, 8, 9], [message.message_type for message in added[:4]])
        self.assertEqual(gops(1, start=80)[0].payload, added[3].payload)
        self.assertTrue(5000 <= added[3].timestamp - last <= 5400, added[3].timestamp - last)
        self.assertEqual([40] * 9, [b.timestamp - a.timestamp for a, b in pairwise(added[3:])])
        self.assert_timestamps_grow()
        self.clock.advance(2 * END)
        self.assertFalse(self.stream.log.is_finished)

    def test_return_after_the_end_opens_the_log_again(self) -> None:
        """The broadcast was over; its readers that stayed (copies) go on."""
        publication = self.ingest.admit(self.first)
        self.send(publication, HEADERS + gops(1))
        publication.end()
        self.clock.advance(END + 1)
        again = self.ingest.admit(self.first)
        self.send(again, HEADERS + gops(1))
        self.assertEqual((1, False), (self.stream.log.epoch, self.stream.log.is_finished))
        self.assertEqual(2 * (len(HEADERS) + 10), len(self.stored))
        self.assert_timestamps_grow()

    def test_timestamps_that_jump_do_not_move_the_stream(self) -> None:
        """FAULTS row 17: backwards, +2**31, all equal, 0xFFFFFFFF."""
        publication = self.ingest.admit(self.first)
        self.send_in_time(publication, [*HEADERS, *gops(1, start=5_000)])
        wild = [0, 0, 0, 1 << 31, 7, 0xFFFFFFFF, 3]
        self.send_in_time(publication, [video(time, index == 0) for index, time in enumerate(wild)])
        self.assert_timestamps_grow()
        self.assertLess(self.stored[-1].timestamp, 7_000)

    def test_new_epoch_begins_with_the_publisher_s_headers_and_a_keyframe(self) -> None:
        """The log had to be begun anew while the encoder goes on in the middle of a GOP."""
        publication = self.ingest.admit(self.first)
        self.send(publication, HEADERS + gops(1)[:5])
        self.stream.succeed(memory_log(epoch=2, start=LogStart(time_ms=1000)))
        self.ingest.begin_log(Timeline.resume(1000, 0))
        self.send(publication, gops(1)[5:] + gops(1, start=400))
        self.assertEqual([18, 9, 8] + [9] * 10, [message.message_type for message in self.stored])
        self.assertEqual(gops(1, start=400)[0].payload, self.stored[3].payload)
        self.assertGreater(self.stored[3].timestamp, 1000)
        self.assert_timestamps_grow()

    def test_end_twice_is_harmless(self) -> None:
        publication = self.ingest.admit(self.first)
        publication.end()
        publication.end()
        self.clock.advance(END + 1)
        self.assertEqual([], self.clock.getDelayedCalls())


class RefuseTests(IngestTestCase):
    def test_second_publisher_is_refused_and_the_first_goes_on(self) -> None:
        publication = self.ingest.admit(self.first)
        self.send(publication, HEADERS + gops(1))
        for _ in range(50):
            error = self.assertRaises(PublishRefused, self.ingest.admit, self.second)
            self.assertEqual("NetStream.Publish.BadName", error.code)
        self.send(publication, gops(1, start=400))
        self.assertEqual(HEADERS + gops(2), self.stored)
        self.assertEqual([], self.first.sent_away_for)

    def test_silent_first_publisher_never_blocks(self) -> None:
        """Its TCP connection is half dead; the encoder comes back and is let in at once."""
        publication = self.ingest.admit(self.first)
        self.send(publication, HEADERS + gops(1))
        self.clock.advance(TAKEOVER - 0.1)
        self.assertRaises(PublishRefused, self.ingest.admit, self.second)
        self.clock.advance(0.2)
        again = self.ingest.admit(self.second)
        self.assertEqual(1, len(self.first.sent_away_for))
        self.send(again, HEADERS + gops(1))
        self.assertEqual(2 * (len(HEADERS) + 10), len(self.stored))

    def test_last_bytes_of_one_that_was_sent_away_are_dropped(self) -> None:
        """Two writers never mix."""
        publication = self.ingest.admit(self.first)
        self.send(publication, HEADERS + gops(1))
        self.clock.advance(TAKEOVER + 1)
        again = self.ingest.admit(self.second)
        self.send(again, HEADERS + gops(1))
        stored = self.stored
        self.send(publication, [video(400, True), audio(400), avc_header()])
        publication.end()
        self.assertEqual(stored, self.stored)
        self.assertIs(self.second, self.ingest.publisher)

    def test_publisher_that_has_sent_nothing_yet_is_silent_from_its_arrival_on(self) -> None:
        self.ingest.admit(self.first)
        self.assertRaises(PublishRefused, self.ingest.admit, self.second)
        self.clock.advance(TAKEOVER + 0.1)
        self.ingest.admit(self.second)
        self.assertIs(self.second, self.ingest.publisher)


class StandbyTests(IngestTestCase):
    policy = SecondPublisher.STANDBY

    def setUp(self) -> None:
        super().setUp()
        self.active = self.ingest.admit(self.first)
        self.send(self.active, HEADERS + gops(1))
        self.standby = self.ingest.admit(self.second)
        self.their_headers = [metadata(width=640), avc_header(config=b"\1other"), aac_header()]

    def run_both(self, seconds: float) -> None:
        """Both send a GOP of 400 ms after the other."""
        for at in range(0, int(seconds * 1000), 400):
            self.clock.advance(0.4)
            self.send(self.active, gops(1, start=400 + at))
            self.send(self.standby, gops(1, start=70_000 + at))

    def test_standby_is_kept_warm_and_not_written(self) -> None:
        self.send(self.standby, self.their_headers)
        self.run_both(2)
        self.assertEqual(HEADERS + gops(6), self.stored)

    def test_standby_is_promoted_at_a_keyframe_with_its_own_headers_when_the_first_leaves(self) -> None:
        self.send(self.standby, self.their_headers)
        self.run_both(2)
        before = len(self.stored)
        self.active.end()
        self.send(self.standby, gops(1, start=72_000)[5:])
        self.assertEqual(before, len(self.stored))
        self.clock.advance(0.2)
        self.send(self.standby, gops(1, start=72_400))
        added = self.stored[before:]
        self.assertEqual(
            [message.payload for message in self.their_headers + gops(1, start=72_400)],
            [message.payload for message in added],
        )
        self.assert_timestamps_grow()
        self.assertIs(self.second, self.ingest.publisher)

    def test_stream_does_not_end_while_somebody_stands_by(self) -> None:
        self.active.end()
        self.clock.advance(END + 10)
        self.assertFalse(self.stream.log.is_finished)

    def test_stream_ends_when_the_standby_leaves_as_well(self) -> None:
        """The first left while another stood by; then that one left without ever having been promoted."""
        self.active.end()
        self.standby.end()
        self.clock.advance(END + 1)
        self.assertTrue(self.stream.log.is_finished)

    def test_standby_is_promoted_when_the_first_falls_silent(self) -> None:
        """And the first is sent away: it must not come back into the middle."""
        self.send(self.standby, self.their_headers)
        self.clock.advance(TAKEOVER + 0.1)
        self.send(self.standby, gops(1, start=80_000))
        self.assertEqual(1, len(self.first.sent_away_for))
        self.assertEqual(gops(1, start=80_000)[0].payload, self.stored[len(HEADERS) + 13].payload)

    def test_standby_without_video_is_promoted_at_a_sound(self) -> None:
        self.send(self.standby, [aac_header()])
        self.active.end()
        self.send(self.standby, [audio(70_000)])
        self.assertEqual(audio(70_000).payload, self.stored[-1].payload)

    def test_second_standby_is_refused(self) -> None:
        self.assertRaises(PublishRefused, self.ingest.admit, Encoder("third"))

    def test_newcomer_is_written_when_nobody_is_active_though_one_stands_by(self) -> None:
        """Two encoders wait for the name of one that left: the first to send a keyframe has it, the other is kept."""
        self.active.end()
        third = self.ingest.admit(Encoder("third"))
        self.send(third, HEADERS + gops(1))
        self.assertEqual("third", self.ingest.publisher.describe())
        third.end()
        self.send(self.standby, gops(1, start=90_000))
        self.assertIs(self.second, self.ingest.publisher)


class ReplaceTests(IngestTestCase):
    policy = SecondPublisher.REPLACE

    def test_second_publisher_is_active_at_its_first_keyframe_and_the_first_is_sent_away(self) -> None:
        active = self.ingest.admit(self.first)
        self.send_in_time(active, HEADERS + gops(1))
        second = self.ingest.admit(self.second)
        self.send_in_time(second, [*HEADERS, video(0), audio(0)])
        self.assertEqual([], self.first.sent_away_for)
        self.send_in_time(active, gops(1, start=400))
        before = len(self.stored)
        self.send_in_time(second, gops(1, start=40))
        self.assertEqual(1, len(self.first.sent_away_for))
        self.assertEqual(len(HEADERS) + 10, len(self.stored) - before)
        self.send_in_time(active, gops(1, start=800))
        self.assertEqual(len(HEADERS) + 10, len(self.stored) - before)
        self.assert_timestamps_grow()

    def test_first_publisher_s_end_after_that_is_no_end(self) -> None:
        active = self.ingest.admit(self.first)
        self.send(active, HEADERS + gops(1))
        second = self.ingest.admit(self.second)
        self.send(second, HEADERS + gops(1))
        active.end()
        self.assertTrue(self.stream.is_live)
        self.assertEqual([], self.clock.getDelayedCalls())
