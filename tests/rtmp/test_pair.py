"""Our client and our server with a wire between them: publish, relay, play."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relay.rtmp.events import (
    CommandAnswered,
    CommandReceived,
    Connected,
    MediaReceived,
    PingAnswered,
    PlayStarted,
    PublishStarted,
    StreamClosed,
    StreamEnded,
)
from relay.rtmp.messages import MAX_CHUNK_SIZE, MediaMessage
from tests import strategies, wire
from tests.rtmp.driving import Pair


class PairTests(SynchronousTestCase):
    def test_nonces_are_exchanged(self) -> None:
        """Nodes prove their secret over both; digest or not."""
        for digest in (False, True):
            pair = Pair(digest)
            pair.pump()
            self.assertEqual(
                (pair.client.our_nonce, pair.client.their_nonce), (pair.server.their_nonce, pair.server.our_nonce)
            )

    def test_publish_relay_play(self) -> None:
        """A stream goes from an encoder through a server to a viewer, message for message."""
        for start in (0, 0xFFFFFF - 500, (1 << 32) - 500):
            publisher, viewer = Pair().publishing(), Pair().playing()
            stream = wire.h264_aac_stream(2, start=0)
            stream = [MediaMessage(m.message_type, (m.timestamp + start) & 0xFFFFFFFF, m.payload) for m in stream]
            for message in stream:
                publisher.client.send_media(1, message)
            _, received = publisher.pump()
            log = wire.media([event.message for event in received], MAX_CHUNK_SIZE)
            self.assertEqual([MediaReceived(1, message) for message in stream], viewer.client.receive_data(log, 0.0))

    def test_answers_in_order(self) -> None:
        pair = Pair().connected()
        pair.client.publish(1, "demo")
        _, (request,) = pair.pump()
        pair.server.accept_publish(request)
        self.assertEqual(([PublishStarted(1)], []), pair.pump())
        pair.client.close_stream(1)
        self.assertEqual(([], [StreamClosed(1)]), pair.pump())

    def test_play_brings_info_and_ends_once(self) -> None:
        pair = Pair().connected()
        pair.client.play(1, "demo?epoch=1&offset=2")
        _, (request,) = pair.pump()
        self.assertEqual("demo?epoch=1&offset=2", request.stream)
        pair.server.accept_play(request, {"epoch": 1, "offset": 2, "headers": ["eA=="]})
        _, started = pair.pump()[0]
        self.assertEqual((PlayStarted, 2.0, ["eA=="]), (type(started), started.info["offset"], started.info["headers"]))
        pair.server.end_play(1)
        self.assertEqual(([StreamEnded(1)], []), pair.pump())

    def test_calls_are_answered_or_refused(self) -> None:
        pair = Pair().connected()
        asked = pair.client.call("relayCatalogue", {"after": 3})
        _, (command,) = pair.pump()
        self.assertEqual(CommandReceived(name="relayCatalogue", transaction_id=asked, values=[{"after": 3.0}]), command)
        pair.server.answer_command(asked, ["live/demo"])
        self.assertEqual(
            [CommandAnswered(transaction_id=asked, is_error=False, values=[["live/demo"]])], pair.pump()[0]
        )
        pair.server.refuse_command(asked, "no")
        ((answer,), _) = pair.pump()
        self.assertTrue(answer.is_error)
        self.assertEqual("no", answer.values[0]["description"])

    def test_server_may_notify_and_call_too(self) -> None:
        pair = Pair().connected()
        pair.server.send_command("relayAppeared", 5, "live/demo")
        self.assertEqual(
            [CommandReceived(name="relayAppeared", transaction_id=5.0, values=["live/demo"])], pair.pump()[0]
        )
        pair.client.answer_command(5, "seen")
        self.assertEqual([CommandAnswered(transaction_id=5.0, is_error=False, values=["seen"])], pair.pump()[1])

    def test_pings_both_ways(self) -> None:
        pair = Pair().connected()
        pair.client.send_ping(7)
        pair.server.send_ping(8)
        self.assertEqual(([PingAnswered(7)], [PingAnswered(8)]), pair.pump())

    def test_enhanced_properties_meet(self) -> None:
        pair = Pair()
        pair.pump()
        pair.client.connect("live", "rtmp://h/live", {"videoFourCcInfoMap": {"*": 4}})
        _, (request,) = pair.pump()
        pair.server.accept_connect(request)
        ((connected,), _) = pair.pump()
        self.assertIsInstance(connected, Connected)
        self.assertEqual(
            (["*"], {"*": 4.0}, 14.0),
            tuple(connected.properties[key] for key in ("fourCcList", "videoFourCcInfoMap", "capsEx")),
        )

    def test_acknowledgements_flow_and_are_no_events(self) -> None:
        """3 MB up: the client is sent acknowledgements and tells nobody."""
        pair = Pair().publishing()
        for index in range(30):
            pair.client.send_media(1, MediaMessage(9, index, b"\x27" + bytes(100_000)))
            told_client, told_server = pair.pump()
            self.assertEqual(([], 1), (told_client, len(told_server)))


@given(st.lists(strategies.media_messages(), max_size=8), st.data())
def test_any_media_arrive_in_any_pieces(messages: list[MediaMessage], data: st.DataObject) -> None:
    pair = Pair().publishing()
    for message in messages:
        pair.client.send_media(1, message)
    pieces = data.draw(strategies.cuts(pair.client.data_to_send()))
    received = [event for piece in pieces for event in pair.server.receive_data(piece, 0.0)]
    assert [MediaReceived(1, message) for message in messages] == received
