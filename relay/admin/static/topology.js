"use strict";
// Draws a cluster: a column a tier, a card a node, an edge for each "reads from".  What is drawn is changed in place, so
// that focus and selection stay where they are.  Text only ever goes in as text, never as markup.

const TIERS = ["origin", "distributor", "aggregator", "balancer"];
const SVG = "http://www.w3.org/2000/svg";
const LATE_MS = 1000; // neighbours tell every 250 ms how far they are
const FRESH_MS = 4000; // for so long an edge that has moved is marked
const SHOWN_EVENTS = 100;
const SAMPLES = 120; // of a sparkline: two minutes

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function rate(bitsPerSecond) {
  if (bitsPerSecond >= 1e6) return `${(bitsPerSecond / 1e6).toFixed(1)} Mbit/s`;
  return `${Math.round(bitsPerSecond / 1e3)} kbit/s`;
}

// Show `text` in an element, touching it only if it is news.
function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

// Bring the children of `parent` in line with `entries` [key, data]; `make` builds one, `update` brings one up to date.
function align(parent, entries, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = null;
  for (const [key, data] of entries) {
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = make(data);
      child.dataset.key = key;
    }
    update(child, data);
    if ((before ? before.nextElementSibling : parent.firstElementChild) !== child) {
      parent.insertBefore(child, before ? before.nextElementSibling : parent.firstElementChild);
    }
    before = child;
  }
  for (const gone of known.values()) gone.remove();
}

const histories = new Map(); // key -> numbers, the newest last

function remember(key, number) {
  const history = histories.get(key) || [];
  history.push(number);
  if (history.length > SAMPLES) history.shift();
  histories.set(key, history);
  return history;
}

function sparkline() {
  return drawn("svg", { class: "spark", viewBox: `0 0 ${SAMPLES} 24`, preserveAspectRatio: "none", "aria-hidden": "true" },
    drawn("polyline", { points: "", "vector-effect": "non-scaling-stroke" }));
}

function drawSparkline(svg, history) {
  const top = Math.max(...history, 1e-9);
  const first = SAMPLES - history.length;
  const points = history.map((value, i) => `${first + i},${(22 - (20 * value) / top).toFixed(1)}`);
  svg.firstElementChild.setAttribute("points", points.join(" "));
}

function nodeRate(node) {
  return node.streams.reduce((sum, stream) => sum + (stream.is_live ? stream.bitrate_bps : 0), 0);
}

// A stream that is pushed to another server, as a row among the neighbours.
function asLink(forward) {
  const isSending = forward.state === "sending";
  const lag = forward.lag_ms > LATE_MS ? `, ${(forward.lag_ms / 1000).toFixed(1)} s behind` : "";
  return { name: `→ ${forward.target.replace(/^rtmps?:\/\//, "")}`, endpoint: forward.stream, why: forward.why,
    state: isSending ? "up" : "down", role: isSending ? "active" : "", words: `${forward.state}${lag}` };
}

function makeCard(node) {
  const title = element(node.admin ? "a" : "span", "", node.name);
  return element("article", "",
    element("div", "title", element("h3", "", title), element("span", "state")),
    element("div", "whys"), element("div", "faint facts"), sparkline(), element("table", "links", element("tbody")));
}

function facts(node) {
  const parts = [];
  if (node.viewers || ["aggregator", "balancer"].includes(node.tier)) parts.push(count(node.viewers, "viewer"));
  const live = node.streams.filter((stream) => stream.is_live).length;
  if (node.tier !== "balancer") parts.push(count(live, "stream"), rate(nodeRate(node)));
  if (node.restarts) parts.push(`restarted ${count(node.restarts, "time")}`);
  return parts.join(" · ");
}

function reading(link, isBalancer) {
  if (link.words) return link.words;
  if (link.state === "down" || link.state === "waiting") return link.state;
  if (isBalancer) return count(link.viewers || 0, "viewer");
  if (link.role === "active") return `reads ${count(link.streams, "stream")}`;
  return link.behind_ms > LATE_MS ? `standby, ${(link.behind_ms / 1000).toFixed(1)} s behind` : link.role || link.state;
}

function updateCard(card, node) {
  const [title, whys, line, spark, table] = card.children;
  if (card.dataset.state !== node.state) {
    card.dataset.state = node.state;
    card.className = node.state;
  }
  const link = title.firstElementChild.firstElementChild;
  if (node.admin && link.getAttribute("href") !== node.admin) link.href = node.admin;
  say(title.lastElementChild, node.draining ? "draining" : node.state);
  align(whys, node.why.map((why) => [why, why]), (why) => element("p", "why", why), () => {});
  say(line, facts(node));
  card.title = [node.listen, node.version && `version ${node.version}`].filter(Boolean).join(", ");
  drawSparkline(spark, remember(`node ${node.name}`, node.tier === "balancer" ? node.viewers : nodeRate(node)));
  const forwards = (node.forwards || []).map((each) => [`to ${each.stream} ${each.target}`, asLink(each)]);
  align(table.firstElementChild, [...node.links.map((each) => [each.endpoint || each.name, each]), ...forwards],
    () => element("tr", "", element("td"), element("td", "number")),
    (row, each) => {
      row.className = each.state === "down" ? "lost" : each.role || "";
      row.title = [each.endpoint, each.why].filter(Boolean).join(": ");
      say(row.firstElementChild, each.name);
      say(row.lastElementChild, reading(each, node.tier === "balancer"));
    });
}

function drawColumns(nodes) {
  const tiers = TIERS.filter((tier) => nodes.some((node) => node.tier === tier));
  align(document.getElementById("columns"), tiers.map((tier) => [tier, nodes.filter((node) => node.tier === tier)]),
    () => element("section", "tier", element("h3", "tier-name"), element("div", "cards")),
    (column, members) => {
      say(column.firstElementChild, count(members.length, members[0].tier));
      align(column.lastElementChild, members.map((node) => [node.name, node]), makeCard, updateCard);
    });
}

// Every "reads from": [key, {from, to, kind}]; a balancer hands viewers to aggregators, and bytes come from there as well.
function edgesOf(nodes) {
  const names = new Set(nodes.map((node) => node.name));
  return nodes.flatMap((node) => node.links.filter((link) => names.has(link.name)).map((link) => {
    const isRead = node.tier === "balancer" ? link.viewers > 0 : link.role === "active";
    const kind = link.state === "down" ? "lost" : isRead ? "active" : "standby";
    return [`${link.name} ${node.name}`, { from: link.name, to: node.name, kind }];
  }));
}

function cornerOf(card, box, side) {
  const at = card.getBoundingClientRect();
  return [(side ? at.right : at.left) - box.left, at.top + Math.min(at.height / 2, 40) - box.top];
}

function drawEdges(nodes) {
  const svg = document.getElementById("edges");
  const box = svg.getBoundingClientRect();
  const cards = new Map([...document.querySelectorAll("#columns article")].map((card) => [card.dataset.key, card]));
  align(svg, edgesOf(nodes), () => drawn("path", {}), (path, edge) => {
    const [x1, y1] = cornerOf(cards.get(edge.from), box, true);
    const [x2, y2] = cornerOf(cards.get(edge.to), box, false);
    const bend = (x2 - x1) / 2;
    const shape = `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}`;
    if (path.getAttribute("d") !== shape) path.setAttribute("d", shape);
    if (path.dataset.kind !== edge.kind) {
      const hasMoved = path.dataset.kind !== undefined;
      path.dataset.kind = edge.kind;
      path.setAttribute("class", hasMoved ? `${edge.kind} fresh` : edge.kind);
      if (hasMoved) setTimeout(() => path.classList.remove("fresh"), FRESH_MS);
    }
  });
}

// Each stream once, from all nodes: the origin knows who publishes it, whoever has it how fast it grows.
function streamsOf(nodes) {
  const found = new Map();
  for (const node of nodes) {
    for (const stream of node.streams) {
      const entry = found.get(stream.name) || { name: stream.name, isLive: false, rate: 0, viewers: 0, source: "" };
      entry.isLive = entry.isLive || stream.is_live;
      entry.rate = Math.max(entry.rate, stream.is_live ? stream.bitrate_bps : 0);
      entry.viewers += stream.viewers;
      if (node.tier === "origin" || nodes.length === 1) entry.source = stream.source;
      found.set(stream.name, entry);
    }
  }
  return [...found.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

function drawStreams(nodes, canWatch) {
  const streams = streamsOf(nodes);
  document.getElementById("streams").hidden = streams.length === 0;
  align(document.getElementById("stream-rows"), streams.map((stream) => [stream.name, stream]),
    (stream) => {
      const name = element(canWatch ? "a" : "span", "", stream.name);
      if (canWatch) name.href = `watch?stream=${encodeURIComponent(stream.name)}`;
      return element("tr", "", element("td", "", name, element("span", "faint")), element("td", "number"),
        element("td", "", sparkline()), element("td", "number"), element("td", "faint"));
    },
    (row, stream) => {
      const [name, bits, spark, viewers, source] = row.children;
      say(name.lastElementChild, stream.isLive ? "" : " (idle)");
      say(bits, rate(stream.rate));
      drawSparkline(spark.firstElementChild, remember(`stream ${stream.name}`, stream.rate));
      say(viewers, String(stream.viewers));
      say(source, stream.source || "–");
    });
}

function drawEvent(event) {
  const list = document.getElementById("events");
  const time = element("time", "faint", new Date(event.at * 1000).toLocaleTimeString());
  time.dateTime = new Date(event.at * 1000).toISOString();
  const line = element("li", event.level, time, element("b", "", event.node), element("span", "", event.text));
  line.dataset.kind = event.kind;
  if (!list.querySelector("time")) list.replaceChildren();
  list.prepend(line);
  while (list.children.length > SHOWN_EVENTS) list.lastElementChild.remove();
}
