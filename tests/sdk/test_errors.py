"""The SDK raises the error that is meant, and repeats what is worth repeating."""

import asyncio
import os
import signal
import subprocess
import time

import openai
import pytest
from asked import answer, ask, said
from conftest import until

SECRET = "a secret that is long enough for a test"


def refused(error, client, **request):
    """The error's code, and the response that it came with."""
    with pytest.raises(error) as met:
        client.chat.completions.create(**request)
    assert type(met.value) is error
    body = met.value.body
    headers = met.value.response.headers
    waits = {"retry_after"} if "retry-after" in headers else set()
    assert set(body) == {"message", "type", "param", "code"} | waits and body["message"]
    assert str(body.get("retry_after", "")) == headers.get("retry-after", "")
    assert headers["x-request-id"]
    return body["type"], body["code"], met.value.response


def in_state(site, state):
    return [job for job in site.jobs() if job["state"] == state]


def key(site, name, *more):
    """Makes a key; running gateways look for it within two seconds."""
    path = os.path.join(site.folder, "keys.toml")
    env = os.environ | {"MILLSTREAM_GATEWAY__SECRET": SECRET, "MILLSTREAM_GATEWAY__KEYS": path}
    made = subprocess.run(
        [os.environ["MILLSTREAM"], "keys", "create", name, *more], env=env, capture_output=True, check=True, text=True
    )
    return made.stdout.strip()


def test_keys_are_asked_for(bare):
    bare.simulate()
    bare.worker()
    good, reader = key(bare, "good"), key(bare, "reader", "--rights", "read")
    bare.gateway(secret=SECRET, keys=os.path.join(bare.folder, "keys.toml"))
    assert bare.client(api_key=good).chat.completions.create(**ask()).choices[0].message.content == answer(ask())
    kind, code, response = refused(openai.AuthenticationError, bare.client(api_key="sk-wrong"), **ask())
    assert (kind, code) == ("authentication_error", "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    kind, code, _ = refused(openai.PermissionDeniedError, bare.client(api_key=reader), **ask())
    assert (kind, code) == ("permission_error", "missing_right")
    assert list(bare.client(api_key=reader).models.list())
    with pytest.raises(openai.AuthenticationError):
        bare.client(api_key="sk-wrong").models.list()


def test_a_request_that_is_wrong(site):
    client = site.client()
    for wrong, param in [({"messages": []}, "messages"), ({"model": ""}, "model"), ({"stream": "yes"}, "stream")]:
        kind, code, response = refused(openai.BadRequestError, client, **ask() | wrong)
        assert kind == "invalid_request_error" and response.json()["error"]["param"] == param, code
    assert refused(openai.BadRequestError, client, **ask(model="any?speed=1"))[1] == "invalid_request"
    with pytest.raises(openai.NotFoundError) as met:
        client.embeddings.create(model="any", input="text")
    assert met.value.code == "not_found"


def test_a_model_that_is_not_there(bare):
    bare.gateway(models="small")
    for stream in [False, True]:
        kind, code, response = refused(openai.NotFoundError, bare.client(), **ask(model="huge"), stream=stream)
        assert (kind, code, response.json()["error"]["param"]) == ("invalid_request_error", "model_not_found", "model")


def test_a_full_queue_is_tried_again_when_it_says(bare):
    bare.simulate()
    bare.env["MILLSTREAM_REDIS__LIMITS__MAX_JOBS"] = "1"
    bare.gateway()
    bare.enqueue(ask("First"))
    kind, code, response = refused(openai.RateLimitError, bare.client(), **ask())
    assert (kind, code) == ("rate_limit_error", "queue_full")
    wait = int(response.headers["retry-after"])
    assert wait >= 1

    met = []

    def make_room(response):
        met.append((response.status_code, time.monotonic()))
        if response.status_code == 429:
            bare.worker()
            until("there is room", lambda: in_state(bare, "done"))

    hooked = openai.DefaultHttpxClient(event_hooks={"response": [make_room]})
    completion = bare.client(max_retries=1, http_client=hooked).chat.completions.create(**ask())
    assert completion.choices[0].message.content == answer(ask())
    assert [status for status, _ in met] == [429, 200]
    assert met[1][1] - met[0][1] >= wait


def test_an_idempotency_key_of_another_request(site):
    client = site.client(max_retries=2)
    same = {"Idempotency-Key": "invoice-7"}
    first = client.chat.completions.create(**ask(), extra_headers=same)
    again = client.chat.completions.create(**ask(), extra_headers=same)
    assert (first.id, first.choices[0].message.content) == (again.id, again.choices[0].message.content)
    kind, code, response = refused(openai.ConflictError, client, **ask("Another question"), extra_headers=same)
    assert kind == "invalid_request_error" and code
    # Another try cannot help, and is not made.
    assert response.request.headers["x-stainless-retry-count"] == "0"


def test_a_model_that_fails(site):
    before = site.stats()["requests"]
    client = site.client(max_retries=2)
    kind, code, response = refused(openai.InternalServerError, client, **ask("Fail", model="any?fault=status:503"))
    assert (response.status_code, kind, code) == (502, "server_error", "upstream_error")
    # The job has had its attempts; the SDK does not add to them.
    assert site.stats()["requests"] - before == 5
    assert site.job(response.headers["x-millstream-job"])["state"] == "failed"
    request = ask("Fail twice", model="any?fault=status:503*2")
    assert client.chat.completions.create(**request).choices[0].message.content == answer(request)


def test_a_limit_of_the_model(site):
    request = ask("Too many", model="any?fault=status:429:retry-after:0")
    kind, code, response = refused(openai.RateLimitError, site.client(), **request)
    assert (kind, code) == ("rate_limit_error", "rate_limited")
    assert int(response.headers["retry-after"]) >= 1
    # The queue has waited and tried as often as it does.
    assert "tried 5 times" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"


def test_a_model_that_fails_in_mid_stream(site):
    request = ask("Break off", model="any?fault=error:5")
    chunks = []
    with pytest.raises(openai.APIError) as met:
        chunks.extend(site.client().chat.completions.create(**request, stream=True))
    assert type(met.value) is openai.APIError
    assert (met.value.type, met.value.code) == ("server_error", "upstream_error")
    request = ask("Break off once", model="any?fault=error:5*1")
    assert said(site.client().chat.completions.create(**request, stream=True)) == answer(request)


def test_a_broker_that_is_away(bare):
    bare.simulate()
    bare.worker()
    bare.gateway()
    bare.programs[0].send_signal(signal.SIGKILL)
    bare.programs[0].wait()
    began = time.monotonic()
    for _ in range(2):
        kind, code, response = refused(openai.InternalServerError, bare.client(), **ask())
        assert (response.status_code, kind, code) == (503, "server_error", "broker_unavailable")
        assert int(response.headers["retry-after"]) >= 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("dedupe", ["0s", "1m"])
def test_a_client_that_is_impatient_gets_one_answer(bare, dedupe):
    bare.simulate()
    bare.worker()
    bare.gateway(dedupe=dedupe)
    request = ask(model="any?ttft=1500")
    headers = {"Idempotency-Key": "once"} if dedupe == "0s" else {}
    client = bare.client(max_retries=8, timeout=0.5)
    raw = client.chat.completions.with_raw_response.create(**request, extra_headers=headers)
    assert raw.parse().choices[0].message.content == answer(request)
    assert raw.retries_taken >= 1
    assert [job["id"] for job in bare.jobs()] == [raw.headers["x-millstream-job"]]
    assert bare.stats()["requests"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_job(bare, stream):
    bare.simulate()
    bare.worker()
    bare.gateway()

    async def leave():
        async with openai.AsyncOpenAI(**bare.options()) as client:
            request = ask(model="any?ttft=20000", stream=stream)
            asked = asyncio.create_task(client.chat.completions.create(**request))
            await asyncio.to_thread(until, "the model is asked", lambda: bare.stats()["active"] == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    asyncio.run(leave())
    until("the job is cancelled", lambda: in_state(bare, "cancelled"))
    until("the model is told", lambda: bare.stats()["aborted"] == 1)


def test_a_stream_that_is_closed_cancels_its_job(bare):
    bare.simulate()
    bare.worker()
    bare.gateway()
    with bare.client().chat.completions.create(**ask(model="any?rate=5"), stream=True) as stream:
        assert next(iter(stream)).choices
    [job] = until("the job is cancelled", lambda: in_state(bare, "cancelled"))
    assert answer(ask(model="any?rate=5")).startswith(bare.job(job["id"])["text"])
