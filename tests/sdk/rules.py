"""What a schema cannot say: rules between values, and sizes in bytes.

Requests that break one of these are refused although the schema allows them, so they are not sent as good ones.
Tests in Rust send them.
"""

import schemathesis


def too_long(text, most):
    return isinstance(text, str) and len(text.encode(errors="surrogatepass")) > most


def breaks_a_rule(job, headers):
    if "Idempotency-Key" in headers and (isinstance(job, list) or "idempotency_key" in job):
        return True  # Of an array, each job names its own; two keys of one job are one too many.
    if isinstance(job, list):
        return False  # Each is taken or refused by itself.
    if not job.get("request"):
        return too_long(job.get("custom_id"), 256) if job.get("body") else False
    labels = job.get("labels", {})
    return (
        "tenant" in job  # Another's.
        or (job.get("not_before") is not None and job.get("expires_at") is not None)  # One after the other.
        or any(too_long(job.get(name), 256) for name in ("custom_id", "idempotency_key"))
        or any(not name or too_long(name, 64) or too_long(value, 256) for name, value in labels.items())
    )


@schemathesis.hook
def filter_case(ctx, case):
    if case.operation.path != "/v1/jobs" or case.method != "POST":
        return True
    bad = case.meta is not None and case.meta.generation.mode.is_negative
    if bad:
        # A bad job of an array is told by its own error, under the status 200.
        return not isinstance(case.body, list) or case.body == []
    return not isinstance(case.body, dict | list) or not breaks_a_rule(case.body, case.headers or {})
