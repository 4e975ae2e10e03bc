// A whole site of real processes: Redis, the simulated model, workers and the gateway.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer as createWeb, request as send } from "node:http";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

/** Longest time for anything that a test waits for, in milliseconds. */
export const PATIENCE = 20_000;

/** Waits until `check` gives something true, and returns it. */
export async function until(what, check, patience = PATIENCE) {
  const deadline = Date.now() + patience;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < deadline, `never happened: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A process that is killed with the site, and what it has said. */
class Program {
  constructor(command, args, env, folder) {
    this.said = [];
    const { PATH, HOME, LLVM_PROFILE_FILE = "" } = process.env;
    this.child = spawn(command, args, {
      cwd: folder,
      env: { PATH, HOME, ...(LLVM_PROFILE_FILE && { LLVM_PROFILE_FILE }), ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.over = false;
    // Behind the last line of output, unlike `exit`.
    this.ended = once(this.child, "close").then(() => (this.over = true));
    for (const stream of [this.child.stdout, this.child.stderr]) {
      createInterface({ input: stream }).on("line", (line) => this.said.push(line));
    }
  }


  /** Waits until `check` gives something true; a program that ends without it is an error. */
  ready(what, check) {
    return until(what, async () => {
      const over = this.over;
      const found = await check();
      assert.ok(found || !over, `${this.child.spawnfile} ended:\n${this.said.join("\n")}`);
      return found;
    });
  }

  line(pattern) {
    return this.ready(`${this.child.spawnfile} says ${pattern}`, () => {
      for (const line of this.said) {
        const found = line.match(pattern);
        if (found) return found;
      }
      return null;
    });
  }

  async end(signal = "SIGTERM") {
    if (!this.over) this.child.kill(signal);
    await this.ended;
  }
}

/**
 * A free port below those that the system gives to outgoing connections and to listeners of port 0: nobody takes
 * it before its owner has it, or while that one restarts.
 */
async function freePort() {
  for (;;) {
    const port = 12_000 + Math.floor(18_000 * Math.random());
    const server = createServer().listen(port, "127.0.0.1");
    const taken = await once(server, "listening").then(() => false, () => true);
    if (taken) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}

function program(name) {
  const path = process.env[name];
  assert.ok(path, `${name} names no program; run this by: cargo nextest run console`);
  return path;
}

export class Site {
  #programs = [];

  static async start() {
    const site = new Site();
    site.folder = mkdtempSync(join(tmpdir(), "millstream-web-"));
    const redis = await freePort();
    site.#run("redis-server", [
      "--port", `${redis}`, "--bind", "127.0.0.1", "--save", "", "--dir", site.folder,
    ]);
    await site.#programs[0].line(/Ready to accept connections/);
    const simulator = site.#run(program("MILLSTREAM"), ["simulate", "--listen", "127.0.0.1:0"], {
      MILLSTREAM_SIMULATOR__VARY: "true",
      MILLSTREAM_SIMULATOR__RATE: "20",
      MILLSTREAM_SIMULATOR__TOKENS: "80",
    });
    const [upstream] = await simulator.line(/^http:\S+/);
    site.env = { REDIS_URL: `redis://127.0.0.1:${redis}`, OPENAI_BASE_URL: upstream, OPENAI_API_KEY: "any" };
    site.port = await freePort();
    site.url = `http://127.0.0.1:${site.port}`;
    return site;
  }

  #run(command, args, env = {}) {
    const started = new Program(command, args, env, this.folder);
    this.#programs.push(started);
    return started;
  }

  async worker() {
    const worker = this.#run(program("WORKER"), [], {
      ...this.env,
      // A dead worker's job is taken over soon.
      MILLSTREAM_WORKER__LEASE: "1500ms",
      MILLSTREAM_WORKER__RENEWAL: "500ms",
      MILLSTREAM_WORKER__SWEEP: "200ms",
      MILLSTREAM_WORKER__DRAIN: "0s",
      MILLSTREAM_WORKER__RETRY__INITIAL: "1s",
    });
    await worker.line(/worker|claim/i);
    return worker;
  }

  async gateway(env = {}) {
    const gateway = this.#run(program("GATEWAY"), [], {
      ...this.env,
      MILLSTREAM_GATEWAY__LISTEN: `127.0.0.1:${this.port}`,
      ...env,
    });
    await gateway.ready("the gateway is ready", () => this.get("/readyz").then(({ ok }) => ok, () => false));
    return gateway;
  }

  /** Makes an API key. */
  async key(id, rights, env) {
    const maker = this.#run(program("MILLSTREAM"), ["keys", "create", id, "--rights", rights], env);
    const [key] = await maker.line(/^ms_\S+/);
    return key;
  }

  get(path, headers = {}) {
    return fetch(this.url + path, { headers });
  }

  /** A job as the gateway tells it. */
  async job(id, headers = {}) {
    const answer = await this.get(`/v1/jobs/${id}`, headers);
    assert.equal(answer.status, 200);
    return answer.json();
  }

  async end() {
    await Promise.all(this.#programs.map((started) => started.end("SIGKILL")));
    rmSync(this.folder, { recursive: true });
  }
}

/** A proxy that serves `target` below `path` and nothing else; its address, and the paths that it is asked for. */
export async function below(t, path, target) {
  const asked = [];
  const proxy = createWeb((incoming, outgoing) => {
    const { method, headers, url } = incoming;
    asked.push(url);
    if (!url.startsWith(`${path}/`)) {
      outgoing.writeHead(404).end();
      return;
    }
    const { host } = new URL(target);
    const passed = send(target + url.slice(path.length), { method, headers: { ...headers, host } }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    passed.on("error", () => outgoing.destroy());
    outgoing.on("close", () => passed.destroy());
    incoming.pipe(passed);
  }).listen(0, "127.0.0.1");
  t.after(() => proxy.close());
  await once(proxy, "listening");
  return [`http://127.0.0.1:${proxy.address().port}`, asked];
}
