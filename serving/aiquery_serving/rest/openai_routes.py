"""The OpenAI API's routes, where the body names the endpoint as its `model` (contract B.4, G.5)."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

import numpy as np

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Json

#: The task that a path below a base asks for; None for agents, which take any.
TASKS: Final[dict[str, str | None]] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "responses": None,
}
_BASES: Final = ("/serving-endpoints/", "/ai-gateway/mlflow/v1/", "/ai-gateway/openai/v1/")
ROUTES: Final = {base + path: path for base in _BASES for path in TASKS}


def model_of(body: Json) -> str:
    """Return the endpoint that a body names.

    Raises:
        InvalidRequestError: It names none.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError("The request needs 'model': the name of an endpoint.")
    return model


def require_task(endpoint: str, task: str | None, path: str) -> None:
    """Let a request pass to an endpoint that does what its path asks for. Custom models (no task) take them all.

    Raises:
        InvalidRequestError: The endpoint does something else.
    """
    if task is not None and TASKS[path] != task:
        right = next(other for other, served in TASKS.items() if served == task)
        raise InvalidRequestError(
            f"Endpoint '{endpoint}' serves {task}, which is not asked at '{path}' but at '{right}'."
        )


def with_messages(body: Json) -> None:
    """Write an `input` that is a text as what the Responses API says it stands for: the user's one message.

    Examples:
        >>> body = {"input": "hi"}
        >>> with_messages(body)
        >>> body
        {'input': [{'role': 'user', 'content': 'hi'}]}
    """
    if isinstance(body.get("input"), str):
        body["input"] = [{"role": "user", "content": body["input"]}]


def with_base64(answer: Json) -> Json:
    """Return an answer with its embeddings as the OpenAI SDK asks for them: little-endian float32, in base64.

    Examples:
        >>> with_base64({"data": [{"index": 0, "embedding": [1.0]}]})
        {'data': [{'index': 0, 'embedding': 'AACAPw=='}]}
    """
    return {**answer, "data": [{**item, "embedding": _packed(item["embedding"])} for item in answer["data"]]}


def _packed(embedding: Any) -> Any:
    if isinstance(embedding, list | np.ndarray):
        return b64encode(np.asarray(embedding, "<f4").tobytes()).decode()
    return embedding
