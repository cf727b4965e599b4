"""The cluster file: what it gives, and that each mistake is one clear line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

import relay
from relay.errors import ConfigError
from relay.names import StreamName
from relay.tiers.clusterfile import DEFAULT_TOML, ClusterSpec, default_cluster, load

EXAMPLE = Path(relay.__file__).parent.parent / "examples" / "cluster.toml"


class BuiltInClusterTests(SynchronousTestCase):
    """``twistd -n relay`` without a file."""

    def test_nodes_are_one_origin_two_pairs_two_aggregators_one_balancer(self) -> None:
        """The cluster of the promise, as small as it can be."""
        self.assertEqual(
            ["o1", "a1", "a2", "b1", "b2", "agg1", "agg2", "lb1"],
            [node.name for node in default_cluster()],
        )

    def test_only_the_balancer_is_reached_from_elsewhere(self) -> None:
        """Everything else, admin pages above all, listens on loopback."""
        self.assertEqual(
            {"lb1": None},
            {node.name: node.listen.address for node in default_cluster() if node.listen.address != "127.0.0.1"},
        )
        self.assertEqual({"127.0.0.1"}, {node.admin.address for node in default_cluster() if node.admin})

    def test_each_stream_is_carried_by_exactly_one_pair(self) -> None:
        """The patterns of the two pairs leave nothing out and share nothing."""
        first, second = default_cluster().pairs
        for letter in "abmnzAMNZ059_-":
            name = StreamName("live", letter + "x")
            self.assertNotEqual(name.matches(first.streams), name.matches(second.streams), str(name))

    def test_demo_stream_is_carried_by_pair_a(self) -> None:
        """So that a1 can be killed and something is seen."""
        cluster = default_cluster()
        self.assertEqual(StreamName("live", "demo"), cluster.demo)
        self.assertTrue(cluster.demo and cluster.demo.matches(cluster.pairs[0].streams))

    def test_example_file_is_the_built_in_cluster(self) -> None:
        """What the example explains is what runs without it."""
        self.assertEqual(list(default_cluster()), list(load(EXAMPLE)))
        self.assertEqual(tomllib.loads(DEFAULT_TOML), tomllib.loads(EXAMPLE.read_text()))


class CommandLineTests(SynchronousTestCase):
    """The argv of each node."""

    def setUp(self) -> None:
        self.cluster = default_cluster()

    def line(self, name: str) -> str:
        return " ".join(self.cluster.command_line(self.cluster.node(name)))

    def test_origin(self) -> None:
        self.assertEqual(
            "twistd -n relay-origin --name o1 --listen tcp:1936:interface=127.0.0.1"
            " --admin tcp:8081:interface=127.0.0.1",
            self.line("o1"),
        )

    def test_distributor_names_the_origin_and_its_streams(self) -> None:
        self.assertEqual(
            "twistd -n relay-distributor --name b2 --listen tcp:1952:interface=127.0.0.1"
            " --admin tcp:8085:interface=127.0.0.1"
            " --upstream tcp:127.0.0.1:1936 --streams */[!0-9A-Ma-m]*",
            self.line("b2"),
        )

    def test_aggregators_prefer_different_members(self) -> None:
        """The first of a pair is the preferred one."""
        self.assertIn("--pair a=tcp:127.0.0.1:1941,tcp:127.0.0.1:1942 --pair b=tcp:127.0.0.1:1951,", self.line("agg1"))
        self.assertIn("--pair a=tcp:127.0.0.1:1942,tcp:127.0.0.1:1941 --pair b=tcp:127.0.0.1:1952,", self.line("agg2"))

    def test_balancer_knows_every_aggregator(self) -> None:
        self.assertEqual(
            "twistd -n relay-balancer --name lb1 --listen tcp:1935 --admin tcp:8088:interface=127.0.0.1"
            " --aggregator agg1=tcp:127.0.0.1:1961 --aggregator agg2=tcp:127.0.0.1:1962",
            self.line("lb1"),
        )


def changed(tmp_path: Path, *changes: tuple[str, str], top: str = "") -> ClusterSpec:
    """The built-in cluster with some of its text replaced, and more keys at the top."""
    text = DEFAULT_TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "c.toml"
    path.write_text(top + text)
    return load(path)


def line(cluster: ClusterSpec, name: str) -> str:
    return " ".join(cluster.command_line(cluster.node(name)))


def test_store_and_secret_are_relative_to_the_file(tmp_path: Path) -> None:
    """The file can be moved with what belongs to it; stores are for the tiers that have one."""
    cluster = changed(tmp_path, top='store = "logs"\nsecret_file = "s"\n')
    assert f"--store {tmp_path}/logs/o1 --secret-file {tmp_path}/s" in line(cluster, "o1")
    assert f"--store {tmp_path}/logs/a1" in line(cluster, "a1")
    assert "--store" not in line(cluster, "agg1")
    assert f"--secret-file {tmp_path}/s" in line(cluster, "lb1")


def test_nodes_on_other_machines_are_reached_at_their_host(tmp_path: Path) -> None:
    """Equal ports are no fault there."""
    cluster = changed(
        tmp_path,
        ("tcp:1936:interface=127.0.0.1", 'tcp:1935"\nhost = "10.0.0.1'),
        ("tcp:1941:interface=127.0.0.1", 'tcp:1935:interface=10.0.0.2"\nadmin = "tcp:8088'),
        ('admin = "tcp:8082:interface=127.0.0.1"', ""),
        ("tcp:1942:interface=127.0.0.1", 'tcp:1935"\nhost = "fd00::3'),
    )
    assert "--upstream tcp:10.0.0.1:1935" in line(cluster, "b1")
    assert r"--pair a=tcp:10.0.0.2:1935,tcp:fd00\:\:3:1935" in line(cluster, "agg1")
    assert cluster.hosts == ("10.0.0.1", "10.0.0.2", "fd00::3", "127.0.0.1")


def test_options_of_a_tier_are_handed_on(tmp_path: Path) -> None:
    """Everything that a node's own command can be told, the file can say."""
    cluster = changed(
        tmp_path,
        (
            'name = "o1"',
            'name = "o1"\nsecond_publisher = "standby"\npull = { "live/x" = "rtmp://192.0.2.1/live/x" }\n'
            'trust_proxy = ["10.0.0.0/8"]\noptions = ["--keep-seconds=600"]',
        ),
        ('name = "a"', 'name = "a"\nupstreams = ["o1", "tcp:192.0.2.1:1935"]'),
        ('name = "agg1"', 'name = "agg1"\nread = "merge"\nprefer = { b = "b2" }'),
        ('name = "lb1"', 'name = "lb1"\npolicy = "least-viewers"\npin = "agg2"'),
    )
    assert line(cluster, "o1").endswith(
        " --trust-proxy 10.0.0.0/8 --second-publisher standby --pull live/x=rtmp://192.0.2.1/live/x --keep-seconds=600"
    )
    assert "--upstream tcp:127.0.0.1:1936 --upstream tcp:192.0.2.1:1935 --streams" in line(cluster, "a2")
    assert line(cluster, "agg1").endswith(
        "--pair a=tcp:127.0.0.1:1941,tcp:127.0.0.1:1942 --pair b=tcp:127.0.0.1:1952,tcp:127.0.0.1:1951 --read merge"
    )
    assert line(cluster, "lb1").endswith("--policy least-viewers --pin agg2")


O1_LISTEN = '"tcp:1936:interface=127.0.0.1"'

MISTAKES = {
    "unknown key at the top": (
        "colour = 1\n",
        (),
        "colour = 1: no such key here; there are store, secret_file, demo, origin, pair, aggregator, balancer",
    ),
    "unknown key of a node": (
        "",
        [('name = "a2"', 'name = "a2"\nstrems = ["*"]')],
        'pair "a": distributor "a2": strems = [\'*\']: no such key here; there are name, listen, host, connect, admin,'
        " trust_proxy, options",
    ),
    "wrong type": ("store = 3\n", (), "store = 3: must be a string"),
    "true is no string": ("store = true\n", (), "store = True: must be a string"),
    "list for a table": ("", [('name = "o1"', 'name = "o1"\npull = ["x"]')], "must be a table of strings"),
    "number in a list of strings": (
        "",
        [('["*/[0-9A-Ma-m]*"]', "[1]")],
        'pair "a": streams = [1]: must be a list of strings',
    ),
    "no name": ("", [('name = "lb1"\n', "")], "balancer number 1: name is missing"),
    "no listen": ("", [(f"listen = {O1_LISTEN}\n", "")], 'origin "o1": listen is missing'),
    "bad name": ("", [('"lb1"', '"l b"')], "balancer \"l b\": name = 'l b': name 'l b' is not 1 to 128"),
    "empty text": ('store = ""\n', (), "store = '': must not be empty"),
    "bad stream": ("", [("live/demo", "demo")], "demo = 'demo': 'demo' is not APP/NAME"),
    "endpoint of no known type": (
        "",
        [(O1_LISTEN, '"1936"')],
        "listen = '1936': no endpoint; one begins with tcp:, tcp6:, ssl:, unix:, systemd:",
    ),
    "endpoint without port": ("", [(O1_LISTEN, '"tcp:interface=x"')], "the endpoint has no port"),
    "port that is none": ("", [(O1_LISTEN, '"tcp:99999"')], "'99999' is no port (0 to 65535)"),
    "port in words": ("", [(O1_LISTEN, '"tcp:http"')], "'http' is no port (0 to 65535)"),
    "listen that says no port to connect to": (
        "",
        [(O1_LISTEN, '"unix:/run/o1.sock"')],
        "listen = 'unix:/run/o1.sock': how others reach it can't be told from this: say connect = …",
    ),
    "bad connect": (
        "",
        [(O1_LISTEN, O1_LISTEN + '\nconnect = "tcp:1.2.3.4"')],
        "connect = 'tcp:1.2.3.4': the endpoint has no port",
    ),
    "host name": ("", [('name = "o1"', 'name = "o1"\nhost = "o1.example"')], "must be an IP address"),
    "bad network": ("", [('name = "o1"', 'name = "o1"\ntrust_proxy = ["1.2.3.4/40"]')], "trust_proxy = '1.2.3.4/40'"),
    "two nodes of one name": ("", [('"a2"', '"a1"')], "two nodes are called 'a1'"),
    "two pairs of one name": ("", [('name = "b"', 'name = "a"')], "two pairs are called 'a'"),
    "two nodes on one port": (
        "",
        [("tcp:1942:", "tcp:1941:")],
        "listen of a2 = 'tcp:1941:interface=127.0.0.1': taken by listen of a1, 'tcp:1941:interface=127.0.0.1'",
    ),
    "one port on all interfaces and on one": (
        "",
        [("tcp:1936:", "tcp:1935:")],
        "listen of lb1 = 'tcp:1935': taken by listen of o1, 'tcp:1935:interface=127.0.0.1'",
    ),
    "unknown upstream": (
        "",
        [('name = "a"', 'name = "a"\nupstreams = ["o9"]')],
        "pair \"a\": upstreams = 'o9': must be one of o1",
    ),
    "unknown pair preferred": (
        "",
        [('name = "agg1"', 'name = "agg1"\nprefer = { c = "a1" }')],
        "aggregator \"agg1\": prefer = 'c': must be one of a, b",
    ),
    "member of another pair preferred": (
        "",
        [('name = "agg1"', 'name = "agg1"\nprefer = { b = "a1" }')],
        "prefer.b = 'a1': must be one of b1, b2",
    ),
    "unknown aggregator": ("", [('name = "lb1"', 'name = "lb1"\npin = "agg3"')], "must be one of agg1, agg2"),
    "unknown choice": (
        "",
        [('name = "lb1"', 'name = "lb1"\npolicy = "random"')],
        "policy = 'random': must be one of any, source-hash, least-viewers",
    ),
    "pull of a bad name": (
        "",
        [('name = "o1"', 'name = "o1"\npull = { "x" = "rtmp://h/a/b" }')],
        "origin \"o1\": pull = 'x': 'x' is not APP/NAME",
    ),
    "pull of a bad URL": (
        "",
        [('name = "o1"', 'name = "o1"\npull = { "a/b" = "http://h/a/b" }')],
        "pull.a/b = 'http://h/a/b': must be an rtmp:// or rtmps:// URL",
    ),
    "pair of one": (
        "",
        [('[[pair.distributor]]\nname = "a2"', "[pair.x]\n")],
        'pair "a": exactly 2 [[distributor]] wanted, 1 found',
    ),
    "no processes": ("", [('name = "agg1"', 'name = "agg1"\nprocesses = 0')], "processes = 0: must be 1 to 64"),
    "processes in words": (
        "",
        [('name = "agg1"', 'name = "agg1"\nprocesses = "two"')],
        "aggregator \"agg1\": processes = 'two': must be a whole number",
    ),
    "processes of an origin": ("", [('name = "o1"', 'name = "o1"\nprocesses = 2')], "no such key here"),
    "processes without a port": (
        "",
        [
            (
                'name = "lb1"\nlisten = "tcp:1935"',
                'name = "lb1"\nprocesses = 2\nconnect = "tcp:1.2.3.4:1"\nlisten = "unix:/x"',
            )
        ],
        "listen = 'unix:/x': 2 processes need a TCP port",
    ),
    "processes at one place": (
        "",
        [('name = "agg1"', 'name = "agg1"\nprocesses = 2\nconnect = "tcp:10.0.0.1:1961"')],
        "connect = 'tcp:10.0.0.1:1961': each process has a port of its own: leave it out",
    ),
    "ports of processes that are taken": (
        "",
        [('name = "agg1"', 'name = "agg1"\nprocesses = 2')],
        "listen of agg2 = 'tcp:1962:interface=127.0.0.1': taken by listen of agg1.2",
    ),
    "not TOML": ("= 1\n", (), "not TOML: "),
}


MANY = (
    ('name = "agg1"', 'name = "agg1"\nprocesses = 2'),
    ("tcp:1962:", "tcp:1972:"),
    ("tcp:8086:", "tcp:8186:"),
    ('name = "lb1"', 'name = "lb1"\nprocesses = 3\noptions = ["--handover=/run/lb1.{process}"]'),
)


def test_aggregator_of_several_processes_is_as_many_aggregators(tmp_path: Path) -> None:
    """Each with its own ports, all with the same preferences; balancers know them all."""
    cluster = changed(tmp_path, *MANY)
    assert [node.name for node in cluster.aggregators] == ["agg1.1", "agg1.2", "agg2"]
    assert "--listen tcp:1961:interface=127.0.0.1 --admin tcp:8186:interface=127.0.0.1" in line(cluster, "agg1.1")
    assert "--listen tcp:1962:interface=127.0.0.1 --admin tcp:8187:interface=127.0.0.1" in line(cluster, "agg1.2")
    assert "--pair a=tcp:127.0.0.1:1941,tcp:127.0.0.1:1942" in line(cluster, "agg1.2")
    for number in (1, 2, 3):
        assert "--aggregator agg1.1=tcp:127.0.0.1:1961 --aggregator agg1.2=tcp:127.0.0.1:1962" in line(
            cluster, f"lb1.{number}"
        )


def test_balancer_of_several_processes_has_one_port(tmp_path: Path) -> None:
    """Each has an admin port, and what its options say in its place."""
    cluster = changed(tmp_path, *MANY)
    assert [node.name for node in cluster.balancers] == ["lb1.1", "lb1.2", "lb1.3"]
    for number in (1, 2, 3):
        words = line(cluster, f"lb1.{number}")
        assert f"--listen tcp:1935 --admin tcp:{8087 + number}:interface=127.0.0.1" in words
        assert words.endswith(f"--reuse-port --handover=/run/lb1.{number}")
    assert "--reuse-port" not in line(default_cluster(), "lb1")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_clear_line(tmp_path: Path, mistake: str) -> None:
    """It names the file, the place, the key, the value and the reason."""
    top, changes, expected = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        changed(tmp_path, *changes, top=top)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "c.toml"))
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    """So is one that can't be read."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file or directory"):
        load(tmp_path / "nowhere.toml")


def test_unknown_node_is_answered_with_those_that_are(tmp_path: Path) -> None:
    """``--node`` with a typing mistake."""
    with pytest.raises(ConfigError, match="no node is called 'a3'; there are o1, a1, a2, b1"):
        default_cluster().node("a3")


def test_no_tier_may_be_empty(tmp_path: Path) -> None:
    """A cluster without a balancer serves nobody."""
    path = tmp_path / "c.toml"
    path.write_text(DEFAULT_TOML[: DEFAULT_TOML.index("[[balancer]]")])
    with pytest.raises(ConfigError, match=r"at least one \[\[balancer\]\] wanted, 0 found"):
        load(path)
