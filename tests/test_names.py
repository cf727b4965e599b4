"""The one kind of text from a peer that becomes a key."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from relay.errors import NameRefused
from relay.names import MAX_QUERY_KEYS, split_query


class QueryTests(SynchronousTestCase):
    def test_name_and_keys(self) -> None:
        self.assertEqual(("demo", {"epoch": "7", "token": ""}), split_query("demo?epoch=7&token="))

    def test_too_many_keys_are_refused(self) -> None:
        keys = [f"k{i}=1" for i in range(MAX_QUERY_KEYS + 1)]
        self.assertEqual(MAX_QUERY_KEYS, len(split_query("demo?" + "&".join(keys[1:]))[1]))
        with self.assertRaises(NameRefused):
            split_query("demo?" + "&".join(keys))
