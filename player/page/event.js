// A live event as the page follows it: what is filmed, how old it is. Times are seconds.

const MS_PER_S = 1000;

// ``config.live``: start_s (Unix seconds), target_latency_s, catch_up; null: all of the video is
// there, and nothing is ever waited for.
export class Event {
  constructor({ live, video }) {
    this.live = live;
    this.chunkS = video.chunk_s;
  }

  get isLive() {
    return this.live !== null;
  }

  ageS() {
    return Date.now() / MS_PER_S - this.live.start_s;
  }

  beginsInS() {
    return this.isLive ? Math.max(-this.ageS(), 0) : 0;
  }

  // Until a chunk, counted from 0, is filmed.
  leftS(index) {
    return this.isLive ? Math.max((index + 1) * this.chunkS - this.ageS(), 0) : 0;
  }

  // Until the session begins: it is as far behind the event then as it is to stay.
  joinsInS() {
    return this.isLive ? this.live.target_latency_s - this.ageS() : 0;
  }

  // How far behind the event a playhead is; null without one.
  latencyS(playheadS) {
    return this.isLive ? Math.max(this.ageS() - playheadS, 0) : null;
  }

  // Settings of dash.js: it stays at the target by playing slightly faster or slower.
  settings() {
    if (!this.isLive) return {};
    const { target_latency_s, catch_up } = this.live;
    return {
      applyServiceDescription: false,
      delay: { liveDelay: target_latency_s },
      liveCatchup: {
        enabled: catch_up > 0,
        maxDrift: 0, // never seeks: every chunk is shown
        mode: "liveCatchupModeDefault",
        playbackRate: { min: -catch_up, max: catch_up },
      },
    };
  }
}
