"""What foreign clients are told, and over what: refusals, streams that are not there, TLS."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.flv.tags import TagReader
from relay.limits import DEFAULT_LIMITS
from tests.clients import looped, publish, read_clip, watch
from tests.cluster import HOST, LISTEN, ClusterTestCase, Node, Program, until
from tests.players import check_run, ffmpeg_play, ffmpeg_publish, packets_of, read_framecrc
from tests.programs import require_program

pytestmark = [pytest.mark.net, pytest.mark.interop]

STREAM = "live/clip"
CLIP = "h264_aac.flv"
WANTED = 60  # packets
WAIT_SECONDS = 0.5  # for a stream that never comes


def make_certificate() -> bytes:
    """A key and a self-signed certificate for our host, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


class RefusalTests(ClusterTestCase):
    """Foreign programs understand a no."""

    async def test_second_publisher_is_refused_and_ffmpeg_says_why(self) -> None:
        """ffmpeg ends with an error and our words; the first publisher goes on."""
        origin = self.start_origin()
        await self.normal()
        publisher = await publish(self, origin, STREAM, looped(read_clip(CLIP)))
        await origin.stream(STREAM)
        second = self.run_program(*ffmpeg_publish(CLIP, origin.rtmp(STREAM)))
        self.assertNotEqual(0, await second.ended())
        self.assertIn("is being published already", second.text)
        third = await publish(self, origin, STREAM, looped(read_clip(CLIP)))
        self.assertEqual("NetStream.Publish.BadName", await until(lambda: third.outcome, "it is told why"))
        sent = len(publisher.sent)
        await until(lambda: len(publisher.sent) > sent + WANTED, "the first goes on")
        self.assertIsNone(publisher.outcome)

    async def test_unknown_stream_is_waited_for_then_not_found(self) -> None:
        """After the wait, RTMP viewers are told StreamNotFound, HTTP viewers 404, and ffmpeg ends with an error."""
        origin = self.start_origin("--limit", f"stream_wait_seconds={WAIT_SECONDS}")
        distributor = self.start_distributor("a1", origin.endpoint)
        aggregator = self.start_aggregator("agg1", [distributor], "--limit", f"stream_wait_seconds={WAIT_SECONDS}")
        balancer = self.start_balancer("lb1", [aggregator])
        await self.normal()
        for node in (origin, balancer):
            watcher = await watch(self, node, "live/nobody")
            fetching = self.run_program(
                require_program("curl"), "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total}",
                node.flv("live/nobody"),
            )  # fmt: skip
            playing = self.run_program(*ffmpeg_play(node.rtmp("live/nobody"), WANTED))
            await until(lambda watcher=watcher: watcher.outcome, "the viewer is told")
            self.assertEqual("NetStream.Play.StreamNotFound", watcher.outcome)
            self.assertEqual(0, await fetching.ended())
            code, seconds = fetching.out.decode().split()
            self.assertEqual("404", code)
            self.assertGreaterEqual(float(seconds), WAIT_SECONDS)
            self.assertNotEqual(0, await playing.ended())
            self.assertIn("no stream live/nobody", playing.text)

    async def test_only_an_origin_is_published_to(self) -> None:
        """ffmpeg that publishes to an aggregator, through a balancer, is told where it is wrong."""
        aggregator = self.start_aggregator("agg1", [self.start_distributor("a1", self.start_origin().endpoint)])
        balancer = self.start_balancer("lb1", [aggregator])
        await self.normal()
        publishing = self.run_program(*ffmpeg_publish(CLIP, balancer.rtmp(STREAM)))
        self.assertNotEqual(0, await publishing.ended())
        self.assertIn("agg1 is no origin", publishing.text)


class TlsTests(ClusterTestCase):
    """One encrypted port for RTMPS and HTTPS."""

    def setUp(self) -> None:
        super().setUp()
        pem = self.directory / "node.pem"
        pem.write_bytes(make_certificate())
        self.listen = LISTEN.replace("tcp:", "ssl:") + f":privateKey={pem}:certKey={pem}"

    async def test_publishing_and_watching_over_tls(self) -> None:
        """ffmpeg publishes by RTMPS; ffmpeg watches by RTMPS and curl by HTTPS to the end of the broadcast."""
        origin = self.start_origin("--end-seconds", "0.5", listen=self.listen)
        await self.normal()
        watching = self._watch(origin, 10 * WANTED)
        url = origin.rtmp(STREAM, "rtmps")
        self.run_program(*ffmpeg_publish(CLIP, url, loop=False, options=["-tls_verify", "0"]))
        await self._check(*watching)

    async def test_balancer_with_a_certificate(self) -> None:
        """Viewers of a balancer may come over TLS too, whatever is behind it."""
        origin = self.start_origin("--end-seconds", "0.5")
        aggregator = self.start_aggregator("agg1", [self.start_distributor("a1", origin.endpoint)])
        balancer = self.start_node("balancer", "lb1", "--aggregator", f"agg1={aggregator.endpoint}", listen=self.listen)
        await self.normal()
        watching = self._watch(balancer, 10 * WANTED)
        await balancer.when(lambda told: told["viewers"] == len(watching))
        self.run_program(*ffmpeg_publish(CLIP, origin.rtmp(STREAM), loop=False))
        await self._check(*watching)

    def _watch(self, node: Node, wanted: int) -> tuple[Program, Program]:
        playing = self.run_program(*ffmpeg_play(node.rtmp(STREAM, "rtmps"), wanted))
        return playing, self.run_program(require_program("curl"), "-k", "-sN", node.flv(STREAM, "https"))

    async def _check(self, playing: Program, fetching: Program) -> None:
        source = packets_of(read_clip(CLIP))
        self.assertEqual(0, await playing.ended(), playing.text)
        check_run(read_framecrc(playing.out), source, WANTED)
        self.assertEqual(0, await fetching.ended(), fetching.err)
        check_run(packets_of(TagReader(DEFAULT_LIMITS).feed(fetching.out)), source, WANTED)
