"""The pages in a real browser: what is shown, whether it plays, and what one sees when nodes are killed.

Chromium, headless, driven by Playwright in a thread.  Screenshots are kept in ``$RELAY_ARTIFACTS``, where that is set.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.threads import deferToThread

from relay.admin.cluster import PLAYER
from relay.admin.site import static_file
from tests.cluster import until
from tests.programs import require_file, require_module, require_program
from tests.tiers.test_cluster import SMALL_CLUSTER, START_SECONDS, children, free_ports
from tests.tiers.test_cluster import ClusterTestCase as RelayTestCase

pytestmark = pytest.mark.net

BROWSER = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
)
PATIENCE_MS, LOOK_MS = 60_000, 100
LONGEST_PAUSE_SECONDS = 1.5
SECOND_AGGREGATOR = """
[[aggregator]]
name = "agg2"
listen = "tcp:{0}:interface=127.0.0.1"
admin = "tcp:{1}:interface=127.0.0.1"
[[balancer]]
"""
SAMPLER = """() => {
  window.samples = { time: video.currentTime, at: performance.now(), longest: 0 };
  setInterval(() => {
    const now = performance.now();
    if (video.currentTime === samples.time) samples.longest = Math.max(samples.longest, now - samples.at);
    else window.samples = { time: video.currentTime, at: now, longest: samples.longest };
  }, 50);
}"""


class Pages:
    """A browser, and what went wrong in it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.problems: list[str] = []
        self._browser = browser
        self._url = url

    def open(self, path: str, **how: Any) -> Any:
        """A page that tells its errors."""
        page = self._browser.new_page(**how)
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.goto(f"{self._url}{path}")
        return page

    @staticmethod
    def keep(page: Any, name: str) -> None:
        """A screenshot, for people."""
        artifacts = os.environ.get("RELAY_ARTIFACTS")
        if artifacts:
            page.screenshot(path=str(Path(artifacts) / f"{name}.png"), full_page=True)


@contextmanager
def chromium(url: str) -> Iterator[Pages]:
    """Playwright's driver and a browser, both gone afterwards."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=require_program("chromium"), args=list(BROWSER))
        try:
            yield Pages(browser, url)
        finally:
            browser.close()


def wait_until(page: Any, expression: str) -> None:
    """Until this JavaScript is true in the page.  (Playwright has a way that is ``eval``: the policy denies it.)"""
    for _ in range(PATIENCE_MS // LOOK_MS):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(LOOK_MS)
    raise AssertionError(f"not within {PATIENCE_MS} ms: {expression}")


def objections(page: Any) -> list[str]:
    """What axe-core has against a page's accessibility."""
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415

    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}" for each in found]


class BrowserTests(RelayTestCase):
    """``twistd relay`` with two aggregators, and a browser."""

    async def browse(self, look: Callable[[Pages], None]) -> None:
        """Run ``look`` in a thread; it may kill nodes."""
        for module in ("playwright", "axe_playwright_python"):
            require_module(module)
        require_program("chromium")
        await deferToThread(self._browse, look)

    def _browse(self, look: Callable[[Pages], None]) -> None:
        with chromium(f"http://127.0.0.1:{self.page}/") as pages:
            look(pages)
            self.assertEqual([], pages.problems)

    async def start(self) -> None:
        """The cluster."""
        text = SMALL_CLUSTER.format(*self.ports).replace("[[balancer]]", SECOND_AGGREGATOR.format(*free_ports(2)))
        self.config.write_text(text)
        page = f"tcp:{self.page}:interface=127.0.0.1"
        self.relay = self.twistd("relay", "--config", str(self.config), "--admin", page)
        await until(lambda: b"agg2 is up for viewers" in self.relay.out, "it runs", START_SECONDS)

    def kill(self, name: str) -> None:
        """One of its nodes."""
        os.kill(children(self.relay.pid)[name], signal.SIGKILL)

    async def test_nobody_who_watches_the_page_misses_anything(self) -> None:
        """The walk: the cluster, its streams, the player; an aggregator and a distributor are killed."""
        require_file(static_file(PLAYER))
        await self.start()
        await self.browse(self._walk)

    def _walk(self, pages: Pages) -> None:
        cluster = pages.open("", viewport={"width": 1280, "height": 900})
        wait_until(cluster, "document.querySelectorAll('article.normal').length === 6")
        cluster.wait_for_selector("#edges path.active", state="attached")
        pages.keep(cluster, "1-cluster")

        watched = pages.open("watch?stream=live/demo", viewport={"width": 900, "height": 900})
        wait_until(watched, "video.currentTime > 2")
        watched.evaluate(SAMPLER)
        cluster.wait_for_selector("article[data-key=lb1] .facts:text-is('1 viewer')")
        serving = cluster.evaluate(
            "shown.find((node) => node.name === 'lb1').links.find((link) => link.viewers > 0).name"
        )
        self.kill(serving)
        watched.wait_for_selector(f"#events li[data-kind=aggregator]:has-text('{serving} is down')")
        cluster.wait_for_selector(f"article.down[data-key={serving}]")
        cluster.wait_for_selector("#edges path.lost, #edges path.fresh", state="attached")
        pages.keep(cluster, "2-aggregator-killed")
        wait_until(cluster, "document.querySelectorAll('article.normal').length === 6")

        read = cluster.evaluate(
            f"shown.find((node) => node.name !== '{serving}' && node.tier === 'aggregator')"
            ".links.find((link) => link.role === 'active').name"
        )
        self.kill(read)
        cluster.wait_for_selector("#events li[data-kind=failover]")
        cluster.wait_for_selector(f"#events li[data-kind=process]:has-text('{read}: its process has ended')")
        pages.keep(cluster, "3-distributor-killed")
        wait_until(cluster, "document.querySelectorAll('article.normal').length === 6")
        seen = watched.evaluate("video.currentTime")
        wait_until(watched, f"video.currentTime > {seen + 2}")
        pages.keep(watched, "4-watching")
        pages.keep(cluster, "5-mended")

        longest = watched.evaluate("samples.longest") / 1000
        self.assertLess(longest, LONGEST_PAUSE_SECONDS)
        self.assertEqual(0, watched.evaluate("video.error ? 1 : 0"))
        self.assertEqual(0, watched.evaluate("failures"))

    async def test_pages_are_for_everybody(self) -> None:
        """By keyboard and screen reader, in light and dark, on a phone; nothing is asked of anybody else."""
        await self.start()
        await self.browse(self._visit)

    def _visit(self, pages: Pages) -> None:
        for scheme in ("light", "dark"):
            for path, name in (("", "cluster"), ("watch?stream=live/demo", "watch")):
                page = pages.open(path, color_scheme=scheme, viewport={"width": 1280, "height": 900})
                wait_until(page, "document.querySelectorAll('#lines dd').length > 2")
                self.assertEqual([], objections(page), f"{name}, {scheme}")
                page.close()
        phone = pages.open("", viewport={"width": 375, "height": 700}, color_scheme="dark")
        phone.wait_for_selector("article.normal")
        self.assertLessEqual(phone.evaluate("document.documentElement.scrollWidth"), 375)
        pages.keep(phone, "6-phone")
        phone.wait_for_selector("#stream-rows a")
        asked = phone.evaluate("performance.getEntriesByType('resource').map((each) => new URL(each.name).host)")
        self.assertEqual({f"127.0.0.1:{self.page}"}, set(asked))
        phone.evaluate("document.querySelector('#stream-rows a').focus()")
        wait_until(phone, "document.querySelector('#stream-rows td:nth-child(2)').textContent.includes('bit/s')")
        phone.evaluate("new Promise((done) => setTimeout(done, 2500))")  # two updates of the page
        self.assertEqual("live/demo", phone.evaluate("document.activeElement.textContent"))
        phone.keyboard.press("Enter")
        phone.wait_for_url("**/watch?stream=live%2Fdemo")
