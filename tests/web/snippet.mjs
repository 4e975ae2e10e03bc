// What docs/HTTP.md tells a page of an application to do, done by such a page: another origin than the
// gateway's, a token in place of a key, and nothing but the browser's own EventSource.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";
import { restartGateway, stage, visit } from "./page.mjs";
import { PATIENCE, until } from "./site.mjs";

const [, snippet] = readFileSync(new URL("../../docs/HTTP.md", import.meta.url), "utf8").match(/```js\n(.*?)```/s);

/** Sends the gateway a request of the application's server. */
async function post(path, body) {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(stage.site.url + path, { method: "POST", headers, body });
  assert.ok(answer.ok, await answer.clone().text());
  return answer.json();
}

/** The application's server: a page, and `/start`, which enqueues a job and answers with its token. */
async function application(t) {
  const job = JSON.stringify({ model: "any?tokens=240", messages: [{ role: "user", content: "Why?" }] });
  const server = createServer(async (request, response) => {
    if (request.url !== "/start") {
      response.setHeader("content-type", "text/html");
      return response.end(request.url === "/" ? "<!doctype html><p id=answer></p>" : "");
    }
    const { id } = await post("/v1/jobs", job);
    server.job = id;
    response.end(JSON.stringify(await post(`/v1/jobs/${id}/token`)));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  server.origin = `http://127.0.0.1:${server.address().port}`;
  return server;
}

test("the documented page ends with the job's text, though gateway and worker end in mid-answer", async (t) => {
  const server = await application(t);
  // A token outlives the gateway that made it where they share a secret.
  const allowed = {
    MILLSTREAM_GATEWAY__CORS_ORIGINS: server.origin,
    MILLSTREAM_GATEWAY__SECRET: "a secret of at least thirty-two bytes",
  };
  await restartGateway("SIGTERM", allowed);
  const page = await visit(t);
  await page.goto(server.origin);
  await page.addScriptTag({ type: "module", content: snippet.replace("https://gateway.example.com", stage.site.url) });
  const text = () => page.textContent("#answer");
  const grown = (length) => until(`longer than ${length}`, async () => (await text()).length > length);

  await grown(60);
  await restartGateway("SIGTERM", allowed);
  await grown((await text()).length);
  const second = await stage.site.worker();
  await stage.worker.end("SIGKILL");
  stage.worker = second;

  const job = await until("the job is done", async () => {
    const found = await stage.site.job(server.job);
    return found.state === "done" && found;
  }, 2 * PATIENCE);
  assert.equal(job.attempt, 2);
  await until("the page has the job's text", async () => (await text()) === job.text);
});
