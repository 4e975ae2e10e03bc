// The console page in a real browser, before real processes. What the page shows is asserted on its DOM
// and compared with what the gateway tells of the job. SCREENSHOTS names a folder for pictures.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { chatters, flaws } from "./layout.mjs";
import { PATIENCE, Site, until } from "./site.mjs";

const QUESTION = "What is a Redis stream, in two sentences?";
const OVER = ["done", "failed", "cancelled"];

let site;
let browser;
let gateway;
let worker;
let complaints;

before(async () => {
  site = await Site.start();
  gateway = await site.gateway();
  worker = await site.worker();
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
  await site?.end();
});

beforeEach(() => (complaints = []));
afterEach(() => assert.deepEqual(complaints, [], "the browser complains"));

/** A page of its own, with nothing stored, that has met the gateway. */
async function visit(t, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  t.after(() => context.close());
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    if (/Content Security Policy/.test(message.text())) complaints.push(message.text());
  });
  await page.goto(site.url);
  return page;
}

async function ready(t, options) {
  const page = await visit(t, options);
  await page.waitForSelector("#panel[data-state=live]");
  return page;
}

async function ask(page, question = QUESTION) {
  await page.fill("#question", question);
  await page.keyboard.press("Enter");
}

/** Asks a model by its name, with directives for the simulator behind it. */
async function choose(page, model) {
  if (await page.isVisible("#models")) await page.selectOption("#models", "");
  await page.fill("#model", model);
}

const last = (page, part) => page.locator(`.turn:last-child ${part}`);
const text = (page) => page.evaluate(() => document.querySelector(".turn:last-child .text")?.textContent ?? "");
const phase = (page) => last(page, ".answer").getAttribute("data-phase");
const jobId = (page) => last(page, ".facts code").textContent();

function grown(page, length) {
  return until(`the text is longer than ${length}`, async () => {
    const found = await text(page);
    return found.length > length && found;
  });
}

/** Waits for the job's end on the page; its text must be that of the job, to the letter. */
async function concluded(page, state = "done", headers = {}) {
  await page.waitForSelector(`.turn:last-child [data-phase=${state}]`);
  const job = await site.job(await jobId(page), headers);
  assert.equal(job.state, state);
  assert.equal(await text(page), job.text);
  return job;
}

test("an answer grows on the page, and is the job's", async (t) => {
  const page = await ready(t);
  await page.fill("#question", "one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  assert.equal(await page.locator(".turn").count(), 0, "Shift and Enter sends nothing");
  await page.keyboard.press("Enter");

  let seen = "";
  for (let step = 0; step < 4; step += 1) {
    const more = await grown(page, seen.length);
    assert.ok(more.startsWith(seen));
    assert.equal(await phase(page), "running");
    seen = more;
  }
  assert.ok(!(await page.evaluate(chatters)), "no live region reads out each token");
  const job = await concluded(page);
  assert.equal(job.text.split(" ").length, 80);
  assert.equal(await last(page, ".question p").textContent(), "one\ntwo");
  assert.match(await page.textContent("#status"), /complete: 80 words/);
});

test("a question is asked with the conversation so far", async (t) => {
  const page = await ready(t);
  const sent = [];
  page.on("request", (request) => {
    if (request.method() === "POST" && request.url().endsWith("/v1/jobs")) sent.push(request.postDataJSON());
  });
  await choose(page, "any?tokens=3");
  await ask(page, "first");
  const { text: answer } = await concluded(page);
  await ask(page, "second");
  await page.waitForSelector(".turn:nth-child(2) [data-phase=done]");
  assert.deepEqual(sent[1], {
    model: "any?tokens=3",
    messages: [
      { role: "user", content: "first" },
      { role: "assistant", content: answer },
      { role: "user", content: "second" },
    ],
  });
});

test("a reload in mid-answer shows the text so far at once, and goes on behind it", async (t) => {
  const page = await ready(t);
  await ask(page);
  const before = await grown(page, 60);

  // What the stream would bring is held back until what is there without it has been looked at.
  const resumed = [];
  let release;
  const held = new Promise((resolve) => (release = resolve));
  await page.route("**/events**", async (route) => {
    resumed.push(new URL(route.request().url()).searchParams.get("after"));
    await held;
    await route.continue();
  });
  await page.reload();
  await until("the stream is asked for", () => resumed.length > 0);
  const shown = await text(page);
  assert.ok(shown.startsWith(before), "the text so far is there before the stream is");
  assert.match(resumed[0], /^\d+-[1-9]\d*$/, "the stream goes on behind the last event");
  release();

  await grown(page, shown.length);
  assert.equal(await phase(page), "running", "it goes on while the job runs");
  assert.equal((await concluded(page)).attempt, 1);
});

test("a worker killed in mid-answer: the next attempt's text replaces what was there", async (t) => {
  const page = await ready(t);
  await ask(page);
  const lost = await grown(page, 60);
  const second = await site.worker();
  await worker.end("SIGKILL");
  worker = second;

  await until("the second attempt begins", async () => (await last(page, ".phase").textContent()) === "attempt 2 …");
  const job = await concluded(page);
  assert.equal(job.attempt, 2);
  assert.ok(!job.text.startsWith(lost.slice(0, 40)), "the simulator says something else at each attempt");
  assert.match(await last(page, ".facts").textContent(), /attempt 2/);
});

for (const signal of ["SIGTERM", "SIGKILL"]) {
  test(`the gateway restarts after ${signal} in mid-answer`, async (t) => {
    const page = await ready(t);
    // Long enough to be in progress when the gateway is back.
    await choose(page, "any?tokens=160");
    await ask(page);
    await grown(page, 60);
    await gateway.end(signal);
    gateway = await site.gateway();

    await grown(page, (await text(page)).length);
    assert.equal(await phase(page), "running", "it goes on while the job runs");
    assert.equal((await concluded(page)).attempt, 1);
  });
}

test("stop cancels the job, and what had come stays", async (t) => {
  const page = await ready(t);
  await ask(page);
  await grown(page, 30);
  await page.click("#stop");
  const job = await concluded(page, "cancelled");
  assert.ok(job.text.split(" ").length < 80);

  await ask(page);
  await grown(page, 30);
  await page.keyboard.press("Escape");
  await concluded(page, "cancelled");
});

test("a reload after a stop still shows what had come", async (t) => {
  const page = await ready(t);
  await ask(page);
  await grown(page, 30);
  await page.keyboard.press("Escape");
  const { text: kept } = await concluded(page, "cancelled");
  await page.reload();
  await page.waitForSelector("#panel[data-state=live]");
  assert.equal(await text(page), kept);
  assert.ok(await page.isVisible("#send"));
});

/** Makes the page believe that its tab is hidden, or visible. */
function turn(page, state) {
  return page.evaluate((value) => {
    Object.defineProperty(document, "visibilityState", { value, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, state);
}

test("a hidden tab has no stream and asks for no queues; shown again, it goes on", async (t) => {
  const page = await ready(t);
  const open = new Set();
  let looks = 0;
  page.on("request", (request) => {
    if (request.url().includes("/events")) open.add(request);
    if (request.url().endsWith("/v1/queues")) looks += 1;
  });
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => open.delete(request));

  await choose(page, "any?tokens=160");
  await ask(page);
  await grown(page, 60);
  assert.equal(open.size, 1);
  await turn(page, "hidden");
  await until("the stream is closed", () => open.size === 0);
  const [shown, looked, id] = [await text(page), looks, await jobId(page)];
  // Four seconds of tokens: time enough for two looks at the queues.
  await until("the job goes on", async () => (await site.job(id)).text.length > shown.length + 400);
  assert.equal(await text(page), shown);
  assert.equal(looks, looked);
  assert.equal(open.size, 0);

  await turn(page, "visible");
  await grown(page, shown.length);
  assert.equal(open.size, 1);
  await concluded(page);
  await until("the queues are asked for again", () => looks > looked);
});

test("a model that refuses: the page says why, and what to do", async (t) => {
  const page = await ready(t);
  await choose(page, "any?fault=status:404");
  await ask(page);
  await page.waitForSelector("[data-phase=failed] .trouble");
  assert.match(await last(page, ".trouble").textContent(), /No answer.*404.*Check the model's name.*Ask again/s);
  await page.reload();
  await page.waitForSelector("#panel[data-state=live]");
  assert.match(await last(page, ".trouble").textContent(), /No answer/, "after a reload too");
});

test("an attempt that fails in mid-answer: reason and delay, then the next one's text", async (t) => {
  const page = await ready(t);
  await choose(page, "any?tokens=20,fault=drop:8*1");
  await ask(page, "Try again?");
  await page.waitForSelector("[data-phase=retrying]");
  assert.match(await last(page, ".answer > .note").textContent(), /Attempt 1 failed: .*next begins in \d/);
  assert.equal((await concluded(page)).attempt, 2);
});

test("a gateway that is down: the question stays, and is asked when it is back", async (t) => {
  const page = await ready(t);
  await gateway.end("SIGKILL");
  await ask(page);
  await page.waitForSelector("[data-phase=unsent] .trouble");
  assert.match(await last(page, ".trouble").textContent(), /The gateway does not answer.*Check that millstream-gateway is running/);
  await page.waitForSelector("#panel[data-state=blind]");
  gateway = await site.gateway();
  await last(page, ".trouble button").click();
  await concluded(page);
  await page.waitForSelector("#panel[data-state=live]");
});

/** Runs the gateway in another way for one test. */
async function differently(t, env) {
  await gateway.end();
  gateway = await site.gateway(env);
  t.after(async () => {
    await gateway.end();
    gateway = await site.gateway();
  });
}

test("a full queue: the question stays, and can be asked again after the time that the gateway names", async (t) => {
  await differently(t, { MILLSTREAM_REDIS__LIMITS__MAX_JOBS: "1" });
  const id = await fill("any?tokens=2000");
  const page = await ready(t);
  await ask(page);
  await page.waitForSelector("[data-phase=unsent] .trouble");
  assert.match(await last(page, ".trouble").textContent(), /The queue is full.*Try again in \d+/s);
  await fetch(`${site.url}/v1/jobs/${id}`, { method: "DELETE" });
  await until("the job is over", async () => OVER.includes((await site.job(id)).state));
  await last(page, ".trouble button:enabled").click();
  await concluded(page);
});

/** Gives the queue a job that lasts, and returns its ID. */
async function fill(model) {
  const answer = await fetch(`${site.url}/v1/jobs`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, messages: [{ role: "user", content: "Wait." }] }),
  });
  assert.equal(answer.status, 202);
  return (await answer.json()).id;
}

test("every state is whole and readable, narrow and wide, light and dark", async (t) => {
  const folder = process.env.SCREENSHOTS;
  if (folder) mkdirSync(folder, { recursive: true });
  for (const [width, height] of [[375, 720], [1280, 800]]) {
    for (const colorScheme of ["light", "dark"]) {
      const page = await ready(t, { viewport: { width, height }, colorScheme });
      const look = async (state) => {
        assert.deepEqual(await page.evaluate(flaws), [], `${state}, ${colorScheme}, ${width}`);
        const path = folder && join(folder, `${state}-${colorScheme}-${width}.png`);
        if (path) await page.screenshot({ path });
      };
      await look("empty");
      await ask(page);
      await grown(page, 200);
      await look("busy");
      await page.keyboard.press("Escape");
      await concluded(page, "cancelled");
      await choose(page, "any?fault=status:404");
      await ask(page, "And a consumer group?");
      await page.waitForSelector("[data-phase=failed] .trouble");
      await look("error");
      await page.context().close();
    }
  }
});

test("the theme can be switched, and stays so", async (t) => {
  const page = await ready(t, { colorScheme: "light" });
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.click("#theme");
  const dark = await ground();
  assert.notEqual(dark, light);
  await page.reload();
  assert.equal(await ground(), dark);
});

test("who wants less motion gets none", async (t) => {
  const moving = (page) => page.evaluate(() => document.getAnimations().length);
  for (const [reducedMotion, most] of [["no-preference", 1], ["reduce", 0]]) {
    const page = await ready(t, { reducedMotion });
    await ask(page);
    await grown(page, 10);
    assert.equal(await moving(page), most);
    await page.keyboard.press("Escape");
    await concluded(page, "cancelled");
  }
});

test("every control is reached by Tab, and shows it", async (t) => {
  const page = await ready(t);
  await choose(page, "any");
  const reached = [];
  while (reached.at(-1) !== "send" && reached.length < 20) {
    await page.keyboard.press("Tab");
    const [label, outline] = await page.evaluate(() => {
      const node = document.activeElement;
      const { outlineStyle, outlineWidth } = getComputedStyle(node);
      return [node.id || node.textContent, `${outlineStyle} ${outlineWidth}`];
    });
    assert.equal(outline, "solid 2px", `${label} shows that it has the focus`);
    reached.push(label);
  }
  for (const id of ["theme", "log", "question", "model", "send"]) assert.ok(reached.includes(id), `${id} in ${reached}`);
});
