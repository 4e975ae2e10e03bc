// What the page says when something is wrong, and how it goes on.

import assert from "node:assert/strict";
import { test } from "node:test";
import { flaws } from "./layout.mjs";
import { until } from "./site.mjs";
import { ask, choose, concluded, grown, last, ready, restartGateway, stage, visit } from "./page.mjs";

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
  await stage.gateway.end("SIGKILL");
  await ask(page);
  await page.waitForSelector("[data-phase=unsent] .trouble");
  assert.match(await last(page, ".trouble").textContent(), /The gateway does not answer.*Check that millstream-gateway is running/);
  await page.waitForSelector("#panel[data-state=blind]");
  stage.gateway = await stage.site.gateway();
  await last(page, ".trouble button").click();
  await concluded(page);
  await page.waitForSelector("#panel[data-state=live]");
});

test("an earlier question that was not sent can be tried again, and stopped", async (t) => {
  const page = await ready(t);
  await stage.gateway.end("SIGKILL");
  await ask(page, "first");
  await page.waitForSelector("[data-phase=unsent] .trouble");
  stage.gateway = await stage.site.gateway();
  await page.waitForSelector("#panel[data-state=live]");
  await choose(page, "any?tokens=2");
  await ask(page, "second");
  await concluded(page);
  await page.locator(".turn:first-child .trouble button").click();
  await page.waitForSelector(".turn:first-child [data-phase=running]");
  await page.reload();
  await page.waitForSelector(".turn:first-child [data-phase=running]");
  await page.click("#stop");
  await page.waitForSelector(".turn:first-child [data-phase=cancelled]");
  await page.waitForSelector("#send:visible");
});

/** Runs the gateway in another way for one case. */
async function differently(t, env) {
  await restartGateway("SIGTERM", env);
  t.after(() => restartGateway("SIGTERM"));
}

test("a full queue: the question stays, and can be asked again after the time that the gateway names", async (t) => {
  await differently(t, { MILLSTREAM_REDIS__LIMITS__MAX_JOBS: "1" });
  const id = await fill("any?tokens=2000");
  const page = await ready(t);
  await ask(page);
  await page.waitForSelector("[data-phase=unsent] .trouble");
  assert.match(await last(page, ".trouble").textContent(), /The queue is full.*Try again in \d+/s);
  await fetch(`${stage.site.url}/v1/jobs/${id}`, { method: "DELETE" });
  await until("the job is over", async () => (await stage.site.job(id)).state === "cancelled");
  await last(page, ".trouble button:enabled").click();
  await concluded(page);
});

/** Gives the queue a job that lasts, and returns its ID. */
async function fill(model) {
  const answer = await fetch(`${stage.site.url}/v1/jobs`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, messages: [{ role: "user", content: "Wait." }] }),
  });
  assert.equal(answer.status, 202);
  return (await answer.json()).id;
}

/** Makes the gateway ask for keys; gives the environment that makes new ones. */
async function locked(t) {
  const env = {
    MILLSTREAM_GATEWAY__KEYS: `${stage.site.folder}/keys-${Date.now()}.toml`,
    MILLSTREAM_GATEWAY__SECRET: "a secret of the tests, of 32 bytes and more",
  };
  await stage.site.key("first", "enqueue,read", env);
  await differently(t, env);
  return env;
}

async function enter(page, key) {
  await page.fill("#key", key);
  await page.keyboard.press("Enter");
}

test("a gateway with keys: a wrong one is refused, a right one follows answers by a token, and outlives a reload", async (t) => {
  const env = await locked(t);
  const key = await stage.site.key("second", "enqueue,read,admin", env);
  const page = await visit(t, { viewport: { width: 375, height: 720 } });
  const urls = [];
  page.on("request", (request) => urls.push(request.url()));
  await page.waitForSelector("#key:focus");
  assert.ok(!(await page.isVisible("#key-trouble")), "nobody has entered a wrong key yet");
  await enter(page, "ms_second_wrong");
  await page.waitForSelector("#key-trouble:visible");
  assert.match(await page.textContent("#key-trouble"), /does not accept this key\. Paste it again/);
  await page.waitForSelector("#panel .note:text('once you have entered a key')");
  assert.deepEqual(await page.evaluate(flaws), []);

  await until("the new key is in force", async () => (await stage.site.get("/whoami", bearer(key))).ok);
  await enter(page, key);
  await page.waitForSelector("#panel[data-state=live]");
  await ask(page);
  const before = await grown(page, 60);
  await page.reload();
  await grown(page, before.length);
  assert.deepEqual(await page.evaluate(flaws), []);
  await concluded(page, "done", bearer(key));
  assert.ok(urls.some((url) => /events\?.*token=/.test(url)));
  assert.ok(!urls.some((url) => url.includes(key)), "the key is in no address");

  await page.click("#forget");
  await page.waitForSelector("#key:focus");
});

test("a key without the right admin: the panel says so, and everything else works", async (t) => {
  const env = await locked(t);
  const key = await stage.site.key("second", "enqueue,read", env);
  await until("the new key is in force", async () => (await stage.site.get("/whoami", bearer(key))).ok);
  const page = await visit(t);
  await enter(page, key);
  await page.waitForSelector("#panel .note:text('keys with the right admin, which this key lacks')");
  await ask(page);
  await concluded(page, "done", bearer(key));
});

const bearer = (key) => ({ authorization: `Bearer ${key}` });
