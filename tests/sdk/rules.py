"""What a schema cannot say: rules between values, sizes in bytes, and how numbers are written.

Requests that break one of these are refused although the schema allows them, so they are not sent as good ones.
Tests in Rust send them.
"""

import time

import schemathesis

TEXTS = ("custom_id", "idempotency_key")
NUMBERS = ("max_attempts", "deadline_ms", "not_before", "expires_at")


def too_long(text, most):
    return isinstance(text, str) and len(text.encode(errors="surrogatepass")) > most


def lies_ahead(job):
    """Whether what the job says of times is certain to be ahead, and in order."""
    times = [job[name] for name in ("not_before", "expires_at") if job.get(name) is not None]
    soon = (time.time() + 3600) * 1000
    return len(times) < 2 and all(isinstance(at, int) and at > soon for at in times)


def breaks_a_rule(job, headers):
    keyed = "Idempotency-Key" in headers
    if isinstance(job, list):
        return keyed  # Each job names its own key; and each is refused by itself, whatever it is.
    request = job.get("request") or job.get("body") or job
    if isinstance(request, dict) and too_long(request.get("model"), 256):
        return True
    if not job.get("request"):
        return bool(job.get("body")) and too_long(job.get("custom_id"), 256)
    labels = job.get("labels", {})
    apart = any(job.get(name) is not None for name in ("queue", "not_before", "expires_at", "deadline_ms"))
    return (
        job.get("tenant", "default") != "default"  # Another's.
        or job.get("queue", "default") != "default"  # One that is not served.
        or not lies_ahead(job)
        or (keyed and "idempotency_key" in job)  # One too many.
        or ((keyed or "idempotency_key" in job) and apart)  # A chat completion under its key would share its fate.
        or any(too_long(job.get(name), 256) for name in TEXTS)
        or any(isinstance(job.get(name), float) for name in NUMBERS)
        or any(not name or too_long(name, 64) or too_long(value, 256) for name, value in labels.items())
    )


@schemathesis.hook
def filter_case(ctx, case):
    if case.operation.path == "/v1/chat/completions" and isinstance(case.body, dict):
        # Behind a question mark the simulator reads directives.
        return "?" not in str(case.body.get("model")) and not too_long(case.body.get("model"), 256)
    if case.operation.path != "/v1/jobs" or case.method != "POST":
        return True
    if case.meta is not None and case.meta.generation.mode.is_negative:
        # A bad job of an array is told by its own error, under the status 200.
        return not isinstance(case.body, list) or case.body == []
    return not isinstance(case.body, dict | list) or not breaks_a_rule(case.body, case.headers or {})
