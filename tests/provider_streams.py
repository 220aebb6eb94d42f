"""The local providers' whole answers, cut into the events that the real ones stream (see `providers`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import orjson

Json: TypeAlias = dict[str, Any]


def said_in(data: Json, kind: str = "") -> bytes:
    """Write one server-sent event."""
    named = f"event: {kind}\n".encode() if kind else b""
    return named + b"data: " + orjson.dumps(data) + b"\n\n"


def openai_events(answer: Json, body: Json) -> list[bytes]:
    """Return the events of a chat completion or a completion; choices come by turns."""
    head = {name: answer[name] for name in ("id", "created", "model")}
    chat = answer["object"] == "chat.completion"
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    told = (body.get("stream_options") or {}).get("include_usage")
    unknown = {"usage": None} if told else {}
    said = [list(_chat_pieces(choice) if chat else _text_pieces(choice)) for choice in answer["choices"]]
    events = [said_in({**head, "choices": [piece], **unknown}) for turn in _by_turns(said) for piece in turn]
    if told:
        events.append(said_in({**head, "choices": [], "usage": answer["usage"]}))
    return [*events, b"data: [DONE]\n\n"]


def anthropic_events(answer: Json) -> list[bytes]:
    """Return the events of a message."""
    usage = {**answer["usage"], "output_tokens": 1}
    start = {**answer, "content": [], "stop_reason": None, "usage": usage}
    events: list[Json] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(answer["content"]):
        events += [{"index": index, **event} for event in _block_events(block)]
    events.insert(2, {"type": "ping"})
    stop = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    used = {"output_tokens": answer["usage"]["output_tokens"]}
    events += [{"type": "message_delta", "delta": stop, "usage": used}, {"type": "message_stop"}]
    return [said_in(event, event["type"]) for event in events]


def words_of(text: str) -> list[str]:
    """Cut a text into its words, each with the space after it."""
    return re.findall(r"\S+\s*|\s+", text)


def _by_turns(said: list[list[Json]]) -> Iterator[list[Json]]:
    for place in range(max(map(len, said), default=0)):
        yield [pieces[place] for pieces in said if place < len(pieces)]


def _chat_pieces(choice: Mapping[str, Any]) -> Iterator[Json]:
    def piece(delta: Json, finish: str | None = None) -> Json:
        return {"index": choice["index"], "delta": delta, "logprobs": None, "finish_reason": finish}

    message = choice["message"]
    calls = message.get("tool_calls") or []
    yield piece({"role": "assistant", "content": None if calls else "", "refusal": None})
    for text in words_of(message["content"] or ""):
        yield piece({"content": text})
    for place, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        function = {"name": call["function"]["name"], "arguments": ""}
        yield piece({"tool_calls": [{"index": place, **call, "function": function}]})
        for text in _cut(arguments):
            yield piece({"tool_calls": [{"index": place, "function": {"arguments": text}}]})
    yield piece({}, choice["finish_reason"])


def _text_pieces(choice: Mapping[str, Any]) -> Iterator[Json]:
    for text in words_of(choice["text"]):
        yield {"index": choice["index"], "text": text, "logprobs": None, "finish_reason": None}
    yield {"index": choice["index"], "text": "", "logprobs": None, "finish_reason": choice["finish_reason"]}


def _block_events(block: Json) -> list[Json]:
    match block["type"]:
        case "text":
            empty, deltas = {"text": ""}, [{"type": "text_delta", "text": text} for text in words_of(block["text"])]
        case "tool_use":
            pieces = _cut(orjson.dumps(block["input"]).decode()) if block["input"] else [""]
            empty = {"input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": text} for text in pieces]
        case _:
            empty = {"thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
    return [
        {"type": "content_block_start", "content_block": {**block, **empty}},
        *({"type": "content_block_delta", "delta": delta} for delta in deltas),
        {"type": "content_block_stop"},
    ]


def _cut(text: str, size: int = 7) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
