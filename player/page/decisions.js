// Asks for levels over HTTP: the controller in time, or the experiment's fallback in its place.

const MS_PER_S = 1000;
const REQUEST_TIMEOUT = 408;

export class InvalidDecision extends Error {
  name = "InvalidDecision";
}

export class ControllerRejected extends Error {
  name = "ControllerRejected";
}

export class ControllerUnavailable extends Error {
  name = "ControllerUnavailable";
}

// The level for an observation: {level, fallback}.
// ``asked`` has url, timeout_s and fallback_url (null: no fallback, the session ends instead).
export async function decide(asked, observation) {
  const body = JSON.stringify(observation);
  const levels = observation.levels_kbps.length;
  try {
    return { level: await post(asked.url, body, levels, asked.timeout_s), fallback: false };
  } catch (error) {
    if (!(error instanceof ControllerUnavailable) || asked.fallback_url === null) throw error;
    console.warn(`chunk ${observation.chunk_index}: the fallback decides: ${error.message}`);
    return { level: await post(asked.fallback_url, body, levels, asked.timeout_s), fallback: true };
  }
}

async function post(url, body, levels, timeoutS) {
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), timeoutS * MS_PER_S);
  let status, answer;
  try {
    // Text that needs no preflight: it would cost one more round trip.
    const headers = { "Content-Type": "text/plain" };
    const response = await fetch(url, { method: "POST", headers, body, signal: deadline.signal });
    status = response.status;
    answer = await response.json();
  } catch (error) {
    const why = deadline.signal.aborted ? `no answer within ${timeoutS} s` : error.message;
    throw new ControllerUnavailable(`${url}: ${why}`);
  } finally {
    clearTimeout(timer);
  }
  if (status === 200 && "decision" in answer) return checked(answer.decision, levels);
  const told = answer?.error?.message ?? `answered ${status}`;
  if (status >= 400 && status < 500 && status !== REQUEST_TIMEOUT) {
    throw new ControllerRejected(`${status}: ${told}`);
  }
  throw new ControllerUnavailable(`${url}: ${told}`);
}

function checked(level, levels) {
  if (Number.isInteger(level) && level >= 0 && level < levels) return level;
  throw new InvalidDecision(`level ${JSON.stringify(level)} is not one of 0 to ${levels - 1}`);
}
