"""A local server that speaks like Amazon Bedrock's runtime, checks signatures, and knows Amazon's own shapes."""

from __future__ import annotations

import struct
from binascii import crc32
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import botocore.session
import orjson
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.validate import ParamValidator
from loopback import Reply, Request
from provider_streams import words_of
from providers import DIMENSIONS, KEY, Json, ProviderServer, fitting, vector, words

ACCESS = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REGION = "eu-west-1"
_CODES = {400: "ValidationException", 401: "UnrecognizedClientException", 403: "AccessDeniedException",
          404: "ResourceNotFoundException", 424: "ModelErrorException", 429: "ThrottlingException",
          500: "InternalServerException", 503: "ServiceUnavailableException"}  # fmt: skip
_SERVICE = botocore.session.get_session().get_service_model("bedrock-runtime")


class BedrockServer(ProviderServer):
    """Bedrock's runtime in `eu-west-1`. `token` is the session token that requests must carry."""

    stream_type = "application/vnd.amazon.eventstream"

    def __init__(self, *, secret: str = SECRET, token: str | None = None, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.secret, self.token = secret, token

    def key_of(self, request: Request) -> str:
        return KEY if request.headers.get("authorization") == self._signed(request) else ""

    def _signed(self, request: Request) -> str:
        """Return the authorization header that the request should have."""
        given = request.headers.get("authorization", "").partition("SignedHeaders=")[2].partition(",")[0]
        headers = {name: request.headers.get(name, "") for name in given.split(";")}
        headers.pop("x-amz-security-token", None)
        again = AWSRequest(method="POST", url=self.origin + request.path, data=request.body, headers=headers)
        again.context["timestamp"] = request.headers.get("x-amz-date", "")
        signer = SigV4Auth(Credentials(ACCESS, self.secret, self.token), "bedrock", REGION)
        if self.token:
            again.headers["X-Amz-Security-Token"] = self.token
        text = signer.string_to_sign(again, signer.canonical_request(again))
        signer._inject_signature_to_request(again, signer.signature(text, again))
        return str(again.headers["Authorization"])

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        sent = 403 if status == 401 else status
        headers = {"x-amzn-errortype": _CODES.get(status, "UnknownException")}
        return Reply(status=sent, body=orjson.dumps({"message": message}), headers=headers)

    def error_event(self, status: int, message: str) -> bytes:
        kind = _CODES[status]
        named = {":message-type": "exception", ":exception-type": kind[0].lower() + kind[1:]}
        return frame(named, {"message": message})

    def tokens(self, answer: Json) -> int:
        return 1

    def limit_headers(self, now: float) -> dict[str, str]:
        return {}

    def refuse(self, request: Request, body: Json) -> Reply | None:
        _, kind, model, method = request.path.split("/")
        operations = {"converse": "Converse", "converse-stream": "ConverseStream", "invoke": "InvokeModel"}
        if kind != "model" or method not in operations:
            return self.error(404, "unknown operation")
        if not self.has_model(unquote(model)):
            return self.error(404, "The model that you are trying to use does not exist.")
        if method == "invoke":
            return None
        shape = _SERVICE.operation_model(operations[method]).input_shape
        report = ParamValidator().validate({"modelId": unquote(model), **body}, shape)
        if report.has_errors():
            return self.error(400, report.generate_report())
        return self._bad_turns(body["messages"])

    def _bad_turns(self, messages: list[Json]) -> Reply | None:
        roles = [message["role"] for message in messages]
        if roles[0] != "user" or any(one == other for one, other in pairwise(roles)):
            return self.error(400, "A conversation must start with a user message and alternate between roles.")
        if any(part.get("text") == "" for message in messages for part in message["content"]):
            return self.error(400, "The text field in the ContentBlock object is blank.")
        return None

    def respond(self, path: str, body: Json) -> Json:
        if "inputText" in body:
            return _titan(body)
        return _cohere(body) if "texts" in body else self._converse(body)

    def _converse(self, body: Json) -> Json:
        prompt = _text(body["messages"][-1]["content"])
        content, reason = self._content(body, prompt)
        asked = sum(words(_text(turn["content"])) for turn in body["messages"])
        said = words(_text(content))
        return {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": reason,
            "usage": {"inputTokens": asked, "outputTokens": said, "totalTokens": asked + said},
            "metrics": {"latencyMs": 1},
        }

    def _content(self, body: Json, prompt: str) -> tuple[list[Json], str]:
        if body.get("toolConfig"):
            spec = body["toolConfig"]["tools"][0]["toolSpec"]
            value = fitting(spec["inputSchema"]["json"], prompt)
            return [{"toolUse": {"toolUseId": "tooluse_0", "name": spec["name"], "input": value}}], "tool_use"
        match body.get("outputConfig"):
            case {"textFormat": {"structure": {"jsonSchema": {"schema": schema}}}}:
                text = orjson.dumps(fitting(orjson.loads(schema), prompt)).decode()
            case _:
                text = self.answer(prompt)
        content: list[Json] = [{"text": text}]
        if body.get("additionalModelRequestFields", {}).get("thinking"):
            content.insert(0, {"reasoningContent": {"reasoningText": {"text": "let me see", "signature": "c2ln"}}})
        short = body.get("inferenceConfig", {}).get("maxTokens") == 1
        return content, "max_tokens" if short else "end_turn"

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        return list(_frames(answer)) if path.endswith("/converse-stream") else None


def frame(headers: dict[str, str], payload: Json) -> bytes:
    """Write one message of Amazon's binary event streams."""
    named = b"".join(_header(name, value) for name, value in headers.items())
    body = orjson.dumps(payload)
    prelude = struct.pack(">II", 16 + len(named) + len(body), len(named))
    prelude += struct.pack(">I", crc32(prelude))
    whole = prelude + named + body
    return whole + struct.pack(">I", crc32(whole))


def _header(name: str, value: str) -> bytes:
    text = value.encode()
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(text)) + text


def _event(kind: str, payload: Json) -> bytes:
    return frame({":message-type": "event", ":event-type": kind, ":content-type": "application/json"}, payload)


def _frames(answer: Json) -> Any:
    yield _event("messageStart", {"role": "assistant"})
    for index, block in enumerate(answer["output"]["message"]["content"]):
        for kind, event in _block_events(block):
            yield _event(kind, {"contentBlockIndex": index, **event})
        yield _event("contentBlockStop", {"contentBlockIndex": index})
    yield _event("messageStop", {"stopReason": answer["stopReason"]})
    yield _event("metadata", {"usage": answer["usage"], "metrics": answer["metrics"]})


def _block_events(block: Json) -> list[tuple[str, Json]]:
    match block:
        case {"text": text}:
            return [("contentBlockDelta", {"delta": {"text": piece}}) for piece in words_of(text)]
        case {"toolUse": use}:
            text = orjson.dumps(use["input"]).decode()
            start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
            pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
            deltas = [("contentBlockDelta", {"delta": {"toolUse": {"input": piece}}}) for piece in pieces]
            return [("contentBlockStart", {"start": start}), *deltas]
        case _:
            return [("contentBlockDelta", {"delta": {"reasoningContent": {"text": "let me see"}}})]


def _text(content: list[Json]) -> str:
    return " ".join(part["text"] for part in content if "text" in part)


def _titan(body: Json) -> Json:
    text = body["inputText"]
    return {"embedding": vector(text, body.get("dimensions", DIMENSIONS)), "inputTextTokenCount": words(text)}


def _cohere(body: Json) -> Json:
    return {"id": "m0", "embeddings": {"float": [vector(text) for text in body["texts"]]}, "texts": body["texts"]}
