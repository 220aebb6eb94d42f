"""How many tokens a request has, counted or estimated, and how many its answer may have.

What `count` counts: the text of messages, prompts and inputs; for OpenAI's chat also the few tokens that frame each
message. Pictures, tools and schemas are not counted, and a count that leaves something out says that it is not exact.
What `most` bounds: the whole body. A byte-level tokenizer never makes more tokens than a text has UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from aiquery_serving.batching import UNKNOWN_OUTPUT, estimated_tokens
from aiquery_serving.endpoint import ServedEntity
from aiquery_serving.errors import AiQueryError

#: The most output tokens expected of an answer that nothing bounds and of whose like none was longer yet.
UNBOUNDED_OUTPUT = 4096
#: The most tokens that any provider makes of one picture; OpenAI counts far more for one model to keep its price.
MOST_OF_A_PICTURE = 16_384
MOST_OF_A_PICTURE_GPT_4O_MINI = 50_000
#: The most tokens that a provider adds to a request by itself; and with instructions for tools or a schema.
PROVIDER_EXTRA = 64
PROVIDER_EXTRA_WITH_TOOLS = 1024

_INSTRUCTED = frozenset({"tools", "functions", "response_format"})
#: Chat models of which OpenAI has said how messages are framed.
_KNOWN_FRAME = re.compile(r"gpt-(?:3\.5-turbo|4o|4-|4$)")
_PER_MESSAGE, _PER_NAME, _PER_CHAT = 3, 1, 3
#: tiktoken's files by the SHA-256 of their content. It would download one that is missing or damaged.
_TIKTOKEN_FILES = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
_TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"


class Counted(NamedTuple):
    """Input tokens of a request, and whether the provider will count the same."""

    tokens: int
    exact: bool


class OutputBounds(NamedTuple):
    """Output tokens of an answer: the fewest, as many as expected, and the most."""

    low: int
    expected: int
    high: int


@runtime_checkable
class CountsPrompts(Protocol):
    """A served entity with a tokenizer of its own."""

    def count_prompt(self, body: Mapping[str, Any]) -> int:
        """Return the input tokens of a request, as the usage of its answer says them. From any thread.

        Raises:
            AiQueryError: The request is wrong, or the tokenizer cannot be had.
        """
        ...


def count(body: Mapping[str, Any], served: ServedEntity, entity: object = None) -> Counted:
    """Count the input tokens of a REST request body. Never touches the network.

    Args:
        body: The REST request body (contract D.2-D.4).
        served: What it is for.
        entity: The loaded entity; one that `CountsPrompts` is asked.

    Returns:
        The count by the entity's own tokenizer or by tiktoken, where that is installed and has its file at hand;
        else a quarter of the text's length, as an estimate.
    """
    if isinstance(entity, CountsPrompts):
        return _own_count(entity, body)
    length = _openai_tokenizer(served)
    if length is None:
        return Counted(estimated_tokens(body), exact=False)
    tokens = sum(map(length, _texts(body)))
    left_out = not _INSTRUCTED.isdisjoint(body) or any(True for _ in _pictures(body))
    if "messages" not in body:
        return Counted(tokens, exact=not left_out)
    known = served.external_model is not None and _KNOWN_FRAME.match(served.external_model.name) is not None
    return Counted(tokens + _framing(_messages(body), length), exact=known and not left_out)


def _own_count(entity: CountsPrompts, body: Mapping[str, Any]) -> Counted:
    try:
        return Counted(entity.count_prompt(body), exact=True)
    except AiQueryError:  # the engine will say what is wrong with it
        return Counted(estimated_tokens(body), exact=False)


def output_bounds(body: Mapping[str, Any], learned: int | None = None) -> OutputBounds:
    """Return how many tokens an answer may have.

    Args:
        body: The REST request body. A request for embeddings, or of rows for a custom model, has no such answer.
        learned: What earlier answers had: their largest for a safe upper bound.

    Examples:
        >>> output_bounds({"prompt": "Once", "max_tokens": 900}, learned=40)
        OutputBounds(low=1, expected=40, high=900)
        >>> output_bounds({"prompt": "Once", "n": 2})
        OutputBounds(low=2, expected=512, high=8192)
    """
    answers = _answers(body)
    if not answers:
        return OutputBounds(0, 0, 0)
    asked = answers * _asked_output(body)
    high = asked or max(answers * UNBOUNDED_OUTPUT, 2 * (learned or 0))
    return OutputBounds(min(answers, high), min(learned or answers * UNKNOWN_OUTPUT, high), high)


def most(body: Mapping[str, Any], served: ServedEntity) -> int:
    """Return a number of input tokens that the provider's own count does not exceed; 0 for a custom model's rows."""
    if not has_text(body):
        return 0
    pictures = list(_pictures(body))
    text = json.dumps(body, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    inline = sum(len(url) for url in pictures if url.startswith("data:"))
    extra = PROVIDER_EXTRA if _INSTRUCTED.isdisjoint(body) else PROVIDER_EXTRA_WITH_TOOLS
    return len(text) - inline + len(pictures) * _most_of_a_picture(served) + extra


def has_text(body: Mapping[str, Any]) -> bool:
    """Say whether a body has something that is read as tokens."""
    return "messages" in body or "prompt" in body or "input" in body


def _most_of_a_picture(served: ServedEntity) -> int:
    external = served.external_model
    dear = external is not None and "gpt-4o-mini" in external.name
    return MOST_OF_A_PICTURE_GPT_4O_MINI if dear else MOST_OF_A_PICTURE


def _answers(body: Mapping[str, Any]) -> int:
    """Return how many answers a request gets: several prompts and `n` multiply."""
    if "messages" not in body and "prompt" not in body:
        return 0
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) else 1
    return prompts * max(_number(body, "n"), _number(body, "best_of"), 1)


def _asked_output(body: Mapping[str, Any]) -> int:
    extra = body.get("extra_params")
    places = [body, extra] if isinstance(extra, Mapping) else [body]
    return max(_number(place, name) for place in places for name in ("max_tokens", "max_completion_tokens"))


def _number(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    return math.ceil(value) if isinstance(value, int | float) and 0 < value < math.inf else 0


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a model reads of a body."""
    for message in _messages(body):
        yield from _strings(message.get("content"))
    for name in ("prompt", "input", "instruction"):
        yield from _strings(body.get(name))


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = body.get("messages")
    return [one for one in messages if isinstance(one, Mapping)] if isinstance(messages, list) else []


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        yield from _strings(content.get("text"))
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _strings(part)


def _pictures(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield the URLs of the pictures in a body."""
    for message in _messages(body):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and "image_url" in part:
                url = part["image_url"]
                yield str(url.get("url", "")) if isinstance(url, Mapping) else str(url)


def _framing(messages: list[Mapping[str, Any]], length: Callable[[str], int]) -> int:
    """Return the tokens that OpenAI puts around messages."""
    roles = sum(_PER_MESSAGE + length(str(message.get("role", ""))) for message in messages)
    names = sum(_PER_NAME + length(str(message["name"])) for message in messages if message.get("name"))
    return roles + names + _PER_CHAT


def _openai_tokenizer(served: ServedEntity) -> Callable[[str], int] | None:
    external = served.external_model
    return _tiktoken(external.name) if external is not None and external.provider == "openai" else None


@lru_cache(maxsize=64)
def _tiktoken(model: str) -> Callable[[str], int] | None:
    """Return a counter of a model's tokens, if tiktoken is installed and needs no download for it."""
    try:
        import tiktoken  # type: ignore[import-not-found,unused-ignore]

        name = tiktoken.encoding_name_for_model(model)
    except (ImportError, KeyError):
        return None
    if not _at_hand(name):
        return None
    encode = tiktoken.get_encoding(name).encode_ordinary
    return lambda text: len(encode(text))


def _at_hand(encoding: str) -> bool:
    """Say whether tiktoken has an encoding's file, undamaged, where it looks for it."""
    named = (os.environ.get(name) for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"))
    folder = next((path for path in named if path is not None), str(Path(tempfile.gettempdir(), "data-gym-cache")))
    place = hashlib.sha1(_TIKTOKEN_URL.format(encoding).encode(), usedforsecurity=False).hexdigest()
    # An empty name turns tiktoken's cache off: it would download every time.
    if not folder or encoding not in _TIKTOKEN_FILES:
        return False
    try:
        content = Path(folder, place).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest() == _TIKTOKEN_FILES[encoding]
