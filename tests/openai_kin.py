"""Local servers of those who speak like OpenAI at other places: Azure, a Databricks workspace, AI21."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import orjson
from loopback import Reply, Request
from provider_base import Json
from provider_streams import openai_events, said_in
from providers import KEY, OpenAIServer

API_VERSION = "2024-10-21"


class AzureServer(OpenAIServer):
    """Azure OpenAI: one deployment `prod`, whose key is a header of its own or whose token is Entra's."""

    api = "/openai/deployments/prod"

    def key_of(self, request: Request) -> str:
        return request.headers.get("api-key") or super().key_of(request)

    def refuse(self, request: Request, body: Json) -> Reply | None:
        parsed = urlsplit(request.path)
        if parse_qs(parsed.query).get("api-version") != [API_VERSION]:
            return self.error(404, "Resource not found")
        if self.task_of(parsed.path, body) is None:
            return self.error(404, "The API deployment for this resource does not exist.", "DeploymentNotFound")
        plain = Request(method=request.method, path=parsed.path, headers=request.headers, body=request.body)
        return super().refuse(plain, body)

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        events = super().streamed(path, answer, body)
        filtered = {"choices": [], "id": "", "model": "", "object": "", "created": 0, "prompt_filter_results": []}
        return events and [said_in(filtered), *events]


class WorkspaceServer(OpenAIServer):
    """Another workspace's serving endpoints: `POST /serving-endpoints/{name}/invocations`, no model in the body."""

    api = "/serving-endpoints"

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        codes = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST"}
        body = {"error_code": codes.get(status, "BAD_REQUEST"), "message": message}
        return Reply(status=status, body=orjson.dumps(body))

    def refuse(self, request: Request, body: Json) -> Reply | None:
        if "model" in body:
            return self.error(400, "model: Extra inputs are not permitted")
        return super().refuse(request, {**body, "model": request.path.split("/")[2]})

    def task_of(self, path: str, body: Json) -> str | None:
        if not path.endswith("/invocations"):
            return None
        return next((name for name in ("messages", "prompt", "input") if name in body), None)

    def respond(self, path: str, body: Json) -> Json:
        return super().respond(path, {**body, "model": path.split("/")[2]})


_AI21_FIELDS = {"model", "messages", "tools", "documents", "response_format", "max_tokens", "temperature", "top_p", "stop",
                "n", "stream"}  # fmt: skip
_LEFT_OUT = ("object", "created", "model")


class AI21Server(OpenAIServer):
    """AI21's chat: fewer parameters, and answers that leave some members out."""

    api = "/studio/v1"

    def error(self, status: int, message: str, code: str | None = None) -> Reply:
        return Reply(status=status, body=orjson.dumps({"detail": message}))

    def refuse(self, request: Request, body: Json) -> Reply | None:
        if strange := body.keys() - _AI21_FIELDS:
            return self.error(422, f"{min(strange)}: extra fields not permitted")
        return super().refuse(request, body)

    def respond(self, path: str, body: Json) -> Json:
        answer = super().respond(path, body)
        return {name: value for name, value in answer.items() if name not in _LEFT_OUT}

    def streamed(self, path: str, answer: Json, body: Json) -> list[bytes] | None:
        if not body.get("stream"):
            return None
        events = openai_events({**answer, "object": "chat.completion", "created": 1, "model": "m"}, body)[:-1]
        chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
        chunks[-1]["usage"] = answer["usage"]
        return [*(said_in({"id": chunk["id"], **_kept(chunk)}) for chunk in chunks), b"data: [DONE]\n\n"]


def _kept(chunk: Json) -> Json:
    return {name: chunk[name] for name in ("choices", "usage") if name in chunk}


__all__ = ["API_VERSION", "KEY", "AI21Server", "AzureServer", "WorkspaceServer"]
