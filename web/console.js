// The console page: its controls, the gateway behind it, and the key that the gateway may ask for.

import { Conversation } from "./conversation.js";
import { Gateway } from "./gateway.js";
import { Panel } from "./panel.js";
import * as store from "./store.js";
import { delay } from "./stream.js";
import { refusal, span } from "./words.js";

const $ = (id) => document.getElementById(id);

let gateway = new Gateway(store.key.get());
let meeting = 0;
/** Resolved once the models are known, or known not to be. */
const offered = Promise.withResolvers();

const panel = new Panel($("panel"));
const conversation = new Conversation($("log"), $("turns"), gateway, {
  changed: arrange,
  said: (text) => ($("status").textContent = text),
  keyRefused: () => askKey(true),
});

function arrange() {
  const busy = Boolean(conversation.live);
  $("empty").hidden = !conversation.isEmpty;
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("fresh").disabled = busy || conversation.isEmpty;
  $("question").placeholder = busy
    ? "Stop, or Esc, ends the answer; the next question can be written meanwhile"
    : "Ask a question";
}

// --- the gateway and its key ---

/** Introduces the page to the gateway; when that has worked, everything else begins. */
async function meet(failures = 0) {
  clearTimeout(meeting);
  let me;
  try {
    me = await gateway.whoami();
  } catch (refused) {
    if (refused.status === 401) askKey(Boolean(gateway.key));
    else meetLater(refused, failures);
    return;
  }
  if (gateway.key) store.key.set(gateway.key);
  $("notice").hidden = true;
  $("key-form").hidden = true;
  $("composer").hidden = false;
  $("who").hidden = !me.key;
  $("tenant").textContent = me.tenant;
  panel.watch(gateway);
  conversation.resume(gateway);
  offerModels();
}

function meetLater(refused, failures) {
  const ms = Math.max(delay(failures + 1), (refused.retryAfter ?? 0) * 1000);
  const { title, text } = refusal(refused);
  $("notice").hidden = false;
  $("notice-text").textContent = `${title}. ${text} Next try in ${span(ms)}.`;
  meeting = setTimeout(() => meet(failures + 1), ms);
}

function askKey(wrong) {
  store.key.forget();
  gateway = new Gateway(null);
  panel.watch(gateway);
  $("who").hidden = true;
  $("composer").hidden = true;
  $("notice").hidden = true;
  $("key-form").hidden = false;
  $("key-trouble").hidden = !wrong;
  $("key").setAttribute("aria-invalid", String(wrong));
  $("key").value = "";
  $("key").focus();
}

function useKey(event) {
  event.preventDefault();
  gateway = new Gateway($("key").value.trim());
  meet();
}

function forgetKey() {
  conversation.pause();
  store.key.forget();
  gateway = new Gateway(null);
  meet();
}

// --- models ---

async function offerModels() {
  const names = await gateway.models().catch(() => []);
  // A name that was typed before the list came is meant.
  const typed = $("model").hidden ? "" : $("model").value.trim();
  const wanted = typed || (store.model.get() ?? conversation.lastModel ?? "");
  const other = new Option("another …", "");
  $("models").replaceChildren(...names.map((name) => new Option(name, name)), other);
  if (names.includes(wanted)) $("models").value = wanted;
  else if (wanted) other.selected = true;
  if (!$("model").value) $("model").value = wanted;
  $("models").hidden = names.length === 0;
  arrangeModels();
  offered.resolve();
}

/** A name can be typed where no list has it. */
function arrangeModels() {
  const free = $("models").value === "";
  $("model").hidden = !free;
  $("model").required = free;
}

// --- what people do ---

async function submit(event) {
  event.preventDefault();
  await offered.promise;
  const question = $("question").value.trim();
  if (!question || conversation.live || !$("composer").reportValidity()) return;
  const model = $("models").value || $("model").value.trim();
  store.model.set(model);
  $("question").value = "";
  conversation.ask(question, model);
}

function enterSends(event) {
  // While a word is being composed by an input method, Enter belongs to the word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!conversation.live) $("composer").requestSubmit();
}

function switchTheme() {
  const { dataset } = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = (dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  localStorage.setItem("millstream.theme", dataset.theme);
}

function clear() {
  conversation.clear();
  $("question").focus();
}

function stop() {
  conversation.stop();
  $("question").focus();
}

$("composer").addEventListener("submit", submit);
$("question").addEventListener("keydown", enterSends);
$("stop").addEventListener("click", stop);
$("fresh").addEventListener("click", clear);
$("theme").addEventListener("click", switchTheme);
$("key-form").addEventListener("submit", useKey);
$("forget").addEventListener("click", forgetKey);
$("notice-now").addEventListener("click", () => meet());
$("models").addEventListener("change", () => {
  arrangeModels();
  if (!$("model").hidden) $("model").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) conversation.stop();
});
for (const example of document.querySelectorAll("#examples button")) {
  example.addEventListener("click", () => {
    $("question").value = example.textContent;
    $("question").focus();
  });
}

arrange();
meet();
