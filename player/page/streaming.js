// dash.js as the player of a session: what it fetches next is the controller's decision.

import { decide } from "./decisions.js";
import { Event } from "./event.js";
import { Session } from "./session.js";

const MS_PER_S = 1000;
const MEDIA = "MediaSegment";
const TIMINGS = 100_000; // requests that the browser keeps the times of; by default 250
const POLL_MS = 50; // how often dash.js looks whether the buffer has room again

const nowS = () => performance.now() / MS_PER_S;

// Seconds that an element can play on.
function aheadS({ buffered, currentTime }) {
  return buffered.length === 0 ? 0 : buffered.end(buffered.length - 1) - currentTime;
}

// When the browser's network process sent a request and had its last byte; the page itself may have
// been busy then. Without its record: what the page saw.
function networkTimes(url, request, arrivedS) {
  const timing = performance.getEntriesByName(url).at(-1);
  if (!timing?.responseEnd) return [request.atS, arrivedS];
  return [timing.startTime / MS_PER_S, timing.responseEnd / MS_PER_S];
}

// Plays config.manifest_url in an element.
//
// ``on`` is told: ready() once dash.js has the manifest and would fetch the first chunk,
// chunk(record) for each complete chunk, arrived(record) as soon as it is in, startup(seconds),
// end(seconds) when the last chunk is in, error(error).
export class Streaming {
  constructor(config, element, on) {
    this.config = config;
    this.element = element;
    this.on = on;
    this.session = new Session(config);
    this.event = new Event(config);
    this.filmed = null; // timer, until the next chunk is
    this.arm = config.arms[0]; // asked: whom; null: dash.js decides by the arm's rules
    this.isReady = this.begun = false;
    this.failed = false;
    this.decision = null; // {index, level}; level is null until the answer is there
    this.player = dashjs.MediaPlayer().create();
    this.load();
  }

  load() {
    const { player, element, config } = this;
    const check = this.guarded((...args) => this.check(...args), true);
    player.extend(
      "AbrController",
      function () {
        const controller = this.parent;
        const byRules = controller.checkPlaybackQuality; // before it is replaced in there
        return { checkPlaybackQuality: (...args) => check(controller, () => byRules(...args)) };
      },
      true,
    );
    const events = dashjs.MediaPlayer.events;
    player.on(events.FRAGMENT_LOADING_STARTED, this.guarded((event) => this.requested(event)));
    player.on(events.FRAGMENT_LOADING_COMPLETED, this.guarded((event) => this.arrived(event)));
    player.on(events.ERROR, ({ error }) => this.fail(new Error(`dash.js: ${error.message}`)));
    element.addEventListener("waiting", () => this.session.stalled(nowS(), aheadS(element)));
    element.addEventListener("playing", () => {
      if (this.session.resumed(nowS())) this.on.startup(this.session.startupS);
    });
    performance.setResourceTimingBufferSize(TIMINGS);
    player.initialize(element, null, false);
    player.updateSettings(settings(config, this.event));
    this.use(this.arm);
    // Before its event begins dash.js waits for two seconds more than it has to.
    setTimeout(
      this.guarded(() => player.attachSource(config.manifest_url)),
      this.event.beginsInS() * MS_PER_S,
    );
  }

  // From the next chunk on another one decides.
  use(arm) {
    this.arm = arm;
    const rules = Object.fromEntries(
      Object.entries(arm.rules).map(([name, active]) => [name, { active }]),
    );
    this.player.updateSettings({ streaming: { abr: { rules } } });
  }

  begin() {
    this.begun = true;
    this.session.begin(nowS());
    this.element.play().catch((error) => this.fail(error));
    this.goOn();
  }

  // dash.js asks before each chunk whether to change quality; true: a change is under way, do not
  // fetch yet. So it can wait for an answer that comes over the network.
  check(controller, byRules) {
    if (!this.begun && !this.isReady) {
      this.isReady = true;
      this.on.ready();
    }
    if (!this.begun || this.failed) return true;
    if (this.waitsForEvent()) return true;
    const { session } = this;
    const complete = session.ask(nowS());
    if (complete !== null) this.on.chunk(complete);
    if (this.arm.asked === null && !this.isFixed(session.next)) {
      return byRules();
    }
    if (this.decision?.index !== session.next) {
      this.decision = { index: session.next, level: null };
      if (!this.isFixed(session.next)) {
        this.ask(this.decision);
        return true;
      }
      this.decision.level = this.config.first_level;
    }
    if (this.decision.level === null) return true;
    const stream = this.player.getActiveStream().getStreamInfo();
    return controller.setPlaybackQuality("video", stream, this.representation(this.decision.level));
  }

  // Whether the next chunk is not filmed yet; it is looked again when it is.
  waitsForEvent() {
    const leftS = this.event.leftS(this.session.next);
    clearTimeout(this.filmed); // dash.js looks at other times, too
    if (leftS === 0) return false;
    this.session.waits();
    this.filmed = setTimeout(this.guarded(() => this.goOn()), leftS * MS_PER_S);
    return true;
  }

  isFixed(index) {
    return index === 0 && this.config.first_level !== null;
  }

  async ask(decision) {
    const askedS = nowS();
    try {
      const observation = this.session.observation(this.element.currentTime);
      const { level, fallback } = await decide(this.arm.asked, observation);
      this.session.decided(nowS() - askedS, fallback);
      decision.level = level;
      this.goOn();
    } catch (error) {
      this.fail(error);
    }
  }

  representation(level) {
    return this.player.getRepresentationsByType("video").find(({ id }) => id === String(level));
  }

  // Has dash.js look again what to fetch.
  goOn() {
    for (const processor of this.player.getActiveStream().getStreamProcessors()) {
      processor.getScheduleController().startScheduleTimer(0);
    }
  }

  requested({ request }) {
    if (request.type !== MEDIA) return;
    const level = Number(request.representation.id);
    const decided = this.decision;
    if (decided?.index === request.index && decided.level !== level) {
      throw new Error(`chunk ${request.index} at level ${level}, decided was ${decided.level}`);
    }
    this.session.requested(request.index, level, nowS());
  }

  arrived({ request, error }) {
    const atS = nowS();
    if (error) throw new Error(`dash.js: ${request.url}: ${error.message ?? error}`);
    if (request.type !== MEDIA) return;
    const { session } = this;
    const [fromS, untilS] = networkTimes(request.url, session.request, atS);
    const { currentTime } = this.element;
    const arrived = session.arrived(
      request.index,
      request.bytesLoaded,
      { fromS, untilS, nowS: atS },
      currentTime,
      this.event.latencyS(currentTime),
    );
    this.on.arrived(arrived);
    if (!session.isOver) return;
    this.on.chunk(session.complete(atS));
    this.on.end(atS - session.beganS);
  }

  // dash.js swallows what its listeners throw.
  guarded(handle, otherwise) {
    return (...args) => {
      try {
        return handle(...args);
      } catch (error) {
        this.fail(error);
        return otherwise;
      }
    };
  }

  fail(error) {
    if (this.failed) return;
    this.failed = true;
    this.element.pause();
    this.on.error(error);
  }
}

function settings(config, event) {
  // dash.js fetches while level + chunk < target, the other players while level <= cap.
  const targetS = config.buffer_cap_s + config.video.chunk_s;
  const noRetries = Object.fromEntries(
    ["MPD", "InitializationSegment", "MediaSegment"].map((type) => [type, 0]),
  );
  const firstKbps =
    config.first_level === null ? -1 : config.video.levels_kbps[config.first_level];
  return {
    streaming: {
      abr: {
        autoSwitchBitrate: { video: true },
        initialBitrate: { video: firstKbps },
      },
      buffer: {
        bufferTimeDefault: targetS,
        bufferTimeAtTopQuality: targetS,
        bufferTimeAtTopQualityLongForm: targetS,
        fastSwitchEnabled: false, // null means on: it fetches chunks again
      },
      cacheInitSegments: true,
      cmcd: {
        enabled: true,
        version: 2,
        mode: "query",
        sid: config.session_id,
        cid: config.content_id,
        includeInRequests: ["segment", "mpd"],
      },
      fragmentRequestTimeout: config.chunk_timeout_s * MS_PER_S,
      gaps: { jumpGaps: false },
      lastBitrateCachingInfo: { enabled: false },
      lastMediaSettingsCachingInfo: { enabled: false },
      retryAttempts: noRetries, // a failure is told, as by the other players
      scheduling: { defaultTimeout: POLL_MS },
      utcSynchronization: { enabled: false },
      ...event.settings(),
    },
  };
}
