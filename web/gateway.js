// The gateway's HTTP contract, as far as the page needs it.

import { BASE } from "./base.js";

/** How long an answer may take before the gateway counts as unreachable, in milliseconds. */
const PATIENCE = 15_000;

/** An answer that is not 2xx; `status` is 0 where there was none. */
export class Refused extends Error {
  constructor({ status = 0, code = null, message = "no answer", retryAfter = null }) {
    super(message);
    this.status = status;
    this.code = code;
    /** Seconds to wait, where the gateway named them. */
    this.retryAfter = retryAfter;
  }
}

/** Calls the gateway with the key, if there is one. */
export class Gateway {
  constructor(key) {
    this.key = key;
  }

  whoami() {
    return this.#call("GET", "whoami");
  }

  async models() {
    const list = await this.#call("GET", "v1/models");
    return list.data.map((model) => model.id);
  }

  /** The queue that jobs of this page go to. */
  async queue() {
    const list = await this.#call("GET", "v1/queues");
    return list.data[0];
  }

  /** Enqueues a chat request. The same idempotency key never makes a second job. */
  enqueue(request, idempotencyKey) {
    return this.#call("POST", "v1/jobs", request, { "idempotency-key": idempotencyKey });
  }

  job(id) {
    return this.#call("GET", path(id));
  }

  cancel(id) {
    return this.#call("DELETE", path(id));
  }

  /** Where a job's events behind `after` are. EventSource sends no key, so a token stands in for it. */
  async eventsUrl(id, after) {
    const query = new URLSearchParams();
    if (after) query.set("after", after);
    if (this.key) {
      const { token } = await this.#call("POST", `${path(id)}/token`);
      query.set("token", token);
    }
    return new URL(`${path(id)}/events?${query}`, BASE).href;
  }

  async #call(method, url, body, headers = {}) {
    // What a browser has kept may be another key's, or of a gateway that has gone.
    const asked = { method, headers: { ...headers }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) };
    if (this.key) asked.headers.authorization = `Bearer ${this.key}`;
    if (body) {
      asked.headers["content-type"] = "application/json";
      asked.body = JSON.stringify(body);
    }
    let answer;
    let content;
    try {
      answer = await fetch(new URL(url, BASE), asked);
      content = await answer.text();
    } catch (error) {
      throw new Refused({ message: error.message });
    }
    if (!answer.ok) throw refusal(answer, content);
    return JSON.parse(content);
  }
}

function path(id) {
  return `v1/jobs/${encodeURIComponent(id)}`;
}

function refusal(answer, content) {
  const { status } = answer;
  const retryAfter = Number.parseInt(answer.headers.get("retry-after"), 10) || null;
  try {
    const { code, message } = JSON.parse(content).error;
    return new Refused({ status, code, message, retryAfter });
  } catch {
    // Something in between, a proxy for instance, has answered in its own words.
    return new Refused({ status, message: `status ${status}`, retryAfter });
  }
}
