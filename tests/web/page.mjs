// The console page in a real browser, before real processes. What the page shows is asserted on its DOM
// and compared with what the gateway tells of the job.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, afterEach, before, beforeEach } from "node:test";
import { chromium } from "playwright-core";
import { PATIENCE, Site, until } from "./site.mjs";

export const QUESTION = "What is a Redis stream, in two sentences?";

/** What the cases of a file share: `site`, and the processes that a case may end and replace. */
export const stage = {};

let browser;
let complaints;

before(async () => {
  stage.site = await Site.start();
  stage.gateway = await stage.site.gateway();
  stage.worker = await stage.site.worker();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
  });
});

after(async () => {
  await browser?.close();
  await stage.site?.end();
});

beforeEach(() => (complaints = []));
afterEach(() => assert.deepEqual(complaints, [], "the browser complains"));

/** A page of its own, with nothing stored, that has met the gateway. */
export async function visit(t, { url = stage.site.url, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  t.after(() => context.close());
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    if (/Content Security Policy/.test(message.text())) complaints.push(message.text());
  });
  await page.goto(url);
  return page;
}

/**
 * Answers what the page asks next with these deltas, in place of the model's; `go` sends what is behind the first
 * `held` of them, and the end. `job` is how the job stands then.
 */
export async function play(t, page, deltas, { held = 0, reason = "stop", job = {} } = {}) {
  let go;
  const gate = new Promise((resolve) => (go = resolve));
  if (!held) go();
  const block = (kind, data, seq) => `id: 1-${seq}\nevent: ${kind}\ndata: ${JSON.stringify(data)}\n\n`;
  const told = deltas.map((delta, at) => block("delta", { choices: [{ index: 0, delta }] }, at + 1));
  let over = false;
  const server = createServer(async (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(block("started", { attempt: 1, worker: "w" }, 0) + told.slice(0, held).join(""));
    await gate;
    over = true;
    response.end(told.slice(held).join("") + block("done", { finish_reason: reason }, told.length + 1));
  }).listen(0, "127.0.0.1");
  t.after(() => server.close());
  await once(server, "listening");
  const url = `http://127.0.0.1:${server.address().port}/`;
  await page.route(/\/v1\/jobs\/[^/?]+\/events/, (route) => route.continue({ url }));
  await page.route(/\/v1\/jobs\/[^/?]+$/, (route) => route.fulfill({ json: {
    state: over ? "done" : "running", attempt: 1, text: "", choices: [], last_event_id: `1-${told.length + 1}`,
    finish_reason: reason, usage: null, error: null, ttft_ms: 700, run_ms: 2100, ...job,
  } }));
  return go;
}

export async function ready(t, options) {
  const page = await visit(t, options);
  await page.waitForSelector("#panel[data-state=live]");
  return page;
}

export async function ask(page, question = QUESTION) {
  await page.fill("#question", question);
  await page.keyboard.press("Enter");
}

/** Asks a model by its name, with directives for the simulator behind it. */
export async function choose(page, model) {
  // Waits for the list, which hides the field when it comes.
  await page.selectOption("#models", "");
  await page.fill("#model", model);
}

export const last = (page, part) => page.locator(`.turn:last-child ${part}`);
export const text = (page) => page.evaluate(() => document.querySelector(".turn:last-child .text")?.textContent ?? "");
export const phase = (page) => last(page, ".answer").getAttribute("data-phase");
export const jobId = (page) => last(page, ".facts code").textContent();

export function grown(page, length) {
  return until(`the text is longer than ${length}`, async () => {
    const found = await text(page);
    return found.length > length && found;
  });
}

/** Waits for the job's end on the page; its text must be that of the job, to the letter. */
export async function concluded(page, state = "done", headers = {}) {
  await page.waitForSelector(`.turn:last-child [data-phase=${state}]`).catch(async (error) => {
    throw new Error(`never ${state}:\n${await page.innerText("body")}`, { cause: error });
  });
  const job = await stage.site.job(await jobId(page), headers);
  assert.equal(job.state, state);
  assert.equal(await text(page), job.text);
  return job;
}

/** Ends the gateway and starts it again at the same address. */
export async function restartGateway(signal, env) {
  await stage.gateway.end(signal);
  stage.gateway = await stage.site.gateway(env);
}
