"""Options that say who may publish and who may play, and what a back-end is asked and told.

Owns their parsing.  Called by the tiers that serve viewers (all but the balancer, which passes bytes on unread) and,
for encoders, by the origin.
"""

from __future__ import annotations

from typing import Any

from twisted.python import usage

from relay.errors import ConfigError
from relay.net.access import PLAY, PUBLISH, AccessRules, read_publish_keys
from relay.net.hooks import ACTIONS, HookSettings, check_hook_url
from relay.net.signing import read_signing_keys
from relay.net.sniffing import parse_networks
from relay.tiers.coercion import number

FAILURES = ("deny", "allow")
MAX_HOOK_SECONDS = 15.0  # less than Limits.first_command_seconds, within which a peer must have begun


class PlayAccessOptions(usage.Options):
    """For nodes that serve viewers."""

    optParameters: list[Any] = [
        ["sign-key-file", None, None, "File with the keys (mode 0600, one a line, 16 bytes or more) that URLs are "
         "signed with: see relay-sign. All verify, so that keys can be rotated."],
        ["on-play", None, None, "URL that is asked, by a POST of JSON as SRS makes it, whether a viewer may play."],
        ["on-play-done", None, None, "URL that is told when a viewer has gone."],
        ["on-failover", None, None, "URL that is told when a copy goes on at another upstream."],
        ["hook-seconds", None, 3.0, "How long such a call may take.",
         number("--hook-seconds", lambda value: 0 < value <= MAX_HOOK_SECONDS, f"above 0, up to {MAX_HOOK_SECONDS:g}")],
        ["hook-failure", None, "deny", "What happens when the URL can't be reached: deny or allow."],
    ]  # fmt: skip
    optFlags = [
        ["sign-play", None, "Viewers need a signed URL."],
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        for action in (PUBLISH, PLAY):
            for word in ("allow", "deny"):
                self[f"{word}-{action}-from"] = []

    def opt_allow_play(self, network: str) -> None:
        """Address or network (CIDR) that may play; then no other may. May be repeated; --deny-play wins."""
        self["allow-play-from"].append(network)

    def opt_deny_play(self, network: str) -> None:
        """Address or network (CIDR) that may not play. May be repeated."""
        self["deny-play-from"].append(network)

    def postOptions(self) -> None:
        super().postOptions()
        if self["hook-failure"] not in FAILURES:
            raise usage.UsageError(f"--hook-failure {self['hook-failure']!r} is none of {', '.join(FAILURES)}")
        for action in (PUBLISH, PLAY):
            if self.get(f"sign-{action}") and not self["sign-key-file"]:
                raise usage.UsageError(f"--sign-{action} wants --sign-key-file")
        self.hooks()
        self._networks("allow")
        self._networks("deny")

    def access(self) -> AccessRules:
        """What is checked at the node.

        Raises:
            ConfigError: a file can't be used.
        """
        key_file, sign_file = self.get("publish-key-file"), self["sign-key-file"]
        return AccessRules(
            allow=self._networks("allow"),
            deny=self._networks("deny"),
            publish_keys=read_publish_keys("--publish-key-file", key_file) if key_file else None,
            signing=read_signing_keys("--sign-key-file", sign_file) if sign_file else None,
            signed=frozenset(action for action in (PUBLISH, PLAY) if self.get(f"sign-{action}")),
        )

    def hooks(self) -> HookSettings:
        """Who is asked and told.

        Raises:
            ConfigError: a URL is none.
        """
        given = {action: self.get(action.replace("_", "-")) for action in ACTIONS}
        return HookSettings(
            urls={action: check_hook_url(f"--{action.replace('_', '-')}", url) for action, url in given.items() if url},
            seconds=self["hook-seconds"],
            lets_in_on_failure=self["hook-failure"] == "allow",
        )

    def _networks(self, word: str) -> dict[str, Any]:
        found = {}
        for action in (PUBLISH, PLAY):
            try:
                found[action] = parse_networks(self[f"{word}-{action}-from"])
            except ValueError as error:
                raise ConfigError(f"--{word}-{action}: {error}") from None
        return found


class PublishAccessOptions(usage.Options):
    """For origins, besides."""

    optParameters: list[Any] = [
        ["publish-key-file", None, None, "File with what encoders must know (mode 0600): APP/NAME-PATTERN KEY a line. "
         "They publish to NAME?key=KEY."],
        ["on-publish", None, None, "URL that is asked, by a POST of JSON as SRS makes it, whether an encoder may "
         "publish."],
        ["on-publish-done", None, None, "URL that is told when an encoder has gone."],
    ]  # fmt: skip
    optFlags = [
        ["sign-publish", None, "Encoders need a signed URL (or, with --publish-key-file, a key)."],
    ]  # fmt: skip

    def opt_allow_publish(self, network: str) -> None:
        """Address or network (CIDR) that may publish; then no other may. May be repeated; --deny-publish wins."""
        self["allow-publish-from"].append(network)

    def opt_deny_publish(self, network: str) -> None:
        """Address or network (CIDR) that may not publish. May be repeated."""
        self["deny-publish-from"].append(network)
