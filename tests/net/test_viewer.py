"""What one reader is sent, at each of the moments that are not the log's next byte."""

from __future__ import annotations

import contextlib

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.flv.tags import FILE_HEADER
from relay.limits import DEFAULT_LIMITS
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.net.cohort import Cohorts
from relay.net.viewer import FlvForm, RtmpForm, Viewer, beginning_of
from relay.rtmp.messages import MediaMessage, MessageType, RawMessage
from relay.rtmp.server import end_of_play
from relay.testing import CongestibleTransport, ManualReactor, make_hub, memory_log, publish
from tests import wire
from tests.log.model import gops, video
from tests.net.driving import Recorder, TcpPair, flv_tags, log_bytes, read_messages, read_tags
from tests.wire import aac_header, avc_header, metadata

HEADERS = [metadata(), avc_header(), aac_header()]
SMALL = 4 << 10
SKIP, CLOSE = DEFAULT_LIMITS.viewer_skip_seconds, DEFAULT_LIMITS.viewer_close_seconds
KEEP_ALL = LogOptions(segment_bytes=50_000, keep_bytes=256 << 20, keep_ms=3_600_000)
ENDING = end_of_play(1)
PING = wire.user_control(6, b"\1\2\3\4")


def stamped(messages: list[MediaMessage], timestamp: int) -> list[MediaMessage]:
    """Headers as a newcomer gets them: metadata with 0, which ffmpeg needs, the others with the join point's time."""
    return [
        attrs.evolve(message, timestamp=0 if message.message_type == MessageType.DATA_AMF0 else timestamp)
        for message in messages
    ]


def media_of(raws: list[RawMessage]) -> list[MediaMessage]:
    return [MediaMessage(raw.message_type, raw.timestamp, raw.payload) for raw in raws if raw.message_stream_id]


class ViewerTestCase(SynchronousTestCase):
    """A live stream and one viewer of it on a transport."""

    def setUp(self) -> None:
        self.clock = ManualReactor()
        self.hub, self.stream = make_hub(HEADERS, clock=self.clock, options=KEEP_ALL)
        self.addCleanup(self.hub.close)
        self.outcomes: list[str] = []
        self.protocol = Recorder()

    def memory_viewer(self, form=None) -> Viewer:
        self.transport = CongestibleTransport(self.clock)
        self.transport.connect(self.protocol)
        return self.make(self.transport, form)

    def socket_viewer(self, form=None) -> Viewer:
        """On a real socket whose peer has tiny buffers."""
        self.pair = TcpPair(self.protocol, self.clock, send_buffer=SMALL, receive_buffer=SMALL)
        self.addCleanup(self.pair.close)
        return self.make(self.pair.transport, form)

    def make(self, transport, form) -> Viewer:
        self.viewer = Viewer(
            self.stream,
            transport,
            form or RtmpForm(),
            self.outcomes.append,
            self.clock.seconds(),
        )
        return self.viewer

    def join(self, viewer: Viewer) -> None:
        join = self.stream.log.newest_join_point()
        assert join is not None
        viewer.join(join)

    def check(self, seconds: float = 1.0) -> None:
        """Time passes, and the hub looks at its viewers each second."""
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            self.viewer.check(self.clock.seconds(), SKIP, CLOSE)


class JoiningTests(ViewerTestCase):
    def test_newcomer_is_sent_the_headers_in_force_before_the_log(self) -> None:
        """From the newest keyframe, not from the oldest byte; nobody else's bytes in between."""
        messages = gops(3)
        publish(self.stream, messages)
        self.join(self.memory_viewer())
        newest = messages[20:]
        expected = log_bytes(stamped(HEADERS, newest[0].timestamp) + newest)
        self.assertEqual(expected, self.transport.drain())

    def test_newcomer_far_into_the_stream_has_no_timestamp_below_its_join_point(self) -> None:
        """But for the metadata: a player that is given a header stamped 0 would wait for hours."""
        messages = gops(2, start=0xFFFFFE00)
        publish(self.stream, messages)
        self.join(self.memory_viewer())
        received = media_of(read_messages(self.transport.drain()))
        self.assertEqual([0] + 2 * [messages[10].timestamp], [message.timestamp for message in received[:3]])
        self.assertEqual(messages[10:], received[3:])

    def test_flv_newcomer_gets_file_header_headers_and_tags(self) -> None:
        messages = gops(2)
        publish(self.stream, messages)
        self.join(self.memory_viewer(FlvForm()))
        expected = FILE_HEADER + flv_tags(stamped(HEADERS, messages[10].timestamp) + messages[10:])
        self.assertEqual(expected, self.transport.drain())

    def test_media_that_comes_later_follows(self) -> None:
        publish(self.stream, gops(1))
        for form in (None, FlvForm()):
            viewer = self.memory_viewer(form)
            self.join(viewer)
            self.transport.drain()
            more = gops(1, start=1000 if form is None else 2000)
            publish(self.stream, more)
            self.assertEqual((log_bytes if form is None else flv_tags)(more), self.transport.drain())
            viewer.stop()

    def test_stopped_viewer_leaves_nothing(self) -> None:
        publish(self.stream, gops(1))
        viewer = self.memory_viewer(FlvForm())
        self.join(viewer)
        viewer.stop()
        viewer.stop()
        publish(self.stream, gops(1, start=1000))
        self.assertEqual(
            (0, -1, None, []),
            (len(self.stream.wakeup), viewer.offset, self.stream.log.flv, self.outcomes),
        )


class InterjectTests(ViewerTestCase):
    def test_interjection_in_mid_message_lands_at_the_next_boundary(self) -> None:
        """The socket is full in the middle of a large message; a ping reply is due.  A parser sees whole messages."""
        big = [video(0, True, size=300_000), video(40, size=300_000)]
        publish(self.stream, big)
        viewer = self.socket_viewer()
        self.join(viewer)
        self.clock.turn()
        self.assertTrue(self.pair.transport.is_congested())
        self.assertNotIn(viewer.offset, (0, len(log_bytes(HEADERS)), self.stream.log.end))
        viewer.interject(PING)
        more = [video(80, size=20_000)]
        publish(self.stream, more)
        raws = read_messages(self.pair.run())
        kinds = [raw.message_type for raw in raws]
        self.assertEqual([18, 9, 8, 9, MessageType.USER_CONTROL, 9, 9], kinds)
        self.assertEqual(big + more, media_of(raws)[3:])

    def test_interjections_keep_their_order(self) -> None:
        publish(self.stream, [video(0, True, size=300_000), video(40, size=1000)])
        viewer = self.socket_viewer()
        self.join(viewer)
        pings = [wire.user_control(6, bytes((0, 0, 0, index))) for index in range(20)]
        for ping in pings:
            viewer.interject(ping)
        raws = read_messages(self.pair.run())
        said = [raw.payload[-1] for raw in raws if raw.message_type == MessageType.USER_CONTROL]
        self.assertEqual(list(range(20)), said)

    def test_interjection_of_an_idle_viewer_goes_out_at_once(self) -> None:
        publish(self.stream, gops(1))
        viewer = self.socket_viewer()
        self.join(viewer)
        self.pair.run()
        before = len(self.pair.received)
        viewer.interject(PING)
        self.assertEqual(PING, self.pair.run()[before:])

    def test_interjection_through_a_writing_follower(self) -> None:
        messages = gops(20, size=5_000)
        publish(self.stream, messages)
        viewer = self.memory_viewer()
        viewer.start_at(self.stream.log, LogStart(0))
        received = b""
        while piece := self.transport.drain(50_000):
            received += piece
            viewer.interject(PING)
            if len(received) > 400_000:
                break
        received += self.transport.drain()
        raws = read_messages(received)
        self.assertEqual(HEADERS + messages, media_of(raws))
        self.assertGreater(len(raws), len(HEADERS + messages) + 5)

    def test_interjection_before_the_start_is_written(self) -> None:
        self.memory_viewer().interject(PING)
        self.assertEqual(PING, self.transport.drain())


class SlowTests(ViewerTestCase):
    """FAULTS row 11: a slow viewer costs a bounded time and no memory, and sees whole GOPs or nothing."""

    def test_viewer_past_the_lag_limit_skips_to_headers_and_keyframe(self) -> None:
        """It finishes the message that it is in, then gets the headers and goes on at the newest keyframe."""
        messages = gops(40, size=3_000)  # 16 s of media, 1.2 MB: the socket holds the beginning
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:])
        self.check()
        received = media_of(read_messages(self.pair.run()))
        head, tail = received[3:], messages[-10:]
        place = head.index(tail[0])
        self.assertEqual(messages[: place - 2], head[: place - 2])
        self.assertLess(place, 300)
        self.assertEqual([avc_header(tail[0].timestamp), aac_header(tail[0].timestamp)], head[place - 2 : place])
        self.assertEqual(tail, head[place:])
        self.assertEqual((1, 1, []), (self.viewer.skips, self.stream.skips, self.outcomes))

    def test_flv_viewer_past_the_lag_limit_skips_too(self) -> None:
        messages = gops(40, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer(FlvForm()))
        publish(self.stream, messages[10:])
        self.check()
        received = read_tags(self.pair.run())
        self.assertEqual(messages[-10:], received[-10:])
        self.assertEqual([avc_header(messages[-10].timestamp), aac_header(messages[-10].timestamp)], received[-12:-10])
        self.assertEqual(1, self.viewer.skips)

    def test_viewer_within_the_lag_limit_skips_nothing(self) -> None:
        messages = gops(int(SKIP * 1000 / 400) - 1, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:])
        self.check()
        self.assertEqual(messages, media_of(read_messages(self.pair.run()))[3:])
        self.assertEqual(0, self.viewer.skips)

    def test_viewer_without_a_newer_join_point_goes_on_where_it_is(self) -> None:
        """One endless GOP: there is nowhere to skip to, and no byte is lost."""
        messages = gops(1, frames=400, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:])
        self.check()
        self.assertEqual(messages, media_of(read_messages(self.pair.run()))[3:])
        self.assertEqual(0, self.viewer.skips)

    def test_viewer_that_takes_no_byte_is_closed(self) -> None:
        """After viewer_close_seconds, counted; not a second before."""
        publish(self.stream, gops(1, size=100_000))
        self.join(self.socket_viewer())
        self.check(CLOSE)
        self.assertEqual([], self.outcomes)
        self.check(2)
        self.assertEqual(["evicted_slow"], self.outcomes)
        self.assertEqual(0, len(self.stream.wakeup))

    def test_viewer_that_takes_a_few_bytes_a_second_is_not_closed(self) -> None:
        """A reader at 1 kB/s is slow, not dead: it skips."""
        publish(self.stream, gops(1, size=100_000))
        self.join(self.socket_viewer())
        for _ in range(int(CLOSE) * 3):
            for _ in range(8):
                self.pair.read(4000)
            self.clock.turn()
            self.check()
        self.assertEqual([], self.outcomes)

    def test_idle_viewer_of_a_silent_stream_is_not_closed(self) -> None:
        publish(self.stream, gops(1))
        self.join(self.socket_viewer())
        self.pair.run()
        self.check(10 * CLOSE)
        self.assertEqual([], self.outcomes)

    def test_viewer_that_was_in_step_has_its_time_from_when_it_was_not(self) -> None:
        """A stream may be silent for longer than that, and then be too much for a socket at once."""
        publish(self.stream, gops(1))
        viewer = self.socket_viewer()
        self.join(viewer)
        self.pair.run()
        self.check()
        cohorts: Cohorts[str] = Cohorts(lambda who: None)
        self.assertTrue(viewer.fall_in(cohorts))
        self.clock.advance(10 * CLOSE)
        with contextlib.suppress(BlockingIOError):
            while self.pair.transport.socket.send(bytes(1000)):
                pass
        publish(self.stream, gops(1, start=400))
        cohorts.pump()
        self.assertTrue(self.pair.transport.is_congested())
        self.check(CLOSE)
        self.assertEqual([], self.outcomes)
        self.check(2)
        self.assertEqual(["evicted_slow"], self.outcomes)

    def test_viewer_that_takes_no_byte_of_its_preamble_is_closed(self) -> None:
        """The preamble is in Twisted's buffer: that, too, is a viewer that does not read."""
        publish(self.stream, [metadata(padding="x" * 60_000), *gops(1)])
        viewer = self.socket_viewer()
        self.join(viewer)
        self.clock.turn()
        self.assertEqual(self.stream.log.newest_join_point().offset, viewer.offset)
        self.check(CLOSE + 2)
        self.assertEqual(["evicted_slow"], self.outcomes)

    def test_reader_whose_place_was_dropped_goes_on_at_the_newest_join_point(self) -> None:
        """Retention was faster than the reader: it is told the headers again and continues with a keyframe."""
        self.hub.close()
        options = LogOptions(segment_bytes=20_000, keep_ms=1_000, keep_bytes=64 << 20)
        self.hub, self.stream = make_hub(HEADERS, clock=self.clock, options=options)
        messages = gops(40, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:], at_once=False)
        received = media_of(read_messages(self.pair.run()))
        self.assertEqual(messages[-10:], received[-10:])
        self.assertEqual(1, self.viewer.skips)


class CrossingTests(ViewerTestCase):
    """A new epoch goes on where the old one ends, inside the viewer's connection."""

    def cross(self, form=None):
        old, new = gops(2), [avc_header(800), *gops(1, start=800)]
        publish(self.stream, old)
        self.join(self.memory_viewer(form))
        before = self.transport.drain()
        self.stream.succeed(memory_log(epoch=2, start=LogStart(time_ms=800)))
        publish(self.stream, new)
        return before, new, self.transport.drain()

    def test_viewer_reads_the_old_epoch_to_its_end_and_the_new_one_from_its_first_byte(self) -> None:
        _, new, received = self.cross()
        self.assertEqual(log_bytes(new), received)
        self.assertEqual((2, []), (self.viewer.log.epoch, self.outcomes))

    def test_flv_viewer_crosses_too(self) -> None:
        _, new, received = self.cross(FlvForm())
        self.assertEqual(flv_tags(new), received)

    def test_slow_viewer_crosses_without_losing_the_tail_of_the_old_epoch(self) -> None:
        old, new = gops(10, size=3_000), [avc_header(4000), *gops(2, start=4000, size=3_000)]
        publish(self.stream, old[:10])
        self.join(self.socket_viewer())
        publish(self.stream, old[10:])
        self.stream.succeed(memory_log(epoch=2, start=LogStart(time_ms=4000)))
        publish(self.stream, new)
        self.assertEqual(old + new, media_of(read_messages(self.pair.run()))[3:])

    def test_viewer_crosses_several_epochs(self) -> None:
        """An origin that lost its log three times: the viewer sees one stream."""
        publish(self.stream, gops(1))
        self.join(self.socket_viewer())
        expected = gops(1)
        for epoch in (2, 3, 4):
            part = [avc_header(epoch * 1000), *gops(1, start=epoch * 1000)]
            self.stream.succeed(memory_log(epoch=epoch, start=LogStart(time_ms=epoch * 1000)))
            publish(self.stream, part)
            expected += part
        self.assertEqual(expected, media_of(read_messages(self.pair.run()))[3:])

    def test_viewer_whose_old_epoch_was_given_up_goes_on_in_the_new_one(self) -> None:
        """It was too slow for the old one: what is left of it is lost, not the viewer."""
        messages = gops(20, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:])
        old = self.stream.log
        self.stream.succeed(memory_log(epoch=old.epoch + 1, start=LogStart(time_ms=8000)))
        old.discard()
        publish(self.stream, [avc_header(8000), *gops(1, start=8000)])
        received = media_of(read_messages(self.pair.run()))
        self.assertEqual([avc_header(8000), *gops(1, start=8000)], received[-11:])
        self.assertEqual([], self.outcomes)

    def test_beginning_of_an_empty_log_is_its_end(self) -> None:
        log = memory_log(epoch=3, start=LogStart(offset=70, flv_offset=90))
        self.assertEqual((70, 90), (beginning_of(log).offset, beginning_of(log).flv_offset))
        log.close()


class EndingTests(ViewerTestCase):
    def test_end_of_broadcast_is_told_after_the_last_byte(self) -> None:
        """Also to a reader that is still behind."""
        messages = gops(10, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:])
        self.stream.end()
        self.assertEqual([], self.outcomes)
        received = self.pair.run()
        self.assertTrue(received.endswith(log_bytes(messages) + ENDING))
        self.assertEqual(["ended"], self.outcomes)

    def test_flv_reader_is_closed_at_the_end(self) -> None:
        publish(self.stream, gops(1))
        self.join(self.memory_viewer(FlvForm()))
        self.transport.drain()
        self.stream.end()
        self.assertEqual((b"", ["ended"]), (self.transport.drain(), self.outcomes))

    def test_reader_that_halts_at_the_log_s_end_when_it_finishes_is_told_once(self) -> None:
        publish(self.stream, gops(1))
        viewer = self.memory_viewer()
        self.join(viewer)
        self.stream.end()
        viewer.pump()
        viewer.interject(PING)
        self.assertEqual(["ended"], self.outcomes)

    def test_end_reached_in_the_middle_of_a_skip(self) -> None:
        """Past the lag limit and the broadcast over, at the same moment: whole messages, then the end."""
        messages = gops(40, size=3_000)
        publish(self.stream, messages[:10])
        self.join(self.socket_viewer())
        publish(self.stream, messages[10:])
        self.check()
        self.stream.end()
        raws = read_messages(self.pair.run())
        self.assertEqual(messages[-10:], media_of(raws[:-2])[-10:])
        self.assertEqual((["ended"], MessageType.USER_CONTROL), (self.outcomes, raws[-1].message_type))
