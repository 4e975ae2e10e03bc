// Whatever happens in mid-answer, the page ends with the whole text of the finished job.

import assert from "node:assert/strict";
import { test } from "node:test";
import { until } from "./site.mjs";
import { ask, choose, concluded, grown, jobId, last, phase, ready, restartGateway, stage, text } from "./page.mjs";

test("a reload in mid-answer shows the text so far at once, and goes on behind it", async (t) => {
  const page = await ready(t);
  // Long enough to be in progress whatever happens to the page meanwhile.
  await choose(page, "any?tokens=200");
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
  await choose(page, "any?tokens=200");
  await ask(page);
  const lost = await grown(page, 60);
  const second = await stage.site.worker();
  await stage.worker.end("SIGKILL");
  stage.worker = second;

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
    await choose(page, "any?tokens=200");
    await ask(page);
    await grown(page, 60);
    await restartGateway(signal);

    await grown(page, (await text(page)).length);
    assert.equal(await phase(page), "running", "it goes on while the job runs");
    assert.equal((await concluded(page)).attempt, 1);
  });
}

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

  await choose(page, "any?tokens=200");
  await ask(page);
  await grown(page, 60);
  assert.equal(open.size, 1);
  await turn(page, "hidden");
  await until("the stream is closed", () => open.size === 0);
  const [shown, looked, id] = [await text(page), looks, await jobId(page)];
  // Four seconds of tokens: time enough for two looks at the queues.
  await until("the job goes on", async () => (await stage.site.job(id)).text.length > shown.length + 400);
  assert.equal(await text(page), shown);
  assert.equal(looks, looked);
  assert.equal(open.size, 0);

  await turn(page, "visible");
  await grown(page, shown.length);
  assert.equal(open.size, 1);
  await concluded(page);
  await until("the queues are asked for again", () => looks > looked);
});
