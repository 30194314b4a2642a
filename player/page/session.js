// What one session knows: the page's counterpart of player/machine.py. Times are seconds.
// No network and no media element in here: both are arguments.

// Chromium reports short gaps between two frames as stalls; nobody sees those.
const BLIP_S = 0.02;
// With more than this to play a picture that stands still is the machine's fault, not the link's.
const ENOUGH_S = 0.5;
const SHORTEST_DOWNLOAD_S = 1e-6;

export class Session {
  constructor(config) {
    this.video = config.video; // levels_kbps, chunk_s, sizes_bytes
    this.config = config;
    this.chunks = []; // arrived ones, as they are told
    this.beganS = null;
    this.startupS = null; // until the first picture moved
    this.request = null; // under way
    this.asked = null; // {index, decision_s, fallback} of the chunk to come
    this.stallBeganS = null;
    this.isStarved = false; // whether that stall is one of a machine too busy
    this.starvedS = 0; // of all those together
    this.closedStallS = 0; // of all other stalls that are over
    this.countedStallS = 0; // of that, in records already
    this.arrivedS = null;
    this.arrivedBufferS = 0;
    this.hasWaited = false; // since then, because the next chunk of a live event was not there
  }

  get next() {
    return this.chunks.length;
  }

  get isOver() {
    return this.next === this.video.sizes_bytes.length;
  }

  begin(nowS) {
    this.beganS = nowS;
  }

  bufferS(playheadS) {
    return Math.max(this.next * this.video.chunk_s - playheadS, 0);
  }

  // ``aheadS``: what the element still has to play.
  stalled(nowS, aheadS) {
    if (this.startupS === null || this.stallBeganS !== null) return;
    this.stallBeganS = nowS;
    this.isStarved = aheadS > ENOUGH_S;
  }

  // Returns whether these are the first moving pictures.
  resumed(nowS) {
    const isFirst = this.startupS === null;
    if (isFirst) this.startupS = nowS - this.beganS;
    if (this.stallBeganS !== null) {
      const tookS = nowS - this.stallBeganS;
      if (this.isStarved) this.starvedS += tookS;
      else if (tookS > BLIP_S) this.closedStallS += tookS;
      this.stallBeganS = null;
    }
    return isFirst;
  }

  // Stalls so far, start-up not counted.
  stallS(nowS) {
    const isOpen = this.stallBeganS !== null && !this.isStarved;
    const openS = isOpen ? nowS - this.stallBeganS : 0;
    return this.closedStallS + (openS > BLIP_S ? openS : 0);
  }

  // The next chunk is not there yet.
  waits() {
    this.hasWaited = true;
  }

  // The player wants the next chunk. Returns the record of the last one, which is complete now
  // that its wait for the buffer cap or the event is over; null if it was returned before.
  ask(nowS) {
    if (this.asked !== null && this.asked.index === this.next) return null;
    this.asked = { index: this.next, decision_s: 0, fallback: false };
    return this.complete(nowS);
  }

  complete(nowS) {
    const last = this.chunks.at(-1);
    if (last === undefined) return null;
    const isFull = this.arrivedBufferS > this.config.buffer_cap_s;
    if (isFull || this.hasWaited) last.wait_s = nowS - this.arrivedS;
    last.buffer_s = Math.max(this.arrivedBufferS - last.wait_s, 0);
    return last;
  }

  decided(decisionS, isFallback) {
    this.asked.decision_s = decisionS;
    this.asked.fallback = isFallback;
  }

  observation(playheadS) {
    const { levels_kbps, chunk_s, sizes_bytes } = this.video;
    const { history_limit, upcoming_limit } = this.config;
    return {
      levels_kbps,
      chunk_s,
      chunk_index: this.next,
      chunks_left: sizes_bytes.length - this.next,
      buffer_s: this.bufferS(playheadS),
      upcoming_sizes_bytes: sizes_bytes.slice(this.next, this.next + upcoming_limit),
      history: this.chunks
        .slice(-history_limit)
        .map(({ level, size_bytes, download_s, rebuffer_s, buffer_s }) => ({
          level,
          size_bytes,
          download_s,
          rebuffer_s,
          buffer_s,
        })),
    };
  }

  requested(index, level, nowS) {
    if (index !== this.next) throw new Error(`chunk ${index} requested, ${this.next} is next`);
    this.request = { index, level, atS: nowS };
  }

  // On the network it came from ``fromS`` to ``untilS``; the page learns it ``nowS``.
  // ``latencyS``: of the playhead behind a live event, null without one.
  arrived(index, sizeBytes, { fromS, untilS, nowS }, playheadS, latencyS) {
    const { level } = this.request;
    const expected = this.video.sizes_bytes[index][level];
    if (index !== this.next) throw new Error(`chunk ${index} arrived, ${this.next} was to come`);
    if (sizeBytes !== expected) {
      throw new Error(`chunk ${index}: ${sizeBytes} bytes, ${expected} in the size table`);
    }
    const stallS = this.stallS(nowS);
    const isFirst = index === 0;
    const rebufferS = isFirst ? nowS - this.beganS : stallS - this.countedStallS;
    this.chunks.push({
      index,
      level,
      size_bytes: sizeBytes,
      requested_s: Math.max(fromS - this.beganS, 0),
      download_s: Math.max(untilS - fromS, SHORTEST_DOWNLOAD_S),
      buffer_s: 0, // see complete
      rebuffer_s: Math.max(rebufferS, 0),
      decision_s: this.asked.decision_s,
      fallback: this.asked.fallback,
      wait_s: 0,
      latency_s: latencyS,
    });
    this.countedStallS = stallS;
    this.arrivedS = nowS;
    this.arrivedBufferS = this.bufferS(playheadS);
    this.hasWaited = false;
    this.request = null;
    return this.chunks.at(-1);
  }
}
