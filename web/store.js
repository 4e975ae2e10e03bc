// What a reload must not lose. It stands in sessionStorage, so each tab has its own conversation, and
// the API key goes with the tab.

import { BASE } from "./base.js";

// Two gateways below paths of one origin have nothing in common, their keys least of all.
const SCOPE = BASE.pathname === "/" ? "" : BASE.pathname;
const CONVERSATION = `millstream.conversation${SCOPE}`;
const KEY = `millstream.key${SCOPE}`;
const MODEL = `millstream.model${SCOPE}`;

/** Longest time between an event and its place in the store, in milliseconds. */
const LAG = 250;

/** The turns of the conversation, the last of which may be in progress. */
export const turns = load();

let timer = 0;

function load() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(CONVERSATION));
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

/** Keeps the conversation; text and last event ID in one write, so that they always belong together. */
export function save() {
  clearTimeout(timer);
  timer = 0;
  keep(sessionStorage, CONVERSATION, JSON.stringify(turns));
}

/** Keeps it within a moment: a crash costs only what the gateway can send again. */
export function saveSoon() {
  timer ||= setTimeout(save, LAG);
}

addEventListener("pagehide", save);

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

export const model = {
  get: () => localStorage.getItem(MODEL),
  set: (value) => keep(localStorage, MODEL, value),
};

function keep(storage, name, value) {
  try {
    storage.setItem(name, value);
  } catch (error) {
    // A full store costs the resumption after a reload, not the conversation itself.
    console.warn(`${name} is not kept: ${error.message}`);
  }
}
