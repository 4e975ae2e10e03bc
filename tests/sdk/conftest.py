"""A whole site of real processes: Redis, the simulated model, workers and a gateway.

`cargo nextest run sdk` names the programs.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
import redis

PATIENCE = 30


def until(what, check):
    """Waits until `check` gives something true, and returns it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)
    return found


def free_port():
    """A free port below those that the system gives to outgoing connections and to listeners of port 0."""
    while True:
        port = 12_000 + secrets.randbelow(18_000)
        with socket.socket() as probe:
            # As whoever will listen: connections that have ended there are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Upstream(BaseHTTPRequestHandler):
    """A model that keeps the requests it is sent, and answers each with log probabilities."""

    protocol_version = "HTTP/1.1"
    WORDS = ["one ", "two ", "three"]

    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(request)
        if not request.get("stream"):
            whole = self.choice("message", "".join(self.WORDS), self.WORDS, "stop")
            whole["message"]["role"] = "assistant"
            return self.say("application/json", self.completion("chat.completion", whole))
        choices = [self.choice("delta", word, [word], None) for word in self.WORDS]
        choices[-1]["finish_reason"] = "stop"
        chunks = [self.completion("chat.completion.chunk", choice) for choice in choices]
        self.say("text/event-stream", *(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]))

    def choice(self, name, text, words, finish):
        logprobs = [
            {"token": word, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": []} for word in words
        ]
        return {
            "index": 0,
            name: {"content": text},
            "logprobs": {"content": logprobs, "refusal": None},
            "finish_reason": finish,
        }

    def completion(self, kind, choice):
        return json.dumps({"id": "x", "object": kind, "created": 1, "model": "echo", "choices": [choice]})

    def say(self, kind, *parts):
        body = "".join(parts).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Site:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="millstream-sdk-")
        self.programs = []
        self.upstreams = []
        port = free_port()
        self.run("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder)
        self.redis = redis.Redis(port=port)
        until("Redis answers", self.redis_answers)
        self.env = {"REDIS_URL": f"redis://127.0.0.1:{port}", "OPENAI_API_KEY": "any"}

    def redis_answers(self):
        """Whether it answers, and is no other that has taken the port in between."""
        [server] = self.programs
        assert server.poll() is None, f"Redis ended: {self.folder}"
        try:
            return self.redis.info("server")["process_id"] == server.pid
        except redis.ConnectionError:
            return False

    def run(self, *command, **env):
        """Starts a program, which is killed with the site."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LLVM_PROFILE_FILE") if name in os.environ}
        log = open(os.path.join(self.folder, f"{len(self.programs)}.log"), "wb")
        started = subprocess.Popen(
            command, env=kept | env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        started.log = log.name
        log.close()
        self.programs.append(started)
        return started

    def said(self, program, words):
        """Waits until a program has said this, and returns the line."""

        def look():
            with open(program.log, encoding="utf-8") as log:
                lines = log.read().splitlines()
            found = [line for line in lines if words in line]
            assert found or program.poll() is None, f"{program.args} ended: {lines}"
            return found

        return until(f"{program.args[0]} says {words}", look)[0]

    def simulate(self, **options):
        """The simulator is the upstream of every worker and gateway from now on."""
        options = {"ttft": "0s", "rate": "0", "tokens": "24"} | options
        env = {f"MILLSTREAM_SIMULATOR__{name.upper()}": value for name, value in options.items()}
        simulator = self.run(os.environ["MILLSTREAM"], "simulate", "--listen", "127.0.0.1:0", **env)
        self.env["OPENAI_BASE_URL"] = self.said(simulator, "http://").split()[-1]
        return simulator

    def stats(self):
        """What the simulator has counted."""
        with urllib.request.urlopen(self.env["OPENAI_BASE_URL"].replace("/v1", "/stats")) as answer:
            return json.load(answer)

    def listen(self):
        """An upstream that keeps the requests that it is sent."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
        server.requests = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.upstreams.append(server)
        self.env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
        return server

    def worker(self):
        # A dead worker's job is taken over soon, and one that failed is tried again soon.
        soon = {
            "MILLSTREAM_WORKER__LEASE": "1s",
            "MILLSTREAM_WORKER__RENEWAL": "300ms",
            "MILLSTREAM_WORKER__SWEEP": "100ms",
            "MILLSTREAM_WORKER__RETRY__INITIAL": "50ms",
            "MILLSTREAM_WORKER__FLUSH_INTERVAL": "20ms",
        }
        worker = self.run(os.environ["WORKER"], **self.env, **soon)
        self.said(worker, "serving")
        return worker

    def gateway(self, **options):
        env = {f"MILLSTREAM_GATEWAY__{name.upper()}": value for name, value in options.items() if name[0] != "_"}
        gateway = self.run(os.environ["GATEWAY"], "--listen", "127.0.0.1:0", **self.env, **env)
        self.said(gateway, "gateway listens")
        with open(gateway.log, encoding="utf-8") as log:
            self.url = next(line for line in log.read().splitlines() if line.startswith("http://"))
        return gateway

    def options(self, **more):
        return {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, "timeout": PATIENCE} | more

    def client(self, **more):
        return openai.OpenAI(**self.options(**more))

    def enqueue(self, request):
        """Enqueues a job that nobody waits for."""
        headers = {"content-type": "application/json"}
        post = urllib.request.Request(f"{self.url}/v1/jobs", json.dumps(request).encode(), headers)
        with urllib.request.urlopen(post) as answer:
            return json.load(answer)

    def job(self, job_id):
        with urllib.request.urlopen(f"{self.url}/v1/jobs/{job_id}") as answer:
            return json.load(answer)

    def jobs(self):
        """Your jobs, the newest first."""
        with urllib.request.urlopen(f"{self.url}/v1/jobs") as answer:
            return json.load(answer)["data"]

    def end(self):
        for program in reversed(self.programs):
            if program.poll() is None:
                program.send_signal(signal.SIGKILL)
            program.wait()
        for server in self.upstreams:
            server.shutdown()
            server.server_close()
        shutil.rmtree(self.folder)


@pytest.fixture
def bare():
    """Redis alone, for one test."""
    site = Site()
    yield site
    site.end()


@pytest.fixture(scope="module")
def site():
    """A simulator, a worker and a gateway, for all tests of a file that change none of them."""
    site = Site()
    site.simulate()
    site.worker()
    site.gateway()
    yield site
    site.end()
