// Follows one job's events, through anything that happens to the connection.
//
// EventSource would reconnect by itself, but always at once, to the same address and with a token
// that may have expired, and it gives up for good on any status but 200. So each connection is made
// anew, behind the last event ID that was seen: every event arrives exactly once, in order.

const KINDS = ["started", "delta", "retrying", "done", "failed", "cancelled", "requeued"];
const ENDS = new Set(["done", "failed", "cancelled"]);

/** How soon to come back when a gateway shuts down and another one is there, in milliseconds. */
const HANDOVER = 500;
const FIRST_DELAY = 500;
const LONGEST_DELAY = 10_000;

/** The n-th delay, from 0: exponential, half of it by chance so that pages do not come in step. */
export function delay(n) {
  const whole = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** n);
  return whole * (0.5 + Math.random() / 2);
}

export function isOver(state) {
  return ENDS.has(state);
}

/**
 * Calls `on` until the job is over or `close` is called:
 *
 * - `on.event(kind, data, id)`: an event, and the ID to come back behind
 * - `on.connected()`, and `on.lost(ms)`: the connection is gone, the next one is tried after so long
 * - `on.over(job)`: the job's terminal state, as the gateway tells it
 * - `on.refused(refused)`: the gateway will not let this caller follow; nothing more happens
 *
 * While the page is hidden there is no connection.
 */
export function follow(gateway, id, after, on) {
  let cursor = after;
  let source = null;
  let timer = 0;
  let failures = 0;
  // Tells an answer that comes late from one that is still wanted.
  let turn = 0;
  const listening = new AbortController();

  function disconnect() {
    turn += 1;
    clearTimeout(timer);
    source?.close();
    source = null;
    return turn;
  }

  function close() {
    disconnect();
    listening.abort();
  }

  async function connect() {
    const mine = disconnect();
    if (document.visibilityState === "hidden") return;
    let url;
    try {
      url = await gateway.eventsUrl(id, cursor);
    } catch (refused) {
      if (mine === turn) stumble(refused);
      return;
    }
    if (mine !== turn) return;
    source = new EventSource(url);
    source.addEventListener("open", () => on.connected());
    source.addEventListener("error", inquire);
    source.addEventListener("reconnect", () => later(HANDOVER * (1 + Math.random())));
    for (const kind of KINDS) source.addEventListener(kind, receive);
  }

  function receive({ type, data, lastEventId }) {
    cursor = lastEventId;
    failures = 0;
    on.event(type, JSON.parse(data), cursor);
    if (isOver(type)) inquire();
  }

  // A terminal event may have been followed by a requeue, and an error may mean that nothing more
  // comes (204), that the gateway restarts, or that the caller may not follow. The job tells.
  async function inquire() {
    const mine = disconnect();
    let job;
    try {
      job = await gateway.job(id);
    } catch (refused) {
      if (mine === turn) stumble(refused);
      return;
    }
    if (mine !== turn) return;
    if (isOver(job.state)) {
      close();
      on.over(job);
    } else {
      retry();
    }
  }

  function stumble(refused) {
    if ([401, 403, 404].includes(refused.status)) {
      close();
      on.refused(refused);
    } else {
      retry(refused);
    }
  }

  function retry(refused) {
    const ms = Math.max(delay(failures), (refused?.retryAfter ?? 0) * 1000);
    failures += 1;
    later(ms);
    on.lost(ms);
  }

  function later(ms) {
    disconnect();
    timer = setTimeout(connect, ms);
  }

  function wake() {
    failures = 0;
    connect();
  }

  document.addEventListener("visibilitychange", wake, listening);
  window.addEventListener("online", wake, listening);
  connect();
  return { close };
}
