"""What neighbours tell each other, and how soon a dead one is known to be dead."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from relay.errors import RemoteProtocolError
from relay.limits import DEFAULT_LIMITS
from relay.log.points import LogStart
from relay.names import StreamName
from relay.net.catalogue import CatalogueEntry
from relay.net.control import PROGRESS_SECONDS, PROGRESS_STREAMS
from relay.net.identity import ClusterSecret, NodeIdentity
from relay.net.links import FOREIGN_SECONDS, ControlLink
from relay.net.positions import read_position
from relay.net.rtmp_client import ClientSettings
from relay.net.sessions import BalancerLost
from relay.net.timings import DEAD_SECONDS
from relay.rtmp.events import CommandAnswered, CommandReceived, PlayStarted, StatusReceived
from relay.testing import MemoryNetwork, memory_log, publish
from tests.log.model import gops
from tests.net.driving import Player, Recorder, connect, make_node, stop_node
from tests.strategies import amf_values
from tests.wire import aac_header, avc_header, metadata

NAME = StreamName("live", "demo")
SECRET = ClusterSecret(b"0123456789abcdef")
HEADERS = [metadata(), avc_header(), aac_header()]
MESSAGES = HEADERS + gops(3)
STEP = 0.01


class ControlTestCase(SynchronousTestCase):
    secret: ClusterSecret | None = None

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.node, self.endpoint = make_node(self.network, secret=self.secret)
        self.changes: list[str] = []
        self.grown: list[int] = []  # how many streams each report was about
        self.links: list[ControlLink] = []

    def tearDown(self) -> None:
        for link in self.links:
            link.stop()
        self.network.carry()
        stop_node(self.network, self.node)
        self.assertEqual([], self.network.reactor.getDelayedCalls())

    def link(self, endpoint=None, secret=None, report=list, tier="aggregator") -> ControlLink:
        settings = ClientSettings(
            identity=NodeIdentity(name="agg1", tier=tier, secret=secret or self.secret),
            limits=DEFAULT_LIMITS,
            clock=self.network.reactor,
        )
        link = ControlLink(
            "o1",
            endpoint or self.endpoint,
            settings,
            lambda link: self.changes.append(link.state),
            report=report,
            progressed=lambda _, names: self.grown.append(len(names)),
        )
        self.links.append(link)
        link.start()
        self.network.carry()
        return link

    def go_live(self, name=NAME):
        stream = self.node.ingest(name).stream
        publish(stream, MESSAGES)
        return stream


class CatalogueTests(ControlTestCase):
    def test_neighbour_is_told_every_stream_and_the_health_at_once(self) -> None:
        stream = self.go_live()
        link = self.link()
        entry = link.catalogue[NAME]
        self.assertEqual(
            (stream.log.epoch, 0, stream.log.end, stream.log.end_time_ms, False),
            (entry.epoch, entry.start, entry.end, entry.time_ms, entry.is_live),
        )
        self.assertEqual(("up", ("normal", [])), (link.state, link.health))
        self.assertEqual(["agg1"], self.node.control.neighbours)

    def test_streams_that_come_change_and_go_are_told(self) -> None:
        link = self.link()
        self.assertEqual({}, link.catalogue)
        stream = self.go_live()
        self.network.carry()
        self.assertEqual({NAME}, set(link.catalogue))
        self.node.hub.set_live(stream, True, "x")
        self.network.carry()
        self.assertTrue(link.catalogue[NAME].is_live)
        self.node.hub.set_live(stream, False, "")
        self.node._ingests.clear()
        self.node.hub.remove(NAME)
        self.network.carry()
        self.assertEqual({}, link.catalogue)

    def test_health_is_told_when_it_changes(self) -> None:
        link = self.link()
        told = len(self.changes)
        for _ in range(5):
            self.node.control.set_health("degraded", ["a1 is down"])
        self.network.carry()
        self.assertEqual(("degraded", ["a1 is down"]), link.health)
        self.assertEqual(told + 1, len(self.changes))

    def test_thousands_of_streams_are_told_in_one_go(self) -> None:
        names = [StreamName("live", f"s{index}") for index in range(900)]
        for name in names:
            self.node.hub.add(name, memory_log())
        link = self.link()
        self.assertEqual(("up", 900), (link.state, len(link.catalogue)))

    def test_thousands_of_streams_are_reported_in_one_go(self) -> None:
        told: list[CatalogueEntry] = []
        self.node.control.on_report = told.append
        entry = CatalogueEntry(name=NAME, epoch=5, start=1, end=99, time_ms=7_000, is_live=True)
        entries = [attrs.evolve(entry, name=StreamName("live", f"s{index}")) for index in range(900)]
        link = self.link(report=lambda: entries)
        self.assertEqual(("up", entries), (link.state, told))

    def test_node_hears_what_its_neighbours_have(self) -> None:
        """An origin that lost its store learns from copies how far media time had come."""
        told: list[CatalogueEntry] = []
        self.node.control.on_report = told.append
        entry = CatalogueEntry(name=NAME, epoch=5, start=1, end=99, time_ms=7_000, is_live=True)
        self.link(report=lambda: [entry])
        self.assertEqual([entry], told)

    def test_neighbour_that_leaves_is_forgotten(self) -> None:
        link = self.link()
        link.stop()
        self.network.carry()
        self.assertEqual([], self.node.control.neighbours)


class ProgressTests(ControlTestCase):
    def report(self) -> list[int]:
        self.grown.clear()
        self.network.advance(PROGRESS_SECONDS + STEP, STEP)
        return self.grown

    def test_growth_is_told_and_is_no_change(self) -> None:
        stream = self.go_live()
        link = self.link()
        self.report()
        told = len(self.changes)
        publish(stream, gops(1, start=1200), at_once=False)
        self.assertEqual([1], self.report())
        entry = link.catalogue[NAME]
        self.assertEqual((stream.log.end, stream.log.end_time_ms), (entry.end, entry.time_ms))
        self.assertEqual(told, len(self.changes))

    def test_stream_that_stands_still_is_not_told_again(self) -> None:
        self.go_live()
        self.link()
        self.report()
        self.assertEqual([], self.report())

    def test_new_epoch_is_told(self) -> None:
        stream = self.go_live()
        link = self.link()
        stream.succeed(memory_log(epoch=stream.log.epoch + 1))
        self.report()
        self.assertEqual((stream.log.epoch, 0), (link.catalogue[NAME].epoch, link.catalogue[NAME].end))

    def test_many_streams_are_told_in_few_commands(self) -> None:
        for index in range(PROGRESS_STREAMS + 1):
            self.node.hub.add(StreamName("live", f"s{index}"), memory_log())
        self.link()
        self.assertEqual([PROGRESS_STREAMS, 1], self.report())

    def test_balancer_is_not_told(self) -> None:
        self.go_live()
        self.link(tier="balancer")
        self.assertEqual([], self.report())

    def test_stream_that_was_never_told_of_does_not_come_by_its_growth(self) -> None:
        link = self.link()
        link.told(CommandReceived(name="relayProgress", transaction_id=0, values=["live/other 1 9 0"]))
        self.assertEqual({}, link.catalogue)

    def test_nonsense_is_refused(self) -> None:
        self.go_live()
        link = self.link()
        for said in ([], [7], ["live/demo"], ["live/demo 1 2 x"], ["../x 1 2 3"], ["live/demo 1 2 3\n"]):
            with self.assertRaises(RemoteProtocolError):
                link.told(CommandReceived(name="relayProgress", transaction_id=0, values=said))


class ForeignTests(ControlTestCase):
    """A server that speaks RTMP and is no node of ours, and may be replaced by one."""

    def test_foreign_server_is_left_alone_for_a_while_and_asked_again(self) -> None:
        secret = ClusterSecret(b"another cluster's")
        link = self.link(secret=secret)
        self.assertEqual(("foreign", 1), (link.state, self.endpoint.attempts))
        self.network.advance(FOREIGN_SECONDS - 1, 0.5)
        self.assertEqual(1, self.endpoint.attempts)
        self.network.advance(2, 0.5)
        self.assertEqual(("foreign", 2), (link.state, self.endpoint.attempts))

    def test_foreign_server_that_has_become_a_node_is_found(self) -> None:
        link = self.link(secret=SECRET)
        self.assertEqual("foreign", link.state)
        stop_node(self.network, self.node)
        self.node, at_node = make_node(self.network, secret=SECRET)
        self.patch(self.endpoint, "connect", at_node.connect)
        self.go_live()
        self.network.advance(FOREIGN_SECONDS + 1, 0.5)
        self.assertEqual(("up", {NAME}), (link.state, set(link.catalogue)))


class LivenessTests(ControlTestCase):
    def time_until(self, state: str, link: ControlLink, limit: float = 5.0) -> float:
        begun = self.network.reactor.seconds()
        while link.state != state and self.network.reactor.seconds() < begun + limit:
            self.network.advance(STEP, STEP)
        return self.network.reactor.seconds() - begun

    def test_peer_that_hangs_is_dead_within_the_dead_time(self) -> None:
        """Its socket is open and says nothing: a stopped process, a pulled cable.  (FAULTS section 2.)"""
        for phase in (0.0, 0.05, 0.13, 0.21):
            with self.subTest(phase=phase):
                link = self.link()
                self.network.advance(1 + phase, STEP)
                self.assertEqual("up", link.state)
                self.endpoint.links[-1].is_cut = True
                seconds = self.time_until("down", link)
                self.assertLessEqual(seconds, DEAD_SECONDS + 2 * DEAD_SECONDS / 3 + 2 * STEP)
                self.assertGreater(seconds, DEAD_SECONDS / 2)
                self.assertEqual("dead", link.why)
                link.stop()
                self.endpoint.links[-1].is_cut = False
                self.network.carry()

    def test_peer_is_not_dead_because_we_stood_still(self) -> None:
        """The process was stopped for a moment, or its disk was slow: the answers lie unread in the socket."""
        link = self.link()
        self.network.advance(1, 0.05)
        self.network.reactor.advance(0.25)
        self.network.reactor.advance(2.0)
        self.network.carry()
        self.network.advance(1, 0.05)
        self.assertEqual(("up", ["up"] * len(self.changes)), (link.state, self.changes))

    def test_idle_peer_that_answers_is_alive(self) -> None:
        link = self.link()
        self.network.advance(60, 0.1)
        self.assertEqual("up", link.state)
        self.assertEqual(1, self.endpoint.attempts)

    def test_killed_peer_is_known_at_once(self) -> None:
        link = self.link()
        self.endpoint.is_listening = False
        self.endpoint.links[0].kill_server()
        self.network.carry()
        self.assertEqual(("down", ("down", ["connection_lost"])), (link.state, link.health))

    def test_peer_that_comes_back_is_up_within_a_second(self) -> None:
        link = self.link()
        self.endpoint.is_listening = False
        self.endpoint.links[0].kill_server()
        self.network.advance(30)
        self.endpoint.is_listening = True
        self.assertLessEqual(self.time_until("up", link), 1.1)

    def test_peer_that_crashes_on_each_hello_is_asked_less_and_less(self) -> None:
        """Up to once a second."""
        self.link()
        for _ in range(20):
            before = self.endpoint.attempts
            self.endpoint.open_links[-1].kill_server()
            while self.endpoint.attempts == before:
                self.network.advance(STEP, STEP)
            self.network.carry()
        before = self.endpoint.attempts
        self.endpoint.open_links[-1].kill_server()
        self.network.advance(0.4, STEP)
        self.assertEqual(before, self.endpoint.attempts)


class TrustTests(ControlTestCase):
    secret = SECRET

    def test_same_secret_is_up(self) -> None:
        self.assertEqual("up", self.link().state)

    def test_wrong_secret_is_refused_and_nothing_is_told(self) -> None:
        self.go_live()
        link = self.link(secret=ClusterSecret(b"another secret, as long"))
        self.assertEqual(("down", "refused", {}), (link.state, link.why, link.catalogue))
        self.assertEqual([], self.node.control.neighbours)

    def test_server_that_can_t_prove_itself_is_no_node(self) -> None:
        """A plain RTMP server, or one that claims our name: its catalogue is not believed."""
        impostor, endpoint = make_node(self.network, secret=None)
        settings = ClientSettings(
            identity=NodeIdentity(name="agg1", tier="aggregator", secret=SECRET),
            limits=DEFAULT_LIMITS,
            clock=self.network.reactor,
        )
        link = ControlLink("o1", endpoint, settings, lambda link: None)
        self.links.append(link)
        link.start()
        self.network.carry()
        self.assertEqual(("foreign", {}), (link.state, link.catalogue))
        self.network.advance(1)
        self.assertEqual([], endpoint.open_links)
        stop_node(self.network, impostor)


class Neighbour(Player):
    """A node by what it says at connect: without a secret, one on this host is believed."""

    def __init__(self, **options) -> None:
        super().__init__(properties={"relayNode": "a1", "relayTier": "distributor"}, **options)

    @property
    def positions(self):
        """What the upstream said of the bytes that follow, each time."""
        infos = [event.info for event in self.events if isinstance(event, PlayStarted | StatusReceived)]
        return [told for told in map(read_position, infos) if told is not None]


class ReplicateTests(ControlTestCase):
    """``play name?epoch=E&offset=N``: where the bytes that follow stand."""

    def setUp(self) -> None:
        super().setUp()
        self.stream = self.go_live()
        self.log = self.stream.log

    def ask(self, epoch, offset) -> Neighbour:
        return connect(self.network, self.endpoint, Neighbour(play=f"demo?epoch={epoch}&offset={offset}"))

    def test_exact_position_is_served_from_that_byte(self) -> None:
        offset = self.log.join_points[1].offset
        copy = self.ask(self.log.epoch, offset)
        self.assertEqual(
            [(self.log.epoch, offset, None)], [(told.epoch, told.offset, told.start) for told in copy.positions]
        )
        self.assertEqual(MESSAGES[13:], copy.media)

    def test_end_is_a_position_and_what_comes_follows(self) -> None:
        copy = self.ask(self.log.epoch, self.log.end)
        publish(self.stream, gops(1, start=1200))
        self.network.carry()
        self.assertEqual(gops(1, start=1200), copy.media)

    def test_unknown_position_starts_a_little_back_and_says_so(self) -> None:
        """So that whoever turns to the copy later, from another that has died, is not behind its first byte."""
        publish(self.stream, gops(10, start=1200))
        for epoch, offset in ((0, 0), (self.log.epoch + 1, 5), ("x", "y"), (-1, -5), (10**30, 10**30)):
            copy = self.ask(epoch, offset)
            (told,) = copy.positions
            join = self.log.copy_start()
            start = LogStart(join.offset, join.flv_offset, join.time_ms, join.headers)
            self.assertEqual((self.log.epoch, start), (told.epoch, told.start))
            self.assertEqual(gops(10, start=1200)[20:], copy.media)

    def test_copy_is_told_what_it_catches_up_with(self) -> None:
        (told,) = self.ask(0, 0).positions
        self.assertEqual(self.log.end, told.end)
        (told,) = self.ask(self.log.epoch, self.log.end).positions
        self.assertEqual(0, told.end)

    def test_copy_of_another_epoch_of_the_same_media_repeats_no_more_than_it_must(self) -> None:
        """Two servers that take in one feed have epochs of their own, and the same times."""
        publish(self.stream, gops(10, start=1200))
        newest, back = self.log.newest_join_point(), self.log.copy_start()
        for time_ms, start in ((5000, newest), (back.time_ms, newest), (back.time_ms - 1, back)):
            asked = f"demo?epoch={self.log.epoch + 1}&offset=5&time={time_ms}"
            (told,) = connect(self.network, self.endpoint, Neighbour(play=asked)).positions
            self.assertEqual(start.offset, told.offset)

    def test_stream_that_has_just_begun_is_copied_from_its_first_byte(self) -> None:
        """Both members of a pair have the same bytes then, whoever was there first."""
        copy = self.ask(0, 0)
        (told,) = copy.positions
        self.assertEqual((LogStart(), MESSAGES), (told.start, copy.media))

    def test_stream_that_is_not_here_is_refused(self) -> None:
        copy = connect(self.network, self.endpoint, Neighbour(play="absent?epoch=0&offset=0"))
        self.assertEqual((["NetStream.Play.StreamNotFound"], 1), (copy.codes, len(copy.ends)))

    def test_copy_ahead_of_us_waits_for_its_byte(self) -> None:
        """It has read on at our partner, which is a moment ahead: no byte is sent twice."""
        ahead = memory_log([*MESSAGES, *gops(1, start=1200)]).end
        copy = self.ask(self.log.epoch, ahead)
        self.assertEqual([], copy.positions)
        publish(self.stream, gops(1, start=1200))
        publish(self.stream, gops(1, start=1600))
        self.network.carry()
        self.assertEqual(
            [(self.log.epoch, ahead, None)], [(told.epoch, told.offset, told.start) for told in copy.positions]
        )
        self.assertEqual(gops(1, start=1600), copy.media)

    def test_copy_ahead_of_a_writer_makes_it_begin_a_new_epoch(self) -> None:
        """What was lost here may not be overwritten with other bytes."""
        told: list[int] = []
        self.node.control.on_ahead = lambda stream, offset: told.append(offset)
        copy = self.ask(self.log.epoch, self.log.end + 5)
        self.assertEqual([self.log.end + 5], told)
        copy.transport.loseConnection()
        self.network.carry()

    def test_copy_in_the_former_epoch_reads_it_to_the_end_and_crosses(self) -> None:
        old, offset = self.log, self.log.join_points[2].offset
        self.stream.succeed(memory_log(epoch=old.epoch + 1, start=LogStart(time_ms=1200)))
        publish(self.stream, [avc_header(1200), *gops(1, start=1200)])
        copy = self.ask(old.epoch, offset)
        self.assertEqual([*MESSAGES[23:], avc_header(1200), *gops(1, start=1200)], copy.media)
        self.assertEqual([(old.epoch, offset), (old.epoch + 1, 0)], [(t.epoch, t.offset) for t in copy.positions])
        self.assertIsNotNone(copy.positions[1].start)

    def test_copy_is_told_the_end_and_stays(self) -> None:
        copy = self.ask(self.log.epoch, self.log.end)
        self.stream.end()
        self.network.carry()
        self.assertEqual(("Relay.Ended", []), (copy.codes[-1], copy.ends))
        self.stream.log.reopen()
        publish(self.stream, gops(1, start=1200))
        self.network.carry()
        self.assertEqual(gops(1, start=1200), copy.media)
        self.stream.end()
        self.network.carry()
        self.assertEqual(2, copy.codes.count("Relay.Ended"))

    def test_neighbour_s_unknown_command_is_refused_and_it_stays(self) -> None:
        peer = connect(self.network, self.endpoint, Neighbour())
        peer.session.call("relayNothing")
        peer.flush()
        self.network.carry()
        (answer,) = [event for event in peer.events if isinstance(event, CommandAnswered)]
        self.assertEqual((True, []), (answer.is_error, peer.ends))

    def test_report_that_is_none_closes_that_connection(self) -> None:
        self.node.control.on_report = lambda entry: None
        for report in ([5.0], [{}], [{"name": "../x"}], [None]):
            peer = connect(self.network, self.endpoint, Neighbour())
            peer.session.send_command("relayHello", 0, report)
            peer.flush()
            self.network.carry()
            self.assertEqual(1, len(peer.ends), report)


class BalancerTests(ControlTestCase):
    """What is said of sessions, and must be answered."""

    def balancer(self, name: str = "lb1") -> Player:
        properties = {"relayNode": name, "relayTier": "balancer"}
        peer = connect(self.network, self.endpoint, Player(properties=properties))
        peer.session.send_command("relayHello", 0, [])
        peer.flush()
        self.network.carry()
        return peer

    def heard(self, peer: Player) -> list[tuple[str, list]]:
        self.network.carry()
        commands = [event for event in peer.events if isinstance(event, CommandReceived)]
        return [(event.name, event.values) for event in commands if event.name.startswith("relayS")]

    def answer(self, peer: Player) -> None:
        (asked,) = [event for event in peer.events if isinstance(event, CommandReceived) and event.transaction_id]
        peer.session.answer_command(asked.transaction_id)
        peer.flush()
        self.network.carry()

    def test_balancer_is_told_and_asked_by_its_name(self) -> None:
        other, peer = self.balancer("lb2"), self.balancer()
        self.assertTrue(self.node.control.tell_balancer("lb1", "relayStatus", "id", 5.0))
        asked = self.node.control.ask_balancer("lb1", "relaySuspend", "id", 7.0)
        self.assertEqual([("relayStatus", ["id", 5.0]), ("relaySuspend", ["id", 7.0])], self.heard(peer))
        self.assertEqual([], self.heard(other))
        self.assertNoResult(asked)
        self.answer(peer)
        self.assertIsNone(self.successResultOf(asked))

    def test_balancer_that_is_not_connected_is_neither(self) -> None:
        self.balancer("lb2")
        self.assertFalse(self.node.control.tell_balancer("lb1", "relayStatus"))
        self.assertIsNone(self.node.control.ask_balancer("lb1", "relaySuspend"))

    def test_nobody_waits_for_a_balancer_that_is_gone(self) -> None:
        peer = self.balancer()
        asked = self.node.control.ask_balancer("lb1", "relaySuspend", "id", 7.0)
        peer.transport.abortConnection()
        self.network.carry()
        self.failureResultOf(asked, BalancerLost)

    def test_restarted_balancer_s_newest_connection_is_spoken_to(self) -> None:
        old, new = self.balancer(), self.balancer()
        self.node.control.tell_balancer("lb1", "relayStatus")
        self.assertEqual(([], 1), (self.heard(old), len(self.heard(new))))

    def test_answers_that_nobody_asked_for_mean_nothing(self) -> None:
        """From a balancer, and from any viewer: nan, infinity, another's number."""
        peer, viewer = self.balancer(), self.client()
        asked = self.node.control.ask_balancer("lb1", "relaySuspend", "id", 7.0)
        for number in (float("nan"), float("inf"), -1.0, 0.0, 99.0, 1.0):
            viewer.session.answer_command(number)
            viewer.flush()
        for number in (float("nan"), float("inf"), -1.0, 0.0, 99.0):
            peer.session.answer_command(number)
            peer.flush()
        self.network.carry()
        self.assertNoResult(asked)
        self.assertEqual(([], []), (peer.ends, viewer.ends))
        self.answer(peer)
        self.successResultOf(asked)

    def client(self) -> Player:
        return connect(self.network, self.endpoint, Player())

    def test_link_answers_what_it_is_asked(self) -> None:
        """And hands what is said of sessions to whoever keeps their book."""
        said: list[tuple[str, list]] = []
        settings = ClientSettings(
            identity=NodeIdentity(name="lb1", tier="balancer"), limits=DEFAULT_LIMITS, clock=self.network.reactor
        )
        link = ControlLink(
            "agg1",
            self.endpoint,
            settings,
            lambda link: None,
            on_session=lambda link, name, values: said.append((name, values)),
        )
        self.links.append(link)
        link.start()
        self.network.carry()
        asked = self.node.control.ask_balancer("lb1", "relaySuspend", "id", 7.0)
        self.node.control.tell_balancer("lb1", "relayCheckpoint", "id", 8.0)
        self.network.carry()
        self.successResultOf(asked)
        self.assertEqual([("relaySuspend", ["id", 7.0]), ("relayCheckpoint", ["id", 8.0])], said)


class ToldTests(SynchronousTestCase):
    def test_entry_survives_the_wire(self) -> None:
        entry = CatalogueEntry(name=NAME, epoch=1 << 52, start=7, end=1 << 40, time_ms=5, is_live=True)
        self.assertEqual(entry, CatalogueEntry.from_wire(entry.to_wire()))

    def test_silent_neighbour_is_no_neighbour(self) -> None:
        """A connection that never says hello is not told anything."""
        network = MemoryNetwork()
        node, endpoint = make_node(network)
        connect(network, endpoint, Recorder())
        self.assertEqual([], node.control.neighbours)
        stop_node(network, node)


@given(amf_values())
def test_whatever_a_neighbour_calls_an_entry_is_one_or_is_refused(value) -> None:
    try:
        entry = CatalogueEntry.from_wire(value)
    except RemoteProtocolError:
        return
    assert isinstance(entry.name, StreamName)


@given(st.lists(amf_values(), max_size=3), st.sampled_from(("Catalogue", "Stream", "Gone", "Health", "Else")))
def test_whatever_a_neighbour_tells_is_taken_or_refused(values, what) -> None:
    network = MemoryNetwork()
    endpoint = network.endpoint(Factory.forProtocol(Recorder))
    settings = ClientSettings(limits=DEFAULT_LIMITS, clock=network.reactor)
    link = ControlLink("o1", endpoint, settings, lambda link: None)

    try:
        link.told(CommandReceived(name=f"relay{what}", transaction_id=0, values=values))
    except RemoteProtocolError:
        return
    assert all(isinstance(name, StreamName) for name in link.catalogue)
