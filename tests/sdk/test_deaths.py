"""Workers are killed, and the SDK has the whole answer all the same."""

import json
import signal
import threading

import openai
import pytest
from asked import WEATHER, answer, ask, said
from conftest import until


@pytest.fixture
def pair(bare):
    """A worker that will die, and what starts the next one."""

    def start(**simulator):
        bare.simulate(**simulator)
        bare.first = bare.worker()
        bare.gateway()
        return bare

    return start


def kill(site):
    site.first.send_signal(signal.SIGKILL)
    site.first.wait()
    site.worker()


def kill_while_it_works(site, request):
    """Asks, kills the worker while it waits for the model, and returns what was answered."""
    answered = []
    # While the server is young, an outage may be to blame, and no crash is counted.
    until("Redis has run for two leases", lambda: site.redis.info("server")["uptime_in_seconds"] >= 2)

    def work():
        result = site.client().chat.completions.create(**request)
        answered.append(said(result) if request.get("stream") else result.choices[0].message.content)

    thread = threading.Thread(target=work)
    thread.start()
    until("the model is asked", lambda: site.stats()["active"] == 1)
    kill(site)
    thread.join()
    assert site.stats()["requests"] == 2
    [job] = site.jobs()
    assert (job["attempt"], job["crashes"]) == (2, 1)
    return answered[0]


@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_token(pair, stream):
    site = pair(vary="true", ttft="1s")
    request = ask(stream=stream)
    assert kill_while_it_works(site, request) == answer(request, attempt=2, vary=True)


def test_in_the_middle_of_an_answer_that_does_not_stream(pair):
    site = pair(vary="true", rate="16")
    assert kill_while_it_works(site, ask()) == answer(ask(), attempt=2, vary=True)


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"tools": [WEATHER]}])
def test_in_mid_stream_with_the_same_text(pair, more):
    site = pair(rate="16")
    request = ask(**more)
    shown, killed = 0, False
    with site.client().chat.completions.stream(**request) as stream:
        for event in stream:
            shown += event.type in ("content.delta", "tool_calls.function.arguments.delta")
            if shown >= 4 and not killed:
                kill(site)
                killed = True
        joined = stream.get_final_completion()
    for choice in joined.choices:
        text = answer(request, choice.index)
        if "tools" in more:
            [call] = choice.message.tool_calls
            assert json.loads(call.function.arguments) == {"input": text}
        else:
            assert choice.message.content == text
    assert site.stats()["requests"] == 2


def test_in_mid_stream_with_another_text(pair):
    site = pair(vary="true", rate="16")
    raw = site.client().chat.completions.with_raw_response.create(**ask(), stream=True)
    job, text, killed = raw.headers["x-millstream-job"], "", False
    with pytest.raises(openai.APIError) as met:
        for chunk in raw.parse():
            text += chunk.choices[0].delta.content or ""
            # A chunk may bring several words.
            if len(text.split()) >= 4 and not killed:
                kill(site)
                killed = True
    assert type(met.value) is openai.APIError
    assert (met.value.type, met.value.code) == ("server_error", "answer_differs")
    assert f"/v1/jobs/{job}" in met.value.message
    assert text and answer(ask(), vary=True).startswith(text)
    until("the job is done", lambda: site.job(job)["state"] == "done")
    assert site.job(job)["text"] == answer(ask(), attempt=2, vary=True)
