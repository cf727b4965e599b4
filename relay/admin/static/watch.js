"use strict";
// Plays one stream through a balancer over HTTP-FLV (mpegts.js), and shows how live it is and what happens meanwhile.
// Where the package was built without the npm registry there is no player: then it says how to play otherwise.

const stream = new URLSearchParams(location.search).get("stream") || "";
const video = document.getElementById("video");
const LOOK_MS = 200;
const RETRY_MS = [250, 500, 1000, 2000]; // then the last for ever
const RUNNING = { isLive: true, enableWorker: false, enableStashBuffer: false, lazyLoad: false,
  autoCleanupSourceBuffer: true, liveBufferLatencyChasing: true, liveBufferLatencyMaxLatency: 3,
  liveBufferLatencyMinRemain: 0.6 };
let player = null;
let failures = 0;
let place = null;
let moved = { at: 0, time: 0 };
let longestPause = 0;

function notice(text, isWrong) {
  const line = document.getElementById("notice");
  say(line, text);
  line.className = isWrong ? "wrong" : "";
}

function urlOf(kind) {
  const secure = place.is_tls ? "s" : "";
  const host = place.host ? (place.host.includes(":") ? `[${place.host}]` : place.host) : location.hostname;
  const scheme = `${kind === "flv" ? "http" : "rtmp"}${secure}`;
  return `${scheme}://${host}:${place.port}/${stream}${kind === "flv" ? ".flv" : ""}`;
}

function drawLines() {
  const lines = [["RTMP, any player", urlOf("rtmp")], ["HTTP-FLV", urlOf("flv")],
    ["ffmpeg's player", `ffplay -fflags nobuffer ${urlOf("rtmp")}`], ["VLC", `vlc ${urlOf("flv")}`]];
  document.getElementById("lines").replaceChildren(
    ...lines.flatMap(([what, text]) => [element("dt", "", what), element("dd", "", element("code", "", text))]));
}

function stop() {
  if (player) player.destroy();
  player = null;
}

function start() {
  stop();
  player = mpegts.createPlayer({ type: "flv", isLive: true, cors: true, url: urlOf("flv") }, RUNNING);
  player.on(mpegts.Events.ERROR, (kind, detail) => again(`${kind}: ${detail}`));
  player.on(mpegts.Events.LOADING_COMPLETE, () => again("the stream has ended"));
  player.on(mpegts.Events.MEDIA_INFO, () => { failures = 0; });
  player.attachMediaElement(video);
  player.load();
  const playing = player.play();
  if (playing) playing.catch(() => {}); // the browser wants a click first: its own button is there
}

function again(why) {
  notice(`Not playing (${why}); trying again …`, true);
  stop();
  setTimeout(start, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
  failures += 1;
}

function look() {
  const now = performance.now();
  const edge = video.buffered.length ? video.buffered.end(video.buffered.length - 1) : 0;
  if (video.currentTime !== moved.time) {
    if (moved.time > 0 && !video.paused) longestPause = Math.max(longestPause, now - moved.at);
    moved = { at: now, time: video.currentTime };
    say(document.getElementById("lag"), `${Math.max(0, edge - video.currentTime).toFixed(1)} s`);
    notice(`Playing ${stream}.`, false);
  }
  say(document.getElementById("pause"), longestPause ? `${(longestPause / 1000).toFixed(1)} s` : "–");
  if (video.videoWidth) say(document.getElementById("picture"), `${video.videoWidth} × ${video.videoHeight}`);
}

function drawState(content) {
  const mine = streamsOf(content.nodes).find((each) => each.name === stream);
  say(document.getElementById("rate"), mine ? rate(mine.rate) : "–");
  say(document.getElementById("viewers"), mine ? String(mine.viewers) : "–");
  if (place || !content.places) return;
  if (!content.places.length) {
    notice("No balancer of this cluster has a port that a browser could play from.", true);
    return;
  }
  place = content.places[0];
  drawLines();
  if (!window.mpegts || !mpegts.isSupported()) {
    document.getElementById("player").hidden = true;
    notice(window.mpegts ? "This browser can't play live streams in a page (no Media Source Extensions)."
      : "This package was built without its player (no npm registry was there): play it elsewhere, as below.", true);
    return;
  }
  start();
  setInterval(look, LOOK_MS);
}

document.title = `relay: ${stream}`;
say(document.getElementById("title"), stream || "relay");
if (stream) {
  const source = new EventSource("api/v1/watch");
  source.addEventListener("state", (message) => drawState(JSON.parse(message.data)));
  source.addEventListener("event", (message) => {
    const event = JSON.parse(message.data);
    if (event.at * 1000 >= performance.timeOrigin) drawEvent(event); // what was before is no news
  });
} else {
  document.getElementById("player").hidden = true;
  notice("Which stream? The cluster's page has them all.", true);
}
