// Questions that become jobs, and the events that become their answers.
//
// A turn is plain data that survives a reload: `phase` is the job's state, or `sending`, `retrying` and
// `unsent`, which only the page knows; `text`, `refusal` and `thoughts` hold what `cursor`, the last event's ID,
// stands behind.

import * as store from "./store.js";
import { heard, said } from "./message.js";
import { follow, isOver } from "./stream.js";
import { TurnView } from "./turn.js";
import { failure, finish, loss, refusal, span } from "./words.js";

/** How long a job waits for a worker before the page says what may be missing, in milliseconds. */
const PATIENCE = 6000;

/** How near to its end the conversation must be scrolled to go along with it, in pixels. */
const NEAR = 60;

/** What a turn holds before the model has said anything. */
const NOTHING = { text: "", refusal: "", thoughts: "", cut: "" };

/**
 * The conversation inside the scrolling element `log`. Calls `on.changed()` when it has become busy or
 * idle, `on.said(text)` with what happened in a few words, and `on.keyRefused()`.
 */
export class Conversation {
  #views = new Map();
  #following = null;
  #patience = 0;

  constructor(log, node, gateway, on) {
    this.log = log;
    this.node = node;
    this.gateway = gateway;
    this.on = on;
    for (const turn of store.turns) this.#add(Object.assign(turn, { link: "", stopping: false }));
    this.#toEnd();
  }

  /** The turn in progress, if there is one: the last, or an earlier one that was not sent until now. */
  get live() {
    return store.turns.find(({ phase }) => !isOver(phase) && phase !== "unsent") ?? null;
  }

  get isEmpty() {
    return store.turns.length === 0;
  }

  get lastModel() {
    return store.turns.at(-1)?.model;
  }

  ask(question, model) {
    const turn = {
      question, model, key: randomKey(), phase: "sending", job: null, cursor: null, attempt: 1, ...NOTHING,
    };
    store.turns.push(turn);
    this.#add(turn);
    this.#toEnd();
    this.#send(turn);
  }

  /** Goes on with what a reload, or a key that was missing, has interrupted. */
  resume(gateway) {
    this.gateway = gateway;
    const turn = this.live;
    if (turn?.job) this.#pursue(turn);
    else if (turn) this.#send(turn);
  }

  /** Stops the job in progress, and its model. */
  async stop() {
    const turn = this.live;
    if (!turn || turn.stopping) return;
    this.#change(turn, { stopping: true });
    // A question on its way becomes a job first.
    if (turn.job) await this.#cancel(turn);
  }

  /** Goes on with none of it; a job in progress is not stopped. */
  pause() {
    this.#following?.close();
  }

  clear() {
    store.turns.length = 0;
    store.save();
    this.#views.clear();
    this.node.replaceChildren();
    this.on.changed();
  }

  async #send(turn) {
    Object.assign(turn, { phase: "sending", trouble: null });
    // Kept before it leaves: a reload in between sends it again, under the same idempotency key.
    store.save();
    this.#change(turn);
    let job;
    try {
      job = await this.gateway.enqueue({ model: turn.model, messages: messages(turn) }, turn.key);
    } catch (refused) {
      this.#unsent(turn, refused);
      return;
    }
    Object.assign(turn, { job: job.id, phase: job.state });
    store.save();
    this.on.said("The question is in the queue.");
    this.#pursue(turn);
    if (turn.stopping) this.#cancel(turn);
  }

  #unsent(turn, refused) {
    if (refused.status === 401) {
      // It is sent as soon as there is a valid key.
      this.on.keyRefused();
      return;
    }
    Object.assign(turn, { phase: "unsent", stopping: false, trouble: refusal(refused) });
    store.save();
    this.#change(turn);
    this.#complain(turn, refused.retryAfter);
  }

  #pursue(turn) {
    this.#following?.close();
    this.#change(turn, { link: "" });
    this.#waitPatiently(turn);
    this.#following = follow(this.gateway, turn.job, turn.cursor, {
      event: (kind, data, id) => {
        // Text and cursor change together, or a reload would lose or repeat a word.
        turn.cursor = id;
        this.#take(turn, kind, data);
        store.saveSoon();
        this.#change(turn);
      },
      connected: () => this.#change(turn, { link: "" }),
      lost: (ms) => this.#change(turn, { link: `Connection lost; the job goes on. Next try in ${span(ms)}.` }),
      over: (job) => this.#conclude(turn, job),
      refused: (refused) => this.#shutOut(turn, refused),
    });
  }

  #take(turn, kind, data) {
    switch (kind) {
      case "started":
        clearTimeout(this.#patience);
        this.on.said(data.attempt > 1 ? `Attempt ${data.attempt}.` : "The answer begins.");
        Object.assign(turn, { phase: "running", ...NOTHING, attempt: data.attempt, note: "" });
        break;
      case "delta":
        for (const { index, delta } of data.choices) if (index === 0) heard(turn, delta);
        break;
      case "retrying":
        turn.phase = "retrying";
        turn.note = `Attempt ${data.attempt} failed: ${data.error.message}. The next begins in ${span(data.delay_ms)}.`;
        this.on.said(turn.note);
        break;
      case "requeued":
        Object.assign(turn, { phase: "waiting", ...NOTHING, note: "The job was put back into its queue." });
        break;
      default:
        // How it ended, the job itself tells in a moment: it may have been requeued since.
    }
  }

  #conclude(turn, job) {
    // After 204 the page may lack the end. The job has the whole, unless its log has expired.
    if (job.last_event_id && job.last_event_id !== turn.cursor) {
      Object.assign(turn, said(job.choices[0]?.message), { text: job.text });
    }
    Object.assign(turn, { phase: job.state, attempt: job.attempt, note: "" });
    turn.ended = { code: job.error?.code, usage: job.usage, ttft_ms: job.ttft_ms, run_ms: job.run_ms };
    if (job.state === "failed") turn.trouble = failure(job.error, job.attempt);
    if (job.state === "done") {
      turn.cut = finish(job.finish_reason);
      turn.note = turn.cut || (turn.text || turn.refusal ? "" : "The model answered without text.");
    }
    if (job.state === "cancelled") {
      turn.note = turn.text ? "Stopped: this is as far as it came." : "Stopped before the answer began.";
    }
    this.#finish(turn);
    const words = turn.text.split(/\s+/).filter(Boolean).length;
    const whole = turn.refusal ? `The model refuses: ${turn.refusal}` : `The answer is complete: ${words} words.`;
    this.on.said(job.state === "done" && !turn.cut ? whole : turn.note);
  }

  #shutOut(turn, refused) {
    if (refused.status === 401) {
      this.#change(turn, { link: "The answer goes on here once there is a valid key." });
      this.on.keyRefused();
      return;
    }
    Object.assign(turn, { phase: "failed", trouble: loss(refused), note: "" });
    this.#finish(turn);
  }

  #finish(turn) {
    clearTimeout(this.#patience);
    this.#following = null;
    this.#change(turn, { stopping: false, link: "" });
    store.save();
    this.#complain(turn);
  }

  async #cancel(turn) {
    try {
      await this.gateway.cancel(turn.job);
    } catch (refused) {
      const why = refusal(refused).title;
      this.#change(turn, { stopping: false, note: `Not stopped. ${why}. Try again.` });
    }
  }

  #waitPatiently(turn) {
    clearTimeout(this.#patience);
    this.#patience = setTimeout(() => {
      if (turn.phase !== "waiting" || turn.note) return;
      const note = "No worker has taken the job yet. Start one with millstream-worker; the job waits.";
      this.#change(turn, { note });
    }, PATIENCE);
  }

  #add(turn) {
    const view = new TurnView(turn);
    this.#views.set(turn, view);
    this.node.append(view.node);
    this.#complain(turn);
  }

  #change(turn, fields = {}) {
    const stick = this.#atEnd();
    Object.assign(turn, fields);
    this.#views.get(turn).show();
    this.on.changed();
    if (stick) this.#toEnd();
  }

  /** Shows what went wrong with a turn, and the button that tries it again after `wait` seconds. */
  #complain(turn, wait) {
    if (!turn.trouble) return;
    const stick = this.#atEnd();
    const again = turn.phase === "unsent"
      ? { label: "Try again", wait, act: () => this.live || this.#send(turn) }
      : { label: "Ask again", act: () => this.live || this.ask(turn.question, turn.model) };
    this.#views.get(turn).complain(turn.trouble, again);
    if (stick) this.#toEnd();
  }

  #atEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR;
  }

  #toEnd() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}

/** Earlier questions with what is there of their answers, and the new question. */
function messages(turn) {
  const before = store.turns.slice(0, store.turns.indexOf(turn)).filter(({ text, refusal }) => text || refusal);
  return [
    ...before.flatMap(({ question, text, refusal }) => [
      { role: "user", content: question },
      { role: "assistant", content: text || refusal },
    ]),
    { role: "user", content: turn.question },
  ];
}

/** 128 random bits. `crypto.randomUUID` is missing on a page that came by plain HTTP. */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
