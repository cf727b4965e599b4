"""A row says whether its promise held, and the exit status depends on it."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from relay.drill.judge import Findings
from relay.drill.report import Row, heading, line, total, verdict

CLEAN = Findings(messages=100, pauses=[0.03, 0.05])


def row(**changes: Any) -> Row:
    given = {
        "node": "a1", "fault": "kill", "promise": "nothing is seen", "viewers": 2, "cut": 0, "found": CLEAN,
        "seconds_to_normal": 1.5,
    }  # fmt: skip
    return Row(**(given | changes))


class RowTests(SynchronousTestCase):
    def test_anything_seen_breaks_the_promise_of_a_server_with_a_backup(self) -> None:
        self.assertTrue(row().is_kept)
        for field in ("missing", "repeated", "out_of_order", "backwards"):
            self.assertFalse(row(found=attrs.evolve(CLEAN, **{field: 1})).is_kept, field)
        self.assertFalse(row(cut=1).is_kept)
        self.assertFalse(row(seconds_to_normal=None).is_kept)

    def test_viewers_who_see_nothing_at_all_prove_nothing(self) -> None:
        self.assertFalse(row(found=Findings()).is_kept)

    def test_origin_may_lose_what_was_not_delivered_to_it(self) -> None:
        self.assertTrue(row(promise="the origin's", found=attrs.evolve(CLEAN, missing=9)).is_kept)
        self.assertFalse(row(promise="the origin's", cut=1).is_kept)
        self.assertFalse(row(promise="the origin's", found=attrs.evolve(CLEAN, repeated=1)).is_kept)

    def test_origin_must_come_back_and_be_watched(self) -> None:
        self.assertFalse(row(promise="the origin's", seconds_to_normal=None).is_kept)
        self.assertFalse(row(promise="the origin's", found=Findings()).is_kept)

    def test_viewers_of_a_dead_balancer_must_be_served_when_they_come_again(self) -> None:
        self.assertTrue(row(promise="served again", cut=2, seconds_to_served=1.0).is_kept)
        self.assertFalse(row(promise="served again", cut=2).is_kept)

    def test_what_is_not_promised_stands_in_brackets(self) -> None:
        text = line(row(promise="the origin's", found=attrs.evolve(CLEAN, missing=9)))
        self.assertIn("(9)", text)
        self.assertNotIn("BROKEN", text)
        self.assertIn("BROKEN", line(row(found=attrs.evolve(CLEAN, missing=9))))

    def test_pauses(self) -> None:
        waits = row(found=Findings(messages=1, pauses=[number / 1000 for number in range(1, 201)]))
        self.assertEqual((0.198, 0.2), (waits.pause_p99, waits.pause_max))

    def test_columns_line_up(self) -> None:
        """Each figure ends under the end of its column's name."""
        names, figures = heading(), line(row(viewers=24))
        self.assertEqual(names.index("viewers") + len("viewers"), figures.index("24") + 2)
        self.assertEqual(len(names), len(figures))


class TotalTests(SynchronousTestCase):
    def test_only_servers_with_a_backup_count(self) -> None:
        rows = [row(), row(cut=1, seconds_to_normal=3.0), row(promise="served again", cut=5)]
        summed = total(rows)
        self.assertEqual((1, 3.0, "2"), (summed.cut, summed.seconds_to_normal, summed.fault))

    def test_verdict_names_what_broke(self) -> None:
        self.assertEqual((True, "the promise held"), verdict([row()]))
        self.assertEqual((False, "BROKEN: a2 hang"), verdict([row(), row(node="a2", fault="hang", cut=1)]))
