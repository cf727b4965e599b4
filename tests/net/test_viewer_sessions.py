"""What an aggregator says of a viewer's bytes is true, whatever happens to the viewer (I2, I3)."""

from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from relay.flv.tags import FILE_HEADER
from relay.log.options import LogOptions
from relay.log.points import LogStart
from relay.net.sessions import BalancerLost, ResumePoint, SessionFeed
from relay.net.viewer import FlvForm, RtmpForm, Viewer
from relay.testing import ManualReactor, make_hub, memory_log, publish
from tests import wire
from tests.log.model import gops
from tests.net.driving import Recorder, TcpPair, flv_tags, log_bytes, read_messages, read_tags
from tests.wire import aac_header, avc_header, metadata

HEADERS = [metadata(), avc_header(), aac_header()]
PING = wire.user_control(6, b"\1\2\3\4")
KEEP_ALL = LogOptions(segment_bytes=20_000, keep_bytes=256 << 20, keep_ms=3_600_000)
KEEP_LITTLE = LogOptions(segment_bytes=20_000, keep_bytes=256 << 20, keep_ms=1_000)
"""Retention is faster than a slow reader, which so comes to gaps."""


class Balancer:
    """Hears what is said of the one session; answers when the test says so, or in the next round if it is quick.

    ``told``: ("checkpoint", K, point) and ("suspend", K, None), in order.
    """

    def __init__(self, clock: ManualReactor, is_quick: bool = False) -> None:
        self.told: list[tuple[str, int, ResumePoint | None]] = []
        self.unanswered: list[Deferred[None]] = []
        self.is_connected = True
        self._clock = clock
        self._is_quick = is_quick

    def tell_balancer(self, balancer, name, session_id, at, *point) -> bool:
        assert name == "relayCheckpoint", name
        self.told.append(("checkpoint", int(at), ResumePoint.from_values(list(point))))
        return self.is_connected

    def ask_balancer(self, balancer, name, session_id, *at):
        if not self.is_connected:
            return None
        assert name == "relaySuspend", name
        self.told.append(("suspend", int(at[0]), None))
        answer: Deferred[None] = Deferred()
        self.unanswered.append(answer)
        if self._is_quick:
            self._clock.callLater(0, self.answer)
        return answer

    def answer(self) -> None:
        answers, self.unanswered = self.unanswered, []
        for each in answers:
            each.callback(None)


class Scene:
    """A live stream, one viewer of it with a session, and its balancer."""

    def __init__(self, form=None, is_quick=False, keep=KEEP_ALL, is_connected=True) -> None:
        self.clock = ManualReactor()
        self.keep = keep
        self.hub, self.stream = make_hub(HEADERS, clock=self.clock, options=keep)
        self.logs = [self.stream.log]
        self.published = [list(HEADERS)]  # of each epoch
        self.time_ms = 0
        self.balancer = Balancer(self.clock, is_quick)
        self.balancer.is_connected = is_connected
        self.pair = TcpPair(Recorder(), self.clock, send_buffer=4096, receive_buffer=4096)
        self.outcomes: list[str] = []
        self.form = form or RtmpForm()
        self.publish(1)
        feed = SessionFeed(self.balancer, "lb1", "00" * 16)
        transport = self.pair.transport
        transport.write(b"preamble")  # the conversation before the viewer starts
        self.viewer = Viewer(self.stream, transport, self.form, self.outcomes.append, 0.0, feed)
        self.viewer.join(self.stream.log.newest_join_point())

    def publish(self, count: int, size: int = 4_000) -> None:
        """So many GOPs of 400 ms."""
        self.append(gops(count, start=self.time_ms, size=size))
        self.time_ms += 400 * count

    def append(self, messages) -> None:
        self.published[-1] += messages
        publish(self.stream, messages, at_once=False)

    def next_epoch(self) -> None:
        start = LogStart(time_ms=self.time_ms)
        self.stream.succeed(memory_log(epoch=len(self.logs) + 1, start=start, options=self.keep))
        self.logs.append(self.stream.log)
        self.published.append([])
        self.append([avc_header(self.time_ms), aac_header(self.time_ms)])
        self.publish(1)

    def lag(self) -> None:
        """The hub looks at its viewers; this one is too far behind if it is by half a second."""
        self.viewer.check(self.clock.seconds(), 0.5, 1e9)

    def rendition(self, epoch: int) -> bytes:
        """The session's bytes of one epoch, from offset 0 on."""
        write = log_bytes if self.form.name == "rtmp" else flv_tags
        return write(self.published[epoch - 1])

    def check_words(self) -> None:
        """I2: each run that was told of is the rendition's, byte for byte.  I3: none leaves while an answer is due."""
        received = bytes(self.pair.received)
        runs = list(zip(self.balancer.told, [*self.balancer.told[1:], ("end", len(received), None)], strict=True))
        for (word, at, point), (_, until, _) in runs:
            if word == "checkpoint":
                run = received[at:until]
                expected = self.rendition(point.epoch)[point.offset : point.offset + len(run)]
                assert run == expected, (at, until, point)
        words = [word for word, _, _ in self.balancer.told]
        assert words == ["checkpoint", "suspend"] * (len(words) // 2) + ["checkpoint"] * (len(words) % 2)
        if self.balancer.unanswered:
            assert len(received) <= self.balancer.told[-1][1]

    def close(self) -> None:
        self.balancer.answer()
        self.viewer.stop()
        self.pair.close()
        self.hub.close()
        for log in self.logs:
            log.close()


def as_media(raws):
    return [wire.MediaMessage(raw.message_type, raw.timestamp, raw.payload) for raw in raws]


class SessionTests(SynchronousTestCase):
    def scene(self, *args, **options) -> Scene:
        scene = Scene(*args, **options)
        self.addCleanup(scene.close)
        return scene

    def test_first_checkpoint_counts_the_conversation_before_it(self) -> None:
        scene = self.scene()
        scene.pair.run()
        ((word, at, point),) = scene.balancer.told
        preamble = len(b"preamble" + log_bytes(stamped(HEADERS)))
        self.assertEqual(("checkpoint", preamble), (word, at))
        self.assertEqual(("rtmp", "live/demo", 1), (point.rendition, str(point.name), point.epoch))
        scene.check_words()

    def test_reply_waits_for_the_balancer(self) -> None:
        """I3: a ping is answered only when the balancer knows that the run ends there."""
        scene = self.scene()
        scene.pair.run()
        scene.viewer.interject(PING)
        scene.publish(3)
        before = len(scene.pair.run())
        self.assertEqual([("suspend", before, None)], scene.balancer.told[1:])
        self.assertNotIn(PING, scene.pair.run())
        scene.balancer.answer()
        received = scene.pair.run()
        self.assertEqual(PING, received[before : before + len(PING)])
        self.assertEqual(("checkpoint", before + len(PING)), scene.balancer.told[2][:2])
        scene.check_words()

    def test_skip_and_epoch_are_told_as_well(self) -> None:
        for form in (RtmpForm(), FlvForm()):
            scene = self.scene(form, is_quick=True)
            scene.publish(30)
            scene.lag()
            scene.pair.run()
            scene.next_epoch()
            scene.pair.run()
            self.assertEqual((1, 2), (scene.viewer.skips, scene.balancer.told[-1][2].epoch))
            self.assertEqual(
                ["checkpoint", "suspend"] * 2 + ["checkpoint"], [word for word, _, _ in scene.balancer.told]
            )
            scene.check_words()

    def test_balancer_that_cannot_be_asked_any_more_ends_the_session_here(self) -> None:
        """It believes that the run goes on, and would resume at a wrong place if anything else followed."""
        scene = self.scene()
        scene.pair.run()
        scene.balancer.is_connected = False
        scene.viewer.interject(PING)
        self.assertNotIn(PING, scene.pair.run())
        self.assertEqual(["balancer_lost"], scene.outcomes)

    def test_balancer_that_goes_before_it_answers_ends_the_session_here(self) -> None:
        """It may have heard the question, or not."""
        scene = self.scene()
        scene.pair.run()
        scene.viewer.interject(PING)
        (asked,), scene.balancer.unanswered = scene.balancer.unanswered, []
        asked.errback(BalancerLost("gone"))
        self.assertNotIn(PING, scene.pair.run())
        self.assertEqual(["balancer_lost"], scene.outcomes)

    def test_balancer_that_never_was_there_is_not_asked(self) -> None:
        """Nobody can resume such a session, so nothing needs to be held back."""
        scene = self.scene(is_connected=False)
        scene.pair.run()
        scene.viewer.interject(PING)
        self.assertTrue(scene.pair.run().endswith(PING))

    def test_viewer_that_stops_while_the_answer_is_due(self) -> None:
        scene = self.scene()
        scene.pair.run()
        scene.viewer.interject(PING)
        scene.viewer.stop()
        scene.balancer.answer()
        self.assertNotIn(PING, scene.pair.run())

    def test_broadcast_that_ends_and_goes_on_while_the_answer_is_due(self) -> None:
        """The encoder is back at the last moment: nothing leaves before the answer, and then every byte."""
        scene = self.scene()
        before = len(scene.pair.run())
        scene.stream.end()
        scene.stream.log.reopen()
        scene.publish(1)
        self.assertEqual(before, len(scene.pair.run()))
        scene.balancer.answer()
        scene.pair.run()
        self.assertEqual(([], scene.stream.log.end), (scene.outcomes, scene.viewer.offset))
        scene.check_words()

    def test_broadcast_that_ends_while_the_answer_is_due(self) -> None:
        scene = self.scene()
        scene.pair.run()
        scene.viewer.interject(PING)
        scene.stream.end()
        self.assertEqual([], scene.outcomes)
        scene.balancer.answer()
        scene.pair.run()
        self.assertEqual(["ended"], scene.outcomes)


def stamped(messages):
    return [attrs.evolve(message, timestamp=0) for message in messages]


STEPS = st.lists(
    st.tuples(st.sampled_from(("publish", "read", "run", "ping", "lag", "epoch", "answer")), st.integers(1, 6)),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans(), st.booleans(), st.booleans())
def test_whatever_happens_the_balancer_is_told_the_truth(steps, is_flv, is_quick, is_forgetful) -> None:
    scene = Scene(FlvForm() if is_flv else RtmpForm(), is_quick, KEEP_LITTLE if is_forgetful else KEEP_ALL)
    try:
        for step, amount in [*steps, ("answer", 1), ("run", 1), ("answer", 1), ("run", 1)]:
            if step == "publish":
                scene.publish(amount)
            elif step == "read":
                scene.pair.read(amount * 2000)
                scene.clock.turn()
            elif step == "run":
                scene.pair.run()
            elif step == "ping" and not is_flv:
                scene.viewer.interject(PING)
            elif step == "lag":
                scene.lag()
            elif step == "epoch":
                scene.next_epoch()
            elif step == "answer":
                scene.balancer.answer()
            scene.check_words()
        while scene.balancer.unanswered:
            scene.balancer.answer()
            scene.pair.run()
        scene.check_words()
        received = bytes(scene.pair.received).removeprefix(b"preamble")
        if is_flv:
            assert received.startswith(FILE_HEADER)
            media = read_tags(received)
        else:
            media = as_media(raw for raw in read_messages(received) if raw.message_stream_id)
        assert media[-1] == gops(1, start=scene.time_ms - 400, size=4_000)[-1]
        times = [message.timestamp for message in media if message.message_type == 9]
        assert times == sorted(times)
    finally:
        scene.close()
