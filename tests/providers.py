"""Local servers that speak like the providers: OpenAI, Anthropic, and any OpenAI-compatible one.

    with OpenAIServer(limit=(300, 10.0), headers=True) as server:
        server.url        # http://127.0.0.1:PORT/v1, an `openai_api_base`
        server.requests   # the JSON body of every call, in order of arrival
        server.stats      # counters: paths, statuses, too_many, accepted (monotonic times)
        server.traffic    # connections, in_flight, max_in_flight, abandoned

Knobs, the same for every server (all may be changed while it runs, they are plain attributes):

    answer         what chat and completions say to a prompt; default: "echo: <prompt>"
    keys           the API keys that are let in; others get 401
    models         the models there are (None: all but those called "no-such-...")
    limit          (calls, seconds): a real limit over any rolling window; more gets 429
    token_limit    (tokens, seconds): the same for tokens in and out
    headers        send the provider's rate-limit headers with every answer (needs `limit`)
    retry_after    how a 429 says when to come back: "seconds", "ms", "date" or None for silence
    delay          seconds every answer takes, or a function of the body that returns them
    packet, pause  how a streamed answer comes: in packets of so many bytes (None: one an event), and the
                   seconds after each
    script         faults for the next calls, first come first served: `server.script.extend([...])`
    fault          a fault for every call for which `fault_when(body)` holds (default: always)
    max_inputs, max_chars   what one embeddings request, one input may hold

Faults: `status(500)`, `too_many(2.0)`, `out_of_quota`, `drop`, `truncate`, `cut_off`, `html`, `no_choices`,
`wrong_count`, `slow(0.2)`; within a streamed answer `breaks(529)`.

Answers depend on the request alone: a token is a word, `vector(text)` is the embedding of a text, JSON
mode answers with a JSON object that fits the schema and holds the prompt.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from loopback import Reply, Request
from provider_base import (
    KEY,
    Fault,
    Json,
    ProviderServer,
    breaks,
    cut_off,
    drop,
    html,
    no_choices,
    out_of_quota,
    slow,
    status,
    too_many,
    truncate,
    wrong_count,
)
from provider_streams import anthropic_events, openai_events, said_in

__all__ = [
    "DIMENSIONS", "KEY", "AnthropicServer", "CustomServer", "Fault", "Json", "OpenAIServer", "ProviderServer",
    "breaks", "cut_off", "drop", "html", "no_choices", "out_of_quota", "slow", "status", "too_many", "truncate", "vector",
    "wrong_count",
]  # fmt: skip

DIMENSIONS = 8


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Return the embedding of a text: `dimensions` numbers that a 32-bit float holds exactly."""
    digest = hashlib.shake_256(text.encode()).digest(dimensions)
    return [(byte - 128) / 128 for byte in digest]


def words(text: str) -> int:
    """Count the tokens of a text: its words."""
    return len(text.split())


def fitting(schema: Mapping[str, Any], text: str) -> Any:
    """Return a value that fits a JSON schema and has `text` wherever a string may stand."""
    plain = {"integer": 1, "number": 1.5, "boolean": True}
    match schema:
        case {"enum": [first, *_]}:
            return first
        case {"type": "object"}:
            parts = schema.get("properties", {})
            return {name: fitting(part, text) for name, part in parts.items()}
        case {"type": "array"}:
            return [fitting(schema.get("items", {}), text)]
        case _:
            return plain.get(schema.get("type", ""), text)


def text_of(content: Any) -> str:
    """Return the text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content or [] if part.get("type") == "text")


def last_text(messages: list[Json]) -> str:
    """Return the text of the last message."""
    return text_of(messages[-1].get("content"))


_SAMPLING = {"temperature", "top_p", "max_tokens", "n", "stop", "presence_penalty", "frequency_penalty", "seed",
             "user", "logit_bias", "stream", "stream_options"}  # fmt: skip
_FIELDS = {
    "messages": _SAMPLING | {"messages", "max_completion_tokens", "response_format", "tools", "tool_choice", "logprobs",
                             "top_logprobs", "reasoning_effort", "parallel_tool_calls", "metadata", "store"},
    "prompt": _SAMPLING | {"prompt", "suffix", "echo", "best_of", "logprobs"},
    "input": {"input", "dimensions", "encoding_format", "user"},
}  # fmt: skip
_REQUIRED = {"chat/completions": "messages", "completions": "prompt", "embeddings": "input"}


class OpenAIServer(ProviderServer):
    """The chat, completions, embeddings and models of OpenAI's API."""

    api = "/v1"

    def key_of(self, request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        usual = "server_error" if status >= 500 else "invalid_request_error"
        kind = code if code == "insufficient_quota" else {429: "requests"}.get(status, usual)
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        return Reply(status=status, body=orjson.dumps(body), headers={"x-request-id": "req_0"})

    def error_event(self, status: int, message: str) -> bytes:
        return said_in(orjson.loads(self.error(status, message).body))

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        return openai_events(answer, body) if body.get("stream") and "choices" in answer else None

    def tokens(self, answer: Json) -> int:
        return int(answer["usage"]["total_tokens"])

    def limit_headers(self, now: float) -> dict[str, str]:
        found = {}
        for name, window in (("requests", self._calls), ("tokens", self._tokens)):
            if window is not None:
                limit, remaining, reset = window.state(now)
                found[f"x-ratelimit-limit-{name}"] = str(limit)
                found[f"x-ratelimit-remaining-{name}"] = str(remaining)
                found[f"x-ratelimit-reset-{name}"] = _duration(reset)
        return found

    def refuse(self, request: Request, body: Json) -> Reply | None:
        needed = self.task_of(request.path, body)
        if needed is None:
            return self.error(404, f"Invalid URL (POST {request.path})")
        if needed not in body or "model" not in body:
            return self.error(400, f"Missing required parameter: '{needed}' or 'model'.")
        if not self.has_model(body["model"]):
            return self.error(404, f"The model `{body['model']}` does not exist.", "model_not_found")
        if strange := body.keys() - _FIELDS[needed] - {"model"}:
            return self.error(400, f"Unrecognized request argument supplied: {min(strange)}")
        if body.get("stream_options") and not body.get("stream"):
            return self.error(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        return self._unsupported(body) or self._too_large(body)

    def task_of(self, path: str, body: Json) -> str | None:
        """Return the field that carries the question at this path."""
        return _REQUIRED.get(path.removeprefix(f"{self.api}/"))

    def _unsupported(self, body: Json) -> Reply | None:
        if not str(body["model"]).startswith(("o1", "o3", "o4", "gpt-5")):
            return None
        if body.get("temperature", 1) != 1:
            return self.error(400, "Unsupported value: 'temperature' takes only 1 here.", "unsupported_value")
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return self.error(400, message, "unsupported_parameter")
        return None

    def _too_large(self, body: Json) -> Reply | None:
        inputs = body.get("input", [])
        inputs = [inputs] if isinstance(inputs, str) else inputs
        if len(inputs) > self.max_inputs:
            message = f"'input' may hold {self.max_inputs} texts, not {len(inputs)}."
            return self.error(400, message, "array_above_max_length")
        if any(len(text) > self.max_chars for text in inputs):
            message = f"Invalid 'input': a text has more than {self.max_chars} characters."
            return self.error(400, message, "string_above_max_length")
        return None

    def respond(self, path: str, body: Json) -> Json:
        if "input" in body:
            return self._embeddings(body)
        return self._chat(body) if "messages" in body else self._completions(body)

    def _chat(self, body: Json) -> Json:
        prompt = last_text(body["messages"])
        text = self._say(prompt, body.get("response_format"))
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        finish = "stop"
        if body.get("tools") and body.get("tool_choice", "auto") != "none":
            message, finish = _openai_tool_call(body, prompt), "tool_calls"
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            for index in range(body.get("n") or 1)
        ]
        asked = sum(words(text_of(turn.get("content"))) for turn in body["messages"])
        return _envelope("chat.completion", body, choices, asked, words(text) * len(choices))

    def _say(self, prompt: str, form: Json | None) -> str:
        match form:
            case {"type": "json_object"}:
                return orjson.dumps({"echo": prompt}).decode()
            case {"type": "json_schema", "json_schema": {"schema": schema}}:
                return orjson.dumps(fitting(schema, prompt)).decode()
            case _:
                return self.answer(prompt)

    def _completions(self, body: Json) -> Json:
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        texts = [self.answer(prompt) for prompt in prompts for _ in range(body.get("n") or 1)]
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ]
        asked = sum(words(prompt) for prompt in prompts)
        return _envelope("text_completion", body, choices, asked, sum(map(words, texts)))

    def _embeddings(self, body: Json) -> Json:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        coded = body.get("encoding_format") == "base64"
        size = body.get("dimensions") or DIMENSIONS
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _coded(vector(text, size)) if coded else vector(text, size),
            }
            for index, text in enumerate(texts)
        ]
        tokens = sum(map(words, texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body["model"], "data": data, "usage": usage}


class CustomServer(OpenAIServer):
    """An OpenAI-compatible API behind another path, with its own header for the key."""

    api = "/llm"

    def __init__(self, *, key_header: str = "x-team-key", **knobs: Any) -> None:
        super().__init__(**knobs)
        self.key_header = key_header

    def key_of(self, request: Request) -> str:
        return request.headers.get(self.key_header, "").removeprefix("Bearer ")

    def task_of(self, path: str, body: Json) -> str | None:
        return next((name for name in _REQUIRED.values() if name in body), None)


_ANTHROPIC_FIELDS = {"model", "max_tokens", "messages", "system", "temperature", "top_p", "top_k", "stop_sequences",
                     "stream", "tools", "tool_choice", "metadata", "thinking", "output_config", "service_tier"}  # fmt: skip
_ANTHROPIC_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


class AnthropicServer(ProviderServer):
    """The messages of Anthropic's API. `url` has no version: clients add `/v1/messages`."""

    def key_of(self, request: Request) -> str:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return request.headers.get("x-api-key", bearer)

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        kind = "billing_error" if code == "insufficient_quota" else _ANTHROPIC_KINDS.get(status, "api_error")
        code_status = 402 if code == "insufficient_quota" else status
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_0"}
        return Reply(status=code_status, body=orjson.dumps(body), headers={"request-id": "req_0"})

    def error_event(self, status: int, message: str) -> bytes:
        return said_in(orjson.loads(self.error(status, message).body), "error")

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        return anthropic_events(answer) if body.get("stream") else None

    def tokens(self, answer: Json) -> int:
        return int(answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"])

    def limit_headers(self, now: float) -> dict[str, str]:
        found = {}
        for name, window in (("requests", self._calls), ("tokens", self._tokens)):
            if window is not None:
                limit, remaining, reset = window.state(now)
                found[f"anthropic-ratelimit-{name}-limit"] = str(limit)
                found[f"anthropic-ratelimit-{name}-remaining"] = str(remaining)
                found[f"anthropic-ratelimit-{name}-reset"] = _moment(reset)
        return found

    def refuse(self, request: Request, body: Json) -> Reply | None:
        if request.path != "/v1/messages":
            return self.error(404, "Not Found")
        if "anthropic-version" not in request.headers:
            return self.error(400, "anthropic-version: header is required")
        for name in ("model", "max_tokens", "messages"):
            if name not in body:
                return self.error(400, f"{name}: Field required")
        if strange := body.keys() - _ANTHROPIC_FIELDS:
            return self.error(400, f"{min(strange)}: Extra inputs are not permitted")
        if not self.has_model(body["model"]):
            return self.error(404, f"model: {body['model']}")
        return self._bad_message(body["messages"])

    def _bad_message(self, messages: list[Json]) -> Reply | None:
        for index, message in enumerate(messages):
            if message.get("role") not in {"user", "assistant"}:
                return self.error(400, f"messages.{index}.role: must be user or assistant")
            if not message.get("content"):
                return self.error(400, f"messages.{index}: content must not be empty")
        return None

    def respond(self, path: str, body: Json) -> Json:
        prompt = last_text(body["messages"])
        content, stop = self._content(body, prompt)
        asked = words(text_of(body.get("system"))) + sum(words(text_of(turn["content"])) for turn in body["messages"])
        said = sum(words(block.get("text", "word")) for block in content)
        return {
            "id": "msg_0", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": asked, "output_tokens": said},
        }  # fmt: skip

    def _content(self, body: Json, prompt: str) -> tuple[list[Json], str]:
        if body.get("tools") and body.get("tool_choice", {}).get("type") != "none":
            tool = body["tools"][0]
            value = fitting(tool["input_schema"], prompt)
            return [{"type": "tool_use", "id": "toolu_0", "name": tool["name"], "input": value}], "tool_use"
        match body.get("output_config"):
            case {"format": {"type": "json_schema", "schema": schema}}:
                text = orjson.dumps(fitting(schema, prompt)).decode()
            case _:
                text = self.answer(prompt)
        blocks: list[Json] = [{"type": "text", "text": text}]
        if body.get("thinking", {}).get("type") == "enabled":
            blocks.insert(0, {"type": "thinking", "thinking": "let me see", "signature": "c2ln"})
        return blocks, "end_turn"


def _openai_tool_call(body: Json, prompt: str) -> Json:
    function = body["tools"][0]["function"]
    arguments = orjson.dumps(fitting(function.get("parameters", {"type": "object"}), prompt)).decode()
    call = {
        "id": "call_0",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}


def _envelope(kind: str, body: Json, choices: list[Json], asked: int, said: int) -> Json:
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return {
        "id": f"{kind}-0",
        "object": kind,
        "created": 1,
        "model": body["model"],
        "choices": choices,
        "usage": usage,
    }


def _coded(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _duration(seconds: float) -> str:
    """Write a duration as OpenAI does: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(round(seconds * 1000), 0)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"


def _moment(seconds: float) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
