"""What the docs take from the program itself when they are built: command lines, limits, the HTTP API.

Three directives::

    ```{relay-options} origin          the --help of a command, as a table
    ```{relay-limits}                  every bound of relay.limits
    ```{relay-api}                     every path of the OpenAPI document
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import attrs
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from twisted.python.reflect import namedAny

from relay.admin.site import static_file
from relay.limits import DEFAULT_LIMITS, Limits


class Generated(SphinxDirective):
    """A directive whose content is Markdown that ``lines`` makes."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        section = nodes.section()
        section.document = self.state.document
        made = StringList(list(self.lines()), source=type(self).__name__)
        self.state.nested_parse(made, self.content_offset, section)
        return section.children

    def lines(self) -> Iterator[str]:
        """The Markdown."""
        raise NotImplementedError


class OptionsDirective(Generated):
    """The options of one command."""

    def lines(self) -> Iterator[str]:
        options: Any = namedAny(f"relay.tiers.{self.arguments[0]}.Options")()
        yield f"`{options.synopsis}`"
        yield ""
        yield re.sub(r"(?<![-\w])(--[a-z][a-z-]+)", r"`\1`", options.longdesc)
        yield ""
        yield "| option | default | |"
        yield "|---|---|---|"
        for name, default, words in sorted(_options(options)):
            marked = re.sub(r"(?<![-\w])(--[a-z][a-z-]+)", r"`\1`", words).replace("|", r"\|")
            yield f"| `--{name}` | {default} | {marked} |"


def _options(options: Any) -> Iterator[tuple[str, str, str]]:
    """(name, default, words) of all, of the classes that it derives from, too."""
    seen: set[str] = set()
    for kind in type(options).__mro__:
        for name, _, default, words, *_ in (entry for entry in vars(kind).get("optParameters", ())):
            if name not in seen:
                seen.add(name)
                yield name, "" if default is None else f"`{default}`", words
        for name, _, words, *_ in vars(kind).get("optFlags", ()):
            if name not in seen:
                seen.add(name)
                yield name, "", words
        for attribute, method in vars(kind).items():
            if kind.__module__.startswith("relay.") and attribute.startswith("opt_") and attribute != "opt_version":
                name = attribute.removeprefix("opt_").replace("_", "-")
                if name not in seen:
                    seen.add(name)
                    yield name, "", " ".join((inspect.getdoc(method) or "").split())


class LimitsDirective(Generated):
    """All limits."""

    def lines(self) -> Iterator[str]:
        yield "| `--limit NAME=VALUE` | default | unit | what it bounds |"
        yield "|---|---|---|---|"
        for field in attrs.fields(Limits):
            value = getattr(DEFAULT_LIMITS, field.name)
            yield f"| `{field.name}` | {value:,} | {field.metadata['unit']} | {field.metadata['reason']} |"


class ApiDirective(Generated):
    """All paths."""

    def lines(self) -> Iterator[str]:
        document = json.loads(static_file("openapi.json").read_text(encoding="utf-8"))
        yield "| | | query |"
        yield "|---|---|---|"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                parameters = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
                query = ", ".join(f"`{each['name']}`: {each['description']}" for each in parameters)
                yield f"| `{method.upper()} {path}` | {operation['summary']} | {query} |"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("relay-options", OptionsDirective)
    app.add_directive("relay-limits", LimitsDirective)
    app.add_directive("relay-api", ApiDirective)
    return {"version": "1", "parallel_read_safe": True}
