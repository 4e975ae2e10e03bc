// Asking, and what a person sees of the answer.

import assert from "node:assert/strict";
import { test } from "node:test";
import { chatters } from "./layout.mjs";
import { ask, choose, concluded, grown, jobId, last, phase, play, ready, stage, text } from "./page.mjs";
import { below } from "./site.mjs";

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

test("markup in a question and in an answer is text", async (t) => {
  const page = await ready(t);
  const markup = "<img src=x onerror='document.title = 1'><script>document.title = 2</script>";
  const data = JSON.stringify({ choices: [{ index: 0, delta: { content: markup } }] });
  await page.route("**/events**", (route) => route.fulfill({
    contentType: "text/event-stream",
    body: `id: 1-0\nevent: started\ndata: {"attempt":1}\n\nid: 1-1\nevent: delta\ndata: ${data}\n\n`,
  }));
  const title = await page.title();
  await ask(page, markup);
  await grown(page, markup.length - 1);
  assert.equal(await text(page), markup);
  assert.equal(await last(page, ".question p").textContent(), markup);
  assert.equal(await page.locator(".turn img, .turn script").count(), 0);
  assert.equal(await page.title(), title);
});

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

// A refusal was an answer without text, and one that was cut off looked whole.
test("a refusal and an answer that was cut off are told as what they are", async (t) => {
  const page = await ready(t);
  await play(t, page, [{ refusal: "I cannot " }, { refusal: "do that." }]);
  await ask(page);
  await page.waitForSelector(".turn:last-child [data-phase=done]");
  assert.equal(await last(page, ".refusal").textContent(), "I cannot do that.");
  assert.equal(await last(page, ".phase").textContent(), "refused");
  assert.doesNotMatch(await last(page, ".note").textContent(), /without text/);
  for (const [reason, words] of [["length", /limit of its length/], ["content_filter", /content filter/]]) {
    await page.unrouteAll();
    await play(t, page, [{ content: "As far as" }], { reason });
    await ask(page);
    await page.waitForSelector(".turn:last-child [data-phase=done]");
    assert.equal(await text(page), "As far as");
    assert.equal(await last(page, ".phase").textContent(), "cut short");
    assert.match(await last(page, ".note").textContent(), words);
  }
});

// While a model thought, the page showed nothing, and of a list of parts it showed [object Object].
test("a model that is thinking is seen to, and its thoughts stay apart", async (t) => {
  const page = await ready(t);
  const thinking = [{ type: "thinking", thinking: [{ type: "text", text: "And so." }] }];
  const deltas = [{ reasoning_content: "Hm. " }, { content: thinking }, { content: "Here it is." }];
  const go = await play(t, page, deltas, { held: 2 });
  await ask(page);
  await page.waitForSelector(".turn:last-child .thoughts:not([hidden])");
  assert.equal(await last(page, ".phase").textContent(), "thinking");
  go();
  await page.waitForSelector(".turn:last-child [data-phase=done]");
  assert.equal(await text(page), "Here it is.");
  assert.equal(await last(page, ".thoughts pre").textContent(), "Hm. And so.");
  await page.reload();
  assert.equal(await last(page, ".thoughts pre").textContent(), "Hm. And so.");
});

// Behind a proxy that serves the gateway below a path, the page found neither its files nor the gateway.
test("the page works below a path", async (t) => {
  const [url, asked] = await below(t, "/llm", stage.site.url);
  const page = await ready(t, { url: `${url}/llm/` });
  await choose(page, "any?tokens=5");
  await ask(page);
  await page.waitForSelector(".turn:last-child [data-phase=done]");
  const job = await stage.site.job(await jobId(page));
  assert.equal(await text(page), job.text);
  assert.deepEqual(asked.filter((path) => !path.startsWith("/llm/")), []);
});
