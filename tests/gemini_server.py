"""Local servers that speak like Google: the Gemini API, and Vertex AI behind tokens."""

from __future__ import annotations

import re
from typing import Any

import orjson
from loopback import Reply, Request
from provider_streams import said_in, words_of
from providers import DIMENSIONS, Json, ProviderServer, fitting, vector, words

_REQUEST = {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings", "cachedContent",
            "labels"}  # fmt: skip
_CONFIG = {"temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences", "presencePenalty",
           "frequencyPenalty", "seed", "responseMimeType", "responseSchema", "responseJsonSchema", "thinkingConfig",
           "responseLogprobs", "logprobs"}  # fmt: skip
_PARTS = {"text", "inlineData", "fileData", "functionCall", "functionResponse", "thoughtSignature"}
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
             429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}  # fmt: skip


class GeminiServer(ProviderServer):
    """The Gemini API: `/v1beta/models/{model}:{method}`. A prompt "blocked" is refused, "thinks" is thought over."""

    path = re.compile(r"/v1beta/models/(?P<model>[^/:]+):(?P<method>\w+)")

    def key_of(self, request: Request) -> str:
        return request.headers.get("x-goog-api-key", "")

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        body = {"error": {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}}
        return Reply(status=status, body=orjson.dumps(body))

    def error_event(self, status: int, message: str) -> bytes:
        return said_in(orjson.loads(self.error(status, message).body))

    def tokens(self, answer: Json) -> int:
        return 1

    def limit_headers(self, now: float) -> dict[str, str]:
        return {}

    def refuse(self, request: Request, body: Json) -> Reply | None:
        found = self.path.fullmatch(request.path.split("?")[0])
        if found is None:
            return self.error(404, "Requested entity was not found.")
        if not self.has_model(found["model"]):
            return self.error(404, f"models/{found['model']} is not found for API version v1beta")
        if "contents" in body:
            return self._bad_chat(body)
        return None

    def _bad_chat(self, body: Json) -> Reply | None:
        strange = [*(body.keys() - _REQUEST), *(body.get("generationConfig", {}).keys() - _CONFIG)]
        strange += [name for turn in body["contents"] for part in turn["parts"] for name in part.keys() - _PARTS]
        if strange:
            return self.error(400, f'Invalid JSON payload received. Unknown name "{min(strange)}": Cannot find field.')
        if body["contents"][-1]["role"] not in {"user", "function"}:
            return self.error(400, "Please ensure that single turn requests end with a user role.")
        return None

    def respond(self, path: str, body: Json) -> Json:
        return self._embed(body) if "requests" in body else self._chat(body, path)

    def _chat(self, body: Json, path: str) -> Json:
        found = self.path.fullmatch(path)
        assert found is not None
        prompt = _prompt(body["contents"])
        usage = {"promptTokenCount": sum(words(_text(turn["parts"])) for turn in body["contents"])}
        head = {"responseId": "r0", "modelVersion": found["model"], "usageMetadata": usage}
        if prompt == "blocked":
            return {"promptFeedback": {"blockReason": "SAFETY"}, **head}
        config = body.get("generationConfig", {})
        parts = self._parts(body, config, prompt)
        usage["candidatesTokenCount"] = words(_text(parts))
        if prompt == "thinks":
            parts.insert(0, {"text": "let me see", "thought": True})
            usage["thoughtsTokenCount"] = 3
        reason = "MAX_TOKENS" if config.get("maxOutputTokens") == 1 else "STOP"
        count = config.get("candidateCount", 1)
        content = {"parts": parts, "role": "model"}
        candidates = [{"content": content, "finishReason": reason, "index": index} for index in range(count)]
        return {"candidates": candidates, **head}

    def _parts(self, body: Json, config: Json, prompt: str) -> list[Json]:
        mode = body.get("toolConfig", {}).get("functionCallingConfig", {}).get("mode")
        if body.get("tools") and mode != "NONE":
            function = body["tools"][0]["functionDeclarations"][0]
            args = fitting(function.get("parametersJsonSchema", {"type": "object"}), prompt)
            return [{"functionCall": {"name": function["name"], "args": args}, "thoughtSignature": "c2ln"}]
        if "responseJsonSchema" in config:
            return [{"text": orjson.dumps(fitting(config["responseJsonSchema"], prompt)).decode()}]
        if config.get("responseMimeType") == "application/json":
            return [{"text": orjson.dumps({"echo": prompt}).decode()}]
        return [{"text": self.answer(prompt)}]

    def _embed(self, body: Json) -> Json:
        found = []
        for each in body["requests"]:
            text = each["content"]["parts"][0]["text"]
            found.append({"values": vector(text, each.get("outputDimensionality", DIMENSIONS))})
        return {"embeddings": found}

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        if not path.endswith(":streamGenerateContent"):
            return None
        return [said_in(event) for event in _events(answer)]


class VertexServer(GeminiServer):
    """Vertex AI: project `p1` in `europe-west4`. Its keys are access tokens; gemini embeds one text a request."""

    path = re.compile(
        r"/v1/projects/p1/locations/europe-west4/publishers/google/models/(?P<model>[^/:]+):(?P<method>\w+)"
    )

    def key_of(self, request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def refuse(self, request: Request, body: Json) -> Reply | None:
        if len(body.get("instances", [])) > 1 and "gemini" in request.path:
            return self.error(400, "Only one instance is supported for this model.")
        return super().refuse(request, body)

    def respond(self, path: str, body: Json) -> Json:
        return self._predict(body) if "instances" in body else super().respond(path, body)

    def _predict(self, body: Json) -> Json:
        size = body.get("parameters", {}).get("outputDimensionality", DIMENSIONS)
        texts = [each["content"] for each in body["instances"]]
        statistics = [{"token_count": words(text), "truncated": False} for text in texts]
        return {
            "predictions": [
                {"embeddings": {"values": vector(text, size), "statistics": counted}}
                for text, counted in zip(texts, statistics, strict=True)
            ]
        }


def _prompt(contents: list[Json]) -> str:
    return _text(contents[-1]["parts"]) or orjson.dumps(contents[-1]["parts"][-1]).decode()


def _text(parts: list[Json]) -> str:
    return " ".join(part["text"] for part in parts if "text" in part)


def _events(answer: Json) -> list[Json]:
    """Cut an answer: each word is an event, and the last event says why it ended and what it used."""
    candidates = answer.get("candidates", [])
    head = {name: answer[name] for name in ("responseId", "modelVersion")}
    so_far = {**head, "usageMetadata": {"promptTokenCount": answer["usageMetadata"]["promptTokenCount"]}}
    events = []
    for candidate in candidates:
        pieces = [piece for part in candidate["content"]["parts"] for piece in _pieces(part)]
        for piece in pieces:
            content = {"parts": [piece], "role": "model"}
            events.append({"candidates": [{"content": content, "index": candidate["index"]}], **so_far})
        end: dict[str, Any] = {"finishReason": candidate["finishReason"], "index": candidate["index"]}
        last = candidate is candidates[-1]
        events.append(
            {"candidates": [end], **(so_far if not last else head | {"usageMetadata": answer["usageMetadata"]})}
        )
    return events or [answer]


def _pieces(part: Json) -> list[Json]:
    return [{**part, "text": text} for text in words_of(part["text"])] if "text" in part else [part]
