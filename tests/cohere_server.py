"""A local server that speaks like Cohere's version 2: chat and embed."""

from __future__ import annotations

from typing import Any

import orjson
from loopback import Reply, Request
from provider_streams import said_in, words_of
from providers import DIMENSIONS, Json, ProviderServer, fitting, last_text, text_of, vector, words

_CHAT = {"model", "messages", "stream", "tools", "strict_tools", "documents", "citation_options", "response_format",
         "safety_mode", "max_tokens", "stop_sequences", "temperature", "seed", "frequency_penalty", "presence_penalty",
         "k", "p", "logprobs", "tool_choice", "thinking", "priority"}  # fmt: skip
_EMBED = {
    "model",
    "texts",
    "images",
    "inputs",
    "input_type",
    "embedding_types",
    "output_dimension",
    "max_tokens",
    "truncate",
}
_FIELDS = {"/v2/chat": (_CHAT, ("model", "messages")), "/v2/embed": (_EMBED, ("model", "texts", "input_type"))}
_MESSAGE = {"role", "content", "tool_calls", "tool_call_id", "tool_plan", "citations"}
MOST_TEXTS = 96


class CohereServer(ProviderServer):
    """Cohere's API. `url` has no version: clients add `/v2/...`. `trial` sends a trial key's headers."""

    def __init__(self, *, trial: bool = False, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.headers = self.headers or trial

    def key_of(self, request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        return Reply(status=status, body=orjson.dumps({"id": "e-0", "message": message}))

    def tokens(self, answer: Json) -> int:
        return 1

    def limit_headers(self, now: float) -> dict[str, str]:
        return {"x-trial-endpoint-call-limit": "20", "x-trial-endpoint-call-remaining": "7"}

    def refuse(self, request: Request, body: Json) -> Reply | None:
        if request.path not in _FIELDS:
            return self.error(404, "page not found")
        known, needed = _FIELDS[request.path]
        if missing := [name for name in needed if name not in body]:
            return self.error(400, f"invalid request: {missing[0]} is required")
        if strange := body.keys() - known:
            return self.error(422, f"unknown field: parameter '{min(strange)}' is not a valid field")
        if not self.has_model(body["model"]):
            return self.error(404, f"model '{body['model']}' not found, make sure the correct model ID was used")
        if len(body.get("texts", [])) > MOST_TEXTS:
            return self.error(400, f"invalid request: total number of texts must be at most {MOST_TEXTS}")
        return self._bad_messages(body.get("messages"))

    def _bad_messages(self, messages: list[Json] | None) -> Reply | None:
        if messages == []:
            return self.error(400, "invalid request: messages must contain at least one element")
        for message in messages or []:
            if message.keys() - _MESSAGE or message.get("role") not in {"system", "user", "assistant", "tool"}:
                return self.error(400, f"invalid request: the message {message} cannot be read")
        return None

    def respond(self, path: str, body: Json) -> Json:
        return self._embed(body) if "texts" in body else self._chat(body)

    def _chat(self, body: Json) -> Json:
        prompt = last_text(body["messages"])
        message, reason = self._message(body, prompt)
        said = words(text_of(message.get("content")))
        asked = sum(words(text_of(turn.get("content"))) for turn in body["messages"])
        counts = {"input_tokens": asked, "output_tokens": said}
        usage = {"billed_units": counts, "tokens": {"input_tokens": asked + 60, "output_tokens": said + 2}}
        return {"id": "c-0", "finish_reason": reason, "message": message, "usage": usage}

    def _message(self, body: Json, prompt: str) -> tuple[Json, str]:
        if body.get("tools") and body.get("tool_choice") != "NONE":
            function = body["tools"][0]["function"]
            arguments = orjson.dumps(fitting(function.get("parameters", {}), prompt)).decode()
            call = {"id": "find_0", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
            return {"role": "assistant", "tool_plan": "I will look.", "tool_calls": [call]}, "TOOL_CALL"
        match body.get("response_format"):
            case {"type": "json_object", "schema": schema}:
                text = orjson.dumps(fitting(schema, prompt)).decode()
            case {"type": "json_object"}:
                text = orjson.dumps({"echo": prompt}).decode()
            case _:
                text = self.answer(prompt)
        content: list[Json] = [{"type": "text", "text": text}]
        if body.get("thinking", {}).get("type") == "enabled":
            content.insert(0, {"type": "thinking", "thinking": "let me see"})
        short = body.get("max_tokens") == 1
        return {"role": "assistant", "content": content}, "MAX_TOKENS" if short else "COMPLETE"

    def _embed(self, body: Json) -> Json:
        size = body.get("output_dimension", DIMENSIONS)
        vectors = [vector(text, size) for text in body["texts"]]
        billed = {"input_tokens": sum(map(words, body["texts"]))}
        found = {"float": vectors}
        return {"id": "m-0", "embeddings": found, "texts": body["texts"], "meta": {"billed_units": billed}}

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        return [said_in(event, event["type"]) for event in _events(answer)] if body.get("stream") else None


def _events(answer: Json) -> list[Json]:
    message = answer["message"]
    start = {"message": {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}}
    events: list[Json] = [{"type": "message-start", "id": answer["id"], "delta": start}]
    if plan := message.get("tool_plan"):
        events.append({"type": "tool-plan-delta", "delta": {"message": {"tool_plan": plan}}})
    for index, block in enumerate(message.get("content", [])):
        events += _block_events(index, block)
    for index, call in enumerate(message.get("tool_calls", [])):
        events += _call_events(index, call)
    end = {"finish_reason": answer["finish_reason"], "usage": answer["usage"]}
    return [*events, {"type": "message-end", "delta": end}]


def _block_events(index: int, block: Json) -> list[Json]:
    kind = block["type"]

    def event(name: str, content: Json) -> Json:
        return {"type": name, "index": index, "delta": {"message": {"content": content}}}

    deltas = [event("content-delta", {kind: text}) for text in words_of(block[kind])]
    return [event("content-start", {"type": kind, kind: ""}), *deltas, {"type": "content-end", "index": index}]


def _call_events(index: int, call: Json) -> list[Json]:
    function = call["function"]
    begun = {**call, "function": {"name": function["name"], "arguments": ""}}

    def event(name: str, calls: Json) -> Json:
        return {"type": name, "index": index, "delta": {"message": {"tool_calls": calls}}}

    text = function["arguments"]
    pieces = [text[start : start + 7] for start in range(0, len(text), 7)]
    deltas = [event("tool-call-delta", {"function": {"arguments": piece}}) for piece in pieces]
    return [event("tool-call-start", begun), *deltas, {"type": "tool-call-end", "index": index}]
