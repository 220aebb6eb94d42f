"""Request bodies from a row's text, and the text from an answer's body (contract A.2, A.3)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import CHAT, COMPLETIONS, Json
from aiquery_udfs.errors import InvalidHttpResponseError, UnsupportedRequestError

#: So many characters of an answer are shown in an error.
_SHOWN = 40
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def request_body(task: str, prompt: str, image: bytes | None, options: Mapping[str, Any]) -> Json:
    """Return the body that asks for one row's answer.

    An embeddings body holds its one input as a string: whoever sends it packs many inputs into a request.

    Raises:
        UnsupportedRequestError: The image is not PNG, JPEG, GIF or WebP.
    """
    if task == CHAT:
        content = prompt if image is None else _with_image(prompt, image)
        return {"messages": [{"role": "user", "content": content}], **options}
    return {"prompt" if task == COMPLETIONS else "input": prompt, **options}


def answer_text(task: str | None, body: Mapping[str, Any]) -> str | None:
    """Return the text of the first choice.

    Of a list of blocks only the text blocks count: reasoning is dropped. A model that answers without text
    (a refusal, a tool call, or all its tokens spent on reasoning) gives NULL rather than an error, for one
    refused row must not stop a whole query.

    Raises:
        InvalidHttpResponseError: The body has no choice, or the choice is not shaped as its task promises.
    """
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _unusable("choices[0]", body)
    if task == COMPLETIONS:
        return _text(choices[0].get("text", _ABSENT), "choices[0].text", body)
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise _unusable("choices[0].message", body)
    return _text(message.get("content"), "choices[0].message.content", body)


def check_whole(asked: Mapping[str, Any], body: Mapping[str, Any], text: str | None) -> None:
    """Refuse an answer that was to be JSON by a `response_format`, and was cut off before its end.

    Raises:
        ProviderResponseError: It is no JSON; becomes a `JsonParseError`.
    """
    form = asked.get("response_format")
    if text is None or not form or form.get("type") == "text" or body["choices"][0].get("finish_reason") != "length":
        return
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProviderResponseError(
            f"it was cut off by max_tokens, or at the end of the model's context, after {text[-_SHOWN:]!r}. "
            "Raise max_tokens in modelParameters, or ask for less."
        ) from error


_ABSENT = object()


def _text(content: Any, where: str, body: Mapping[str, Any]) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _unusable(where, body)
    texts = [_block_text(block) for block in content]
    found = [text for text in texts if text is not None]
    return "".join(found) if found else None


def _block_text(block: Any) -> str | None:
    if isinstance(block, str):
        return block
    if not isinstance(block, dict) or block.get("type") not in ("text", "output_text"):
        return None
    text = block.get("text")
    return text if isinstance(text, str) else None


def _unusable(where: str, body: Mapping[str, Any]) -> InvalidHttpResponseError:
    found = ", ".join(sorted(map(str, body))) or "nothing"
    return InvalidHttpResponseError(
        f"The answer to AI_QUERY cannot be used: it has no usable {where}. Its fields are: {found}. Check "
        "that the endpoint's task is the one its model serves."
    )


def _with_image(prompt: str, image: bytes) -> list[Json]:
    url = f"data:{_media_type(image)};base64,{base64.b64encode(image).decode()}"
    return [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]


def _media_type(image: bytes) -> str:
    for signature, media_type in _SIGNATURES:
        if image.startswith(signature):
            return media_type
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    raise UnsupportedRequestError(
        f"The argument files holds {len(image)} bytes that are no image. Supported types: PNG, JPEG, GIF, WebP."
    )
