"""Requests of the tests, and what the simulator answers to them."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import oracle  # noqa: E402

TOKENS = 24

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
    },
}


def ask(question="Why is the sky blue?", model="any", **more):
    return {"model": model, "messages": [{"role": "user", "content": question}]} | more


def answer(request, choice=0, attempt=1, vary=False):
    return oracle.answer(request, attempt, TOKENS, vary, choice)


def said(chunks, choice=0):
    """The text of one choice of a stream."""
    pieces = (piece for chunk in chunks for piece in chunk.choices if piece.index == choice)
    return "".join(piece.delta.content or "" for piece in pieces)
