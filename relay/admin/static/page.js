"use strict";
// The page of a node or of a cluster: what api/v1/watch tells (server-sent events), drawn by topology.js.

let shown = []; // the nodes as they were last told

function notice(text, isWrong) {
  const line = document.getElementById("notice");
  say(line, text);
  line.className = isWrong ? "wrong" : "";
}

function drawState(content) {
  shown = content.nodes;
  const isCluster = content.places !== undefined;
  if (!isCluster) say(document.getElementById("title"), `relay: ${shown[0].name}`);
  drawColumns(shown);
  drawEdges(shown);
  drawStreams(shown, isCluster);
  drawPaste(content.paste);
  const odd = shown.filter((node) => node.state !== "normal");
  const viewers = shown.filter((node) => node.tier === (isCluster ? "balancer" : node.tier));
  const watching = count(viewers.reduce((sum, node) => sum + node.viewers, 0), "viewer");
  notice(odd.length ? `${odd.map((node) => `${node.name} is ${node.state}`).join(", ")}; ${watching}.`
    : `All normal; ${watching}.`, odd.length > 0);
}

function drawPaste(lines) {
  const section = document.getElementById("paste");
  if (!section || !section.hidden || !lines) return;
  const entries = lines.flatMap((line) => [element("dt", "", line.what), element("dd", "", element("code", "", line.text))]);
  document.getElementById("lines").replaceChildren(...entries);
  section.hidden = lines.length === 0;
}

function watch() {
  const source = new EventSource("api/v1/watch");
  source.addEventListener("state", (message) => drawState(JSON.parse(message.data)));
  source.addEventListener("event", (message) => drawEvent(JSON.parse(message.data)));
  source.addEventListener("error", () => notice("No connection; what is below is old. Trying again …", true));
}

addEventListener("resize", () => drawEdges(shown));
watch();
