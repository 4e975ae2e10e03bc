"""The official OpenAI SDK, unchanged, is answered as by OpenAI."""

import asyncio
import json

import openai
import pytest
from asked import TOKENS, WEATHER, answer, ask, said


def test_an_answer_at_once(site):
    completion = site.client().chat.completions.create(**ask())
    [choice] = completion.choices
    assert choice.message.content == answer(ask())
    assert (choice.message.role, choice.finish_reason, completion.object) == ("assistant", "stop", "chat.completion")
    assert completion.usage.completion_tokens == TOKENS
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + TOKENS


def test_an_answer_in_chunks(site):
    chunks = list(site.client().chat.completions.create(**ask(), stream=True))
    assert said(chunks) == answer(ask())
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, chunks[0].model)
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:]] == [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    job = site.job(chunks[0].id.removeprefix("chatcmpl-"))
    assert (job["state"], job["text"]) == ("done", answer(ask()))
    assert chunks[0].created == job["enqueued_at"] // 1000


def test_many_at_once(site):
    async def all_of_them():
        async with openai.AsyncOpenAI(**site.options()) as client:

            async def whole(request):
                return (await client.chat.completions.create(**request)).choices[0].message.content

            async def streamed(request):
                return said([chunk async for chunk in await client.chat.completions.create(**request, stream=True)])

            requests = [ask(f"Question {number} of many") for number in range(20)]
            answers = await asyncio.gather(*(way(request) for request in requests for way in (whole, streamed)))
            assert answers == [answer(request) for request in requests for _ in range(2)]

    asyncio.run(all_of_them())


def test_a_tool_is_called_and_answered(site):
    client = site.client()
    request = ask(tools=[WEATHER])
    [choice] = client.chat.completions.create(**request).choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "weather")
    assert json.loads(call.function.arguments) == {"input": answer(request)}
    assert choice.message.content is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    request["messages"] += [choice.message.to_dict(), result]
    assert client.chat.completions.create(**request).choices[0].message.content == answer(request)


def test_a_tool_call_in_chunks(site):
    request = ask(tools=[WEATHER])
    deltas = [chunk.choices[0].delta for chunk in site.client().chat.completions.create(**request, stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert {call.index for call in calls} == {0}
    assert [(call.id is not None, call.function.name) for call in calls if call.id] == [(True, "weather")]
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"input": answer(request)}


@pytest.mark.parametrize("more", [{}, {"tools": [WEATHER]}, {"n": 3}, {"n": 2, "tools": [WEATHER]}])
def test_the_helper_joins_what_was_streamed(site, more):
    request = ask(**more)
    with site.client().chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
        events = [event.type for event in stream]
        joined = stream.get_final_completion()
    assert len(joined.choices) == request.get("n", 1)
    for choice in joined.choices:
        text = answer(request, choice.index)
        if "tools" in more:
            [call] = choice.message.tool_calls
            assert json.loads(call.function.arguments) == {"input": text}
            assert (call.function.name, choice.finish_reason) == ("weather", "tool_calls")
        else:
            assert (choice.message.content, choice.finish_reason) == (text, "stop")
        assert choice.message.role == "assistant"
    assert joined.usage.completion_tokens == TOKENS * len(joined.choices)
    ending = "tool_calls.function.arguments.done" if "tools" in more else "content.done"
    assert events.count(ending) == len(joined.choices)


def test_the_helper_of_the_async_client(site):
    async def run():
        async with openai.AsyncOpenAI(**site.options()) as client:
            async with client.chat.completions.stream(**ask()) as stream:
                text = "".join([event.delta async for event in stream if event.type == "content.delta"])
                return text, (await stream.get_final_completion()).choices[0].message.content

    assert asyncio.run(run()) == (answer(ask()), answer(ask()))


def test_several_choices(site):
    client = site.client()
    request = ask(n=2)
    texts = [answer(request, choice) for choice in range(2)]
    whole = client.chat.completions.create(**request)
    assert [(choice.index, choice.message.content) for choice in whole.choices] == list(enumerate(texts))
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert [said(chunks, choice) for choice in range(2)] == texts


def test_usage_comes_last_where_it_is_asked_for(site):
    options = {"include_usage": True}
    *chunks, last = site.client().chat.completions.create(**ask(), stream=True, stream_options=options)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], TOKENS)


def test_a_length_that_is_asked_for(site):
    request = ask(max_completion_tokens=5)
    [choice] = site.client().chat.completions.create(**request).choices
    assert (choice.message.content, choice.finish_reason) == (answer(request), "length")


def test_fields_of_a_vendor_come_back(site):
    client = site.client()
    request = ask(model="any?extra=1")
    whole = client.chat.completions.create(**request)
    assert whole.x_vendor == {"kept": True}
    assert whole.choices[0].message.reasoning_content == "thinking about it"
    chunks = list(client.chat.completions.create(**request, stream=True))
    thoughts = [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks]
    assert "".join(thought or "" for thought in thoughts) == "thinking about it"
    assert any(getattr(chunk, "x_vendor", None) == {"kept": True} for chunk in chunks)
    assert said(chunks) == whole.choices[0].message.content == answer(request)


@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_nobody_knows_reach_the_model(bare, stream):
    upstream = bare.listen()
    bare.worker()
    bare.gateway()
    more = {"top_k": 40, "vendor": {"deep": [1, None, "ü"]}}
    request = ask(temperature=0.25, seed=7, logprobs=True, top_logprobs=2, user="u1")
    answered = bare.client().chat.completions.create(**request, stream=stream, extra_body=more)
    assert not stream or list(answered)
    [sent] = upstream.requests
    assert {name: sent.get(name) for name in [*request, *more]} == request | more


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(bare, stream):
    bare.listen()
    bare.worker()
    bare.gateway()
    answered = bare.client().chat.completions.create(**ask(logprobs=True), stream=stream)
    choices = [chunk.choices[0] for chunk in (answered if stream else [answered])]
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert [(token.token, token.logprob) for token in tokens] == [("one ", -0.5), ("two ", -0.5), ("three", -0.5)]


def test_headers_name_the_job_and_the_request(site):
    client = site.client()
    raw = client.chat.completions.with_raw_response.create(**ask(), extra_headers={"x-request-id": "mine-1"})
    assert raw.headers["x-request-id"] == "mine-1"
    job = raw.headers["x-millstream-job"]
    assert raw.parse().id == f"chatcmpl-{job}"
    assert site.job(job)["text"] == raw.parse().choices[0].message.content
    completion = client.chat.completions.create(**ask("Another one"))
    assert completion._request_id
    with client.chat.completions.with_streaming_response.create(**ask(), stream=True) as response:
        assert response.headers["x-millstream-job"] and response.headers["x-request-id"]
        assert response.headers["content-type"] == "text/event-stream"
        assert said(list(response.parse())) == answer(ask())


def test_models(bare):
    bare.gateway(models="small,org/large")
    client = bare.client()
    listed = client.models.list()
    assert [model.id for model in listed] == ["small", "org/large"]
    assert client.models.retrieve("org/large").id == "org/large"
    with pytest.raises(openai.NotFoundError) as met:
        client.models.retrieve("huge")
    assert (met.value.code, met.value.param) == ("model_not_found", "model")


def test_models_of_the_upstream(site):
    assert [model.id for model in site.client().models.list()] == ["simulator"]
