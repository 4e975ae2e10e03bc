// The queue beside the conversation: how much waits, runs, is parked and dead, and who works.

import { delay } from "./stream.js";

/** Milliseconds between two looks. */
const PACE = 2000;

const COUNTS = ["waiting", "in_flight", "parked", "dead", "workers"];

/** Shows the queue while the page is visible. */
export class Panel {
  #gateway = null;
  #timer = 0;
  #failures = 0;
  #turn = 0;

  constructor(node) {
    this.node = node;
    this.note = node.querySelector(".note");
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  /** Looks through this gateway's eyes from now on. */
  watch(gateway) {
    this.#gateway = gateway;
    this.#wake();
  }

  #wake() {
    this.#failures = 0;
    this.#look();
  }

  async #look() {
    clearTimeout(this.#timer);
    this.#turn += 1;
    const mine = this.#turn;
    if (!this.#gateway || document.visibilityState === "hidden") return;
    let wait = PACE;
    try {
      const queue = await this.#gateway.queue();
      if (mine !== this.#turn) return;
      this.#failures = 0;
      this.#show(queue);
    } catch (refused) {
      if (mine !== this.#turn) return;
      this.#blank(refused);
      // Asking again changes nothing for a key that lacks the right; another key comes by `watch`.
      if ([401, 403].includes(refused.status)) return;
      wait = Math.max(PACE, delay(this.#failures + 2), (refused.retryAfter ?? 0) * 1000);
      this.#failures += 1;
    }
    this.#timer = setTimeout(() => this.#look(), wait);
  }

  #show(queue) {
    for (const count of COUNTS) {
      const shown = this.node.querySelector(`[data-count=${count}]`);
      shown.textContent = queue[count].toLocaleString("en");
      shown.classList.toggle("some", queue[count] > 0);
    }
    this.node.querySelector("h2 span").textContent = queue.queue;
    this.#say("live", advice(queue));
  }

  #blank(refused) {
    for (const shown of this.node.querySelectorAll("[data-count]")) {
      shown.textContent = "–";
      shown.classList.remove("some");
    }
    this.#say("blind", excuse(refused));
  }

  #say(state, text) {
    this.node.dataset.state = state;
    if (this.note.textContent !== text) this.note.textContent = text;
  }
}

function advice({ waiting, dead, workers }) {
  if (workers === 0) return "No worker is running, so jobs wait. Start one: millstream-worker";
  if (dead > 0) return "Dead letters wait for a decision: millstream dlq";
  if (waiting > 0) return "Workers are busy; jobs start in turn.";
  return "Nothing waits.";
}

function excuse({ status }) {
  if (status === 403) return "The queue is shown to keys with the right admin, which this key lacks.";
  if (status === 401) return "The queue is shown once you have entered a key.";
  if (status === 0) return "The gateway does not answer. Figures return when it does.";
  return "The gateway cannot read its queue. Figures return when it can.";
}
