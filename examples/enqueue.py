"""Enqueue a job from Python by a plain XADD, and print its answer.

    python3 examples/enqueue.py "Why is the sky blue?"

Needs redis-py; REDIS_URL defaults to redis://127.0.0.1:6379. The ID of a job without one is
UUIDv5 of the stream's key and the entry's ID, in the namespace that docs/PROTOCOL.md gives.
"""

import json
import os
import sys
import uuid

import redis

NAMESPACE = uuid.UUID("6f9b1a52-0b5e-4c0e-9d5c-3a1f0c7d9e21")
LANE = "ms:{q:default:0}:normal"

question = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
request = {"model": "any", "messages": [{"role": "user", "content": question}]}

server = redis.Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), decode_responses=True
)
entry = server.xadd(LANE, {"job": json.dumps(request)})
job = uuid.uuid5(NAMESPACE, f"entry:{LANE}:{entry}")
print(f"job {job}", file=sys.stderr)

# The log is a stream: block until it has more, from the last ID seen.
log, seen, text = f"ms:{{job:{job}}}:log", "0-0", ""
while True:
    for _, events in server.xread({log: seen}, block=60_000) or sys.exit("no worker took the job"):
        for seen, fields in events:
            ((kind, payload),) = fields.items()
            data = json.loads(payload)
            if kind == "started":
                text = ""
            elif kind == "delta":
                for piece in data["choices"]:
                    text += piece["delta"].get("content") or ""
            elif kind == "done":
                print(text)
                sys.exit(0)
            elif kind == "failed":
                sys.exit(f"failed: {data['error']['message']}")
