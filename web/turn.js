// One question with its answer, as it stands on the page. Text goes in as text, never as markup.

import { isOver } from "./stream.js";
import { span } from "./words.js";

const FENCE = /^\s{0,3}```[\w+#.-]*\s*$/;

const PHASES = {
  sending: "sending",
  waiting: "waiting for a worker",
  parked: "parked until it is due",
  running: "answering",
  retrying: "waiting for another attempt",
  done: "done",
  failed: "failed",
  cancelled: "stopped",
  unsent: "not sent",
};

/** Makes an element; what is not a string among its children stands there already. */
function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function button(label, className, act) {
  const made = element("button", className, label);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

/** Cuts an answer at its code fences, in order. An open fence is code up to the end. */
function parts(text) {
  const found = [{ code: false, lines: [] }];
  for (const line of text.split("\n")) {
    if (FENCE.test(line)) found.push({ code: !found.at(-1).code, lines: [] });
    else found.at(-1).lines.push(line);
  }
  return found
    .map(({ code, lines }) => ({ code, text: lines.join("\n") }))
    .filter((part) => part.code || part.text);
}

/** Shows an answer, and touches only what has changed: a selection in the rest stays. */
function write(container, text) {
  const wanted = parts(text);
  wanted.forEach((part, at) => {
    const name = part.code ? "PRE" : "P";
    let node = container.children[at];
    if (node?.nodeName !== name) {
      const made = element(name);
      // What scrolls sideways must be reachable by keyboard.
      if (part.code) made.tabIndex = 0;
      if (node) node.replaceWith(made);
      else container.append(made);
      node = made;
    }
    append(node, part.text);
  });
  while (container.children.length > wanted.length) container.lastElementChild.remove();
}

function append(node, text) {
  const shown = node.textContent;
  if (node.firstChild && text.startsWith(shown)) node.firstChild.appendData(text.slice(shown.length));
  else node.textContent = text;
}

/** Shows a turn; `show` again whenever the turn has changed. */
export class TurnView {
  constructor(turn) {
    this.turn = turn;
    this.phase = element("span", "phase");
    this.thoughts = element("pre", "");
    this.thinking = element("details", "thoughts", element("summary", "", "Thoughts"), this.thoughts);
    this.text = element("div", "text");
    this.refusal = element("p", "refusal");
    this.note = element("p", "note");
    this.trouble = element("div", "trouble");
    this.facts = element("p", "facts");
    const question = element("section", "question", element("h3", "who", "You"), element("p", "", turn.question));
    const head = element("header", "", element("h3", "who", turn.model), this.phase);
    this.answer = element("section", "answer", head, this.thinking, this.text, this.refusal, this.note, this.trouble, this.facts);
    this.node = element("article", "turn", question, this.answer);
    this.show();
  }

  show() {
    const { turn } = this;
    this.answer.dataset.phase = turn.phase;
    this.phase.textContent = turn.stopping && !isOver(turn.phase) ? "stopping" : phase(turn);
    this.answer.dataset.cut = String(Boolean(turn.cut || turn.refusal));
    this.thinking.hidden = !turn.thoughts;
    append(this.thoughts, turn.thoughts ?? "");
    write(this.text, turn.text);
    append(this.refusal, turn.refusal ?? "");
    this.note.textContent = turn.link || turn.note || "";
    if (!turn.trouble) this.trouble.replaceChildren();
    this.facts.replaceChildren(...facts(turn));
  }

  /** Says what went wrong, above a button that can be pressed after `again.wait` seconds. */
  complain({ title, text }, again) {
    const said = element("div", "", element("strong", "", title), element("p", "", text));
    said.setAttribute("role", "alert");
    this.trouble.replaceChildren(said, againButton(again));
  }
}

function phase(turn) {
  if (turn.phase === "running" && turn.thoughts && !turn.text && !turn.refusal) return "thinking";
  if (turn.phase === "done" && turn.refusal) return "refused";
  if (turn.phase === "done" && turn.cut) return "cut short";
  const attempt = turn.attempt > 1 && !isOver(turn.phase) ? `attempt ${turn.attempt} …` : null;
  return turn.phase === "running" && attempt ? attempt : PHASES[turn.phase];
}

function againButton({ label, wait, act }) {
  const made = button(label, "", act);
  const until = Date.now() + (wait ?? 0) * 1000;
  function tick() {
    const left = Math.ceil((until - Date.now()) / 1000);
    made.disabled = left > 0;
    made.textContent = left > 0 ? `${label} in ${left} s` : label;
    if (left > 0) setTimeout(tick, 250);
  }
  tick();
  return made;
}

/** What the job was like, once it is over; its ID as soon as it has one. */
function facts(turn) {
  const { job, attempt, ended } = turn;
  const told = [];
  if (ended?.code) told.push(ended.code);
  if (ended?.usage) told.push(`${ended.usage.completion_tokens} tokens`);
  if (ended?.ttft_ms != null) told.push(`first after ${span(ended.ttft_ms)}`);
  if (ended?.run_ms != null) told.push(`${span(ended.run_ms)} in all`);
  if (ended && attempt > 1) told.push(`attempt ${attempt}`);
  const items = told.map((fact) => element("span", "", fact));
  if (job) items.push(element("span", "", "job ", element("code", "", job)));
  // The space is for whoever copies or hears the line.
  return items.flatMap((item) => [item, " "]);
}
