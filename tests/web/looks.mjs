// Looks, keyboard and motion. SCREENSHOTS names a folder for pictures.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { flaws } from "./layout.mjs";
import { ask, choose, concluded, grown, play, ready } from "./page.mjs";

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
      const deltas = [{ reasoning_content: "The question is about consumer groups. First, what they are." },
        { content: "A consumer group reads a stream together" }];
      const go = await play(t, page, deltas, { held: 1, reason: "length" });
      await ask(page, "Why?");
      await page.waitForSelector(".turn:last-child .thoughts:not([hidden])");
      await page.click(".turn:last-child .thoughts summary");
      await look("thinking");
      go();
      await page.waitForSelector(".turn:last-child [data-phase=done]");
      await look("cut");
      await page.unrouteAll();
      await play(t, page, [{ refusal: "I cannot help with that." }]);
      await ask(page, "And now?");
      await page.waitForSelector(".turn:last-child [data-phase=done]");
      await look("refused");
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
  for (const id of ["theme", "log", "question", "models", "send"]) assert.ok(reached.includes(id), `${id} in ${reached}`);
});
