"use strict";
// Draws what /api/v1/node or /api/v1/nodes says, once a second.  Text only ever goes in as text, never as markup.

const TIERS = ["origin", "distributor", "aggregator", "balancer"];
const EVERY_MS = 1000;
const LATE_MS = 1000; // neighbours tell every 250 ms how far they are

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function rate(bitsPerSecond) {
  if (bitsPerSecond >= 1e6) return `${(bitsPerSecond / 1e6).toFixed(1)} Mbit/s`;
  return `${Math.round(bitsPerSecond / 1e3)} kbit/s`;
}

function row(tag, cells) {
  return element("tr", "", ...cells.map((cell, i) => element(tag, i ? "number" : "", cell)));
}

function streamTable(streams) {
  const table = element("table", "", row("th", ["stream", "from", "rate", "viewers"]));
  for (const stream of streams) {
    const name = stream.is_live ? stream.name : `${stream.name} (idle)`;
    const line = row("td", [name, stream.source || "–", rate(stream.bitrate_bps), stream.viewers]);
    line.title = `epoch ${stream.epoch}, bytes ${stream.start} to ${stream.end}, from ${stream.source || "nobody"}`;
    table.append(line);
  }
  return table;
}

function reading(link) {
  if (link.role === "active") return `active, ${count(link.streams, "stream")}`;
  return link.behind_ms > LATE_MS ? `${link.role}, ${(link.behind_ms / 1000).toFixed(1)} s behind` : link.role;
}

function linkTable(links) {
  const hasRoles = links.some((link) => link.role);
  const table = element("table", "", row("th", hasRoles ? ["reads from", "", "state"] : ["neighbour", "state"]));
  for (const link of links) {
    const line = row("td", hasRoles ? [link.name, reading(link), link.state] : [link.name, link.state]);
    if (link.role === "active") line.className = "active";
    if (link.state === "down") line.className = "lost";
    line.title = [link.endpoint, link.why].filter(Boolean).join(": ");
    table.append(line);
  }
  return table;
}

function nodeCard(node) {
  const name = node.admin ? element("a", "", node.name) : node.name;
  if (node.admin) name.href = node.admin;
  const card = element(
    "article",
    node.state,
    element("div", "", element("h3", "", name), element("span", "state", node.state)),
    ...node.why.map((reason) => element("p", "why", reason)),
    element("div", "faint", [node.listen, count(node.viewers, "viewer")].filter(Boolean).join(" · ")),
  );
  if (node.restarts) card.append(element("div", "faint", `restarted ${count(node.restarts, "time")}`));
  if (node.streams.length) card.append(streamTable(node.streams));
  if (node.links.length) card.append(linkTable(node.links));
  return card;
}

function draw(nodes) {
  const columns = TIERS.filter((tier) => nodes.some((node) => node.tier === tier)).map((tier) => {
    const members = nodes.filter((node) => node.tier === tier);
    return element("section", "", element("h2", "", count(members.length, tier)), ...members.map(nodeCard));
  });
  document.getElementById("nodes").replaceChildren(...columns);
}

function drawPaste(lines) {
  const section = document.getElementById("paste");
  if (!section || !section.hidden || !lines) return;
  const entries = lines.flatMap((line) => [element("dt", "", line.what), element("dd", "", element("code", "", line.text))]);
  document.getElementById("lines").replaceChildren(...entries);
  section.hidden = lines.length === 0;
}

function notice(text, isWrong) {
  const line = document.getElementById("notice");
  line.textContent = text;
  line.className = isWrong ? "wrong" : "";
}

async function refresh() {
  try {
    const answer = await fetch(document.body.dataset.source, { signal: AbortSignal.timeout(5 * EVERY_MS) });
    const content = await answer.json();
    const nodes = content.nodes || [content];
    document.getElementById("title").textContent = content.nodes ? "relay cluster" : `relay: ${content.name}`;
    draw(nodes);
    drawPaste(content.paste);
    const odd = nodes.filter((node) => node.state !== "normal");
    notice(odd.length ? `${count(odd.length, "node")} not normal` : "All normal.", odd.length > 0);
  } catch (error) {
    notice(`No answer (${error.message}); what is below is old.`, true);
  }
  setTimeout(refresh, EVERY_MS);
}

refresh();
