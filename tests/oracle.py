#!/usr/bin/env python3
"""Says what the Millstream simulator answers to a chat request, without asking it.

An independent implementation of the text rule in src/simulator.rs, with nothing but Python's standard library.

As a module:   from oracle import answer; answer({"model": "m", "messages": [...]})
As a command:  JSON Lines on stdin (a chat request, {"request": ...}, or an OpenAI Batch line {"body": ...});
               one JSON string with the expected text per line on stdout.
"""

import argparse
import hashlib
import json
import sys

WORDS = (
    "mill stream wheel river water stone grain flour bread meadow willow heron otter trout reed moss "
    "bridge bank brook spring rain cloud mist dawn dusk lantern barge sail oar ferry harbour café "
    "naïve über gentle quiet steady bright silver golden amber green deep clear slow swift turning flowing "
    "winding resting singing drifting carries gathers returns follows under over along beyond between and with toward"
).split()

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
CHOICE = 0xD1B54A32D192ED03


def splitmix64(seed):
    z = (seed + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def text_of(content):
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in parts if isinstance(text, str))
    return ""


def canonical(request):
    """What decides the text: the model without its directives, then every message as role:text."""
    lines = [request["model"].partition("?")[0]]
    lines += [message["role"] + ":" + text_of(message.get("content")) for message in request["messages"]]
    return "".join(line + "\n" for line in lines)


def length(request, default_tokens):
    """The number of tokens: the directive, then max_completion_tokens, then max_tokens, then the default."""
    for directive in reversed(request["model"].partition("?")[2].split(",")):
        key, _, value = directive.partition("=")
        if key.strip() == "tokens":
            return int(value)
    for key in ("max_completion_tokens", "max_tokens"):
        if request.get(key) is not None:
            return request[key]
    return default_tokens


def answer(request: dict, attempt: int = 1, default_tokens: int = 64, vary=False, choice=0) -> str:
    """The text of one choice; for a request with tools, the `input` of the call's arguments."""
    seed = int.from_bytes(hashlib.sha256(canonical(request).encode()).digest()[:8], "big")
    if vary:
        seed += attempt * GOLDEN
    seed += choice * CHOICE
    return " ".join(WORDS[splitmix64((seed + i) & MASK) % 64] for i in range(length(request, default_tokens)))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--tokens", type=int, default=64, help="the simulator's `tokens` option")
    arguments.add_argument("--vary", action="store_true", help="the simulator's `vary` option")
    arguments.add_argument("--attempt", type=int, default=1, help="which attempt of each request, with --vary")
    chosen = arguments.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")
    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        value = json.loads(line)
        request = value.get("request") or value.get("body") or value
        text = answer(request, chosen.attempt, chosen.tokens, chosen.vary)
        print(json.dumps(text, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
