// The page: plays one session, shows it, and tells the process that opened it what happened.

import { Chart } from "./charts.js";
import { Streaming } from "./streaming.js";

const MS_PER_S = 1000;
const LATE_S = 0.5; // later than this a session has not begun at its live event's target latency
const KBPS_PER_MBPS = 1000;
const ALL_IN = "all chunks are in";
// Drawing costs time that a measured session needs; nobody looks at an automated browser.
const REDRAW_MS = navigator.webdriver ? 2000 : 250;

const $ = (id) => document.getElementById(id);
const nowS = () => performance.now() / MS_PER_S;
const video = $("video");

// Messages arrive in the order in which they were told.
let told = Promise.resolve();
function tell(message) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(message);
  told = told.then(() => fetch("told", { method: "POST", headers, body }));
  told.catch((error) => console.error(error));
}

function state(kind, text) {
  $("state").dataset.kind = kind;
  $("state").textContent = text ?? kind;
}

function failed(error) {
  state("failed");
  $("notice").hidden = false;
  $("notice").textContent = error.message;
  tell({ kind: "error", name: error.name, message: error.message });
}

// Waits until a live event is as old as the session is to stay behind it.
async function join(event) {
  const leftS = event.joinsInS();
  if (leftS > 0) await new Promise((resolve) => setTimeout(resolve, leftS * MS_PER_S));
}

function checkJoined(event) {
  const lateS = -event.joinsInS();
  if (lateS <= LATE_S) return;
  throw new Error(`dash.js was set up ${lateS.toFixed(2)} s too late to join the live event`);
}

// Fails once it is too late, where checkJoined is not come to.
function watchJoin(streaming) {
  const { event } = streaming;
  if (!event.isLive) return;
  const late = () => streaming.isReady || streaming.fail(new Error("dash.js was not set up in time"));
  setTimeout(late, (event.joinsInS() + LATE_S) * MS_PER_S);
}

class View {
  constructor(config) {
    this.config = config;
    this.levels = []; // [seconds, kbit/s] of each request
    this.buffers = [];
    this.delivered = [];
    this.stalls = [];
    this.fallbacks = [];
    this.qoes = [];
    this.endS = null;
    this.linkS = 0; // for how long the link had run when the session began
    const charts = $("charts");
    this.charts = {
      level: new Chart(charts, "Chosen bitrate", "kbit/s", [{ colour: "level", steps: true }]),
      buffer: new Chart(charts, "Buffer", "s", [{ colour: "buffer", area: true }]),
      rate: new Chart(charts, "Throughput", "Mbit/s", [
        { name: config.link_mbps.length ? "trace" : "", colour: "asked", dashed: true, steps: true },
        { name: "delivered", colour: "delivered" },
      ]),
    };
  }

  arrived(chunk, { beganS, arrivedS, arrivedBufferS }) {
    const { levels_kbps, chunk_s } = this.config.video;
    const kbps = levels_kbps[chunk.level];
    const fromS = chunk.requested_s;
    const untilS = fromS + chunk.download_s;
    const mbps = (chunk.size_bytes * 8) / 1e6 / chunk.download_s;
    this.levels.push([fromS, kbps]);
    this.delivered.push([fromS, mbps], [untilS, mbps]);
    // The buffer jumps here; between two of these it is looked at whenever the charts are drawn.
    const inS = arrivedS - beganS;
    this.buffers.push([inS, Math.max(arrivedBufferS - chunk_s, 0)], [inS, arrivedBufferS]);
    if (chunk.fallback) this.fallbacks.push([fromS, kbps]);
    if (chunk.index > 0) {
      const { rebuffer, switch: change } = this.config.qoe;
      const steps = Math.abs(kbps - this.lastKbps) / KBPS_PER_MBPS;
      this.qoes.push(kbps / KBPS_PER_MBPS - rebuffer * chunk.rebuffer_s - change * steps);
    }
    this.lastKbps = kbps;
  }

  draw(streaming) {
    const { session } = streaming;
    const { config } = this;
    const atS = session.beganS === null ? 0 : (this.endS ?? nowS() - session.beganS);
    const bufferS = session.bufferS(video.currentTime);
    if (session.beganS !== null && this.endS === null) this.buffers.push([atS, bufferS]);
    const held = (points) => (points.length ? [...points, [atS, points.at(-1)[1]]] : []);
    const common = { endS: atS, stalls: this.stalls };
    this.charts.level.draw([held(this.levels)], {
      ...common,
      marks: this.fallbacks,
      ceiling: config.video.levels_kbps.at(-1),
    });
    this.charts.buffer.draw([this.buffers], common);
    const link = config.link_mbps;
    const asked = link.length ? secondsOf(link, atS, this.linkS) : [];
    this.charts.rate.draw([asked, this.delivered], common);
    this.facts(streaming, bufferS);
  }

  facts(streaming, bufferS) {
    const { session, event, arm } = streaming;
    const latencyS = event.latencyS(video.currentTime);
    const last = session.chunks.at(-1);
    const mean = this.qoes.reduce((sum, qoe) => sum + qoe, 0) / this.qoes.length;
    const shown = {
      Controller: arm.name,
      Chunk: `${session.next} / ${this.config.video.sizes_bytes.length}`,
      Level: last ? `${last.level} · ${this.lastKbps}` : "–",
      Buffer: `${bufferS.toFixed(1)} s`,
      "QoE / chunk": this.qoes.length ? mean.toFixed(2) : "–",
      "Start-up": session.startupS === null ? "–" : `${session.startupS.toFixed(2)} s`,
      Stalled: `${session.stallS(nowS()).toFixed(2)} s`,
      ...(event.isLive ? { Latency: `${latencyS.toFixed(2)} s` } : {}),
      Decision: last ? `${(last.decision_s * MS_PER_S).toFixed(1)} ms` : "–",
      Fallbacks: String(this.fallbacks.length),
    };
    $("facts").replaceChildren(
      ...Object.entries(shown).map(([name, value]) => {
        const fact = document.createElement("div");
        fact.appendChild(document.createElement("dt")).textContent = name;
        fact.appendChild(document.createElement("dd")).textContent = value;
        return fact;
      }),
    );
  }
}

// The link's rate second by second; a trace that ends begins again.
function secondsOf(link, untilS, fromS) {
  const length = Math.ceil(untilS) + 1;
  return Array.from({ length }, (_, at) => [at, link[(fromS + at) % link.length]]);
}

function offerArms(config, streaming) {
  $("menu").hidden = config.arms.length < 2;
  $("arms").append(...config.arms.map(({ name }) => new Option(name)));
  $("arms").addEventListener("change", () => {
    streaming.use(config.arms[$("arms").selectedIndex]);
  });
}

async function main() {
  const config = await (await fetch("config.json")).json();
  config.manifest_url = new URL(config.manifest_url, location.href).href;
  const view = new View(config);
  let redraw = 0;
  document.title = $("title").textContent = config.title;
  $("remark").hidden = !config.remark;
  $("remark").textContent = config.remark;
  const streaming = new Streaming(config, video, {
    ready: async () => {
      tell({ kind: "ready" });
      state("ready");
      await told;
      await join(streaming.event);
      const answer = await fetch("begin", { method: "POST" });
      if (!answer.ok) throw new Error(`the session was not begun: ${answer.status}`);
      checkJoined(streaming.event);
      view.linkS = Math.round((await answer.json()).link_s);
      state("starting");
      streaming.begin();
      redraw = setInterval(() => view.draw(streaming), REDRAW_MS);
    },
    startup: (startup_s) => tell({ kind: "startup", startup_s }),
    arrived: (chunk) => view.arrived(chunk, streaming.session),
    chunk: (chunk) => tell({ kind: "chunk", chunk }),
    end: (wall_s) => {
      view.endS = wall_s;
      clearInterval(redraw);
      view.draw(streaming);
      state("playing", ALL_IN);
      tell({ kind: "end", wall_s, starved_s: streaming.session.starvedS });
    },
    error: failed,
  });
  watchJoin(streaming);
  offerArms(config, streaming);
  let stalledS = null;
  video.addEventListener("waiting", () => {
    if (streaming.session.startupS === null || stalledS !== null) return;
    stalledS = nowS();
    state("stalled");
  });
  video.addEventListener("playing", () => {
    if (stalledS !== null) {
      const { beganS } = streaming.session;
      view.stalls.push([stalledS - beganS, nowS() - beganS]);
      stalledS = null;
    }
    state("playing", view.endS === null ? undefined : ALL_IN);
  });
  video.addEventListener("ended", () => state("ended"));
}

window.addEventListener("unhandledrejection", ({ reason }) => failed(reason));
main().catch(failed);
