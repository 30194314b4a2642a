// The page: plays one session, shows it, and tells the process that opened it what happened.

import { Chart } from "./charts.js";
import { Streaming } from "./streaming.js";

const MS_PER_S = 1000;
const KBPS_PER_MBPS = 1000;
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
        { name: config.link_mbps.length ? "link" : "", colour: "asked", dashed: true, steps: true },
        { name: "delivered", colour: "delivered" },
      ]),
    };
  }

  arrived(chunk) {
    const { levels_kbps } = this.config.video;
    const kbps = levels_kbps[chunk.level];
    const fromS = chunk.requested_s;
    const untilS = fromS + chunk.download_s;
    const mbps = (chunk.size_bytes * 8) / 1e6 / chunk.download_s;
    this.levels.push([fromS, kbps]);
    this.delivered.push([fromS, mbps], [untilS, mbps]);
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
    const { session, arm } = streaming;
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
  const streaming = new Streaming(config, video, {
    ready: async () => {
      tell({ kind: "ready" });
      state("ready");
      await told;
      const answer = await fetch("begin", { method: "POST" });
      if (!answer.ok) throw new Error(`the session was not begun: ${answer.status}`);
      view.linkS = Math.round((await answer.json()).link_s);
      state("starting");
      streaming.begin();
      redraw = setInterval(() => view.draw(streaming), REDRAW_MS);
    },
    startup: (startup_s) => tell({ kind: "startup", startup_s }),
    arrived: (chunk) => view.arrived(chunk),
    chunk: (chunk) => tell({ kind: "chunk", chunk }),
    end: (wall_s) => {
      view.endS = wall_s;
      clearInterval(redraw);
      view.draw(streaming);
      state("playing", "all chunks are in");
      tell({ kind: "end", wall_s, starved_s: streaming.session.starvedS });
    },
    error: failed,
  });
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
    if (view.endS === null) state("playing");
  });
  video.addEventListener("ended", () => state("ended"));
}

window.addEventListener("unhandledrejection", ({ reason }) => failed(reason));
main().catch(failed);
