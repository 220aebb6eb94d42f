"""The REST API's own answers and chunks around what a model said (contract D.2-D.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from aiquery_serving.llm.interface import GenerationUsage
from aiquery_serving.messages import CHAT, COMPLETIONS, Json, Usage

if TYPE_CHECKING:
    from aiquery_serving.entities.foundation.reading import Spoken
    from aiquery_serving.entities.foundation.tool_calls import Call

_KINDS: Final = {CHAT: ("chatcmpl", "chat.completion"), COMPLETIONS: ("cmpl", "text_completion")}


def head(task: str, model: str, *, now: float) -> Json:
    """Return what an answer begins with; `now` in seconds since 1970. No two have the same id."""
    prefix, kind = _KINDS[task]
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(now), "model": model}


def of_chunk(head: Json) -> Json:
    """Return what every chunk of an answer begins with."""
    return {**head, "object": "chat.completion.chunk"} if head["object"] == "chat.completion" else head


def message(spoken: Spoken) -> Json:
    """Return a chat answer's message: its content is a text, or a list of blocks if there is a thought.

    Examples:
        >>> from aiquery_serving.entities.foundation.reading import Spoken
        >>> message(Spoken("Hm.", "Yes."))["content"][0]
        {'type': 'reasoning', 'summary': [{'type': 'summary_text', 'text': 'Hm.'}]}
    """
    content: Any = spoken.text if spoken.text or not spoken.calls else None
    if spoken.thought:
        content = [thought(spoken.thought), *([{"type": "text", "text": spoken.text}] if spoken.text else [])]
    calls = {"tool_calls": [tool_call(call) for call in spoken.calls]} if spoken.calls else {}
    return {"role": "assistant", "content": content, **calls}


def thought(text: str) -> Json:
    """Return the block of a thought (contract D.2)."""
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def tool_call(call: Call) -> Json:
    """Return a call of a tool, under an id of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}


def finish(reason: str | None, *, called: bool) -> str:
    """Return why an answer ended: with calls, unless it was cut off."""
    return "tool_calls" if called and reason != "length" else reason or "stop"


def together(generations: Sequence[GenerationUsage], choices: int) -> GenerationUsage:
    """Return what all answers to a request have used together; a prompt with several choices counts once."""
    prompts = generations[::choices]
    return GenerationUsage(
        prompt_tokens=sum(one.prompt_tokens for one in prompts),
        completion_tokens=sum(one.completion_tokens for one in generations),
        cached_tokens=sum(one.cached_tokens for one in prompts),
    )


def usage(used: GenerationUsage) -> tuple[Json, Usage]:
    """Return what was used, as answers say it and as the gateway counts it."""
    counted = Usage(prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens)
    said = {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.total_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }
    return said, counted


def embeddings(vectors: Iterable[Any], model: str, tokens: int) -> Json:
    """Return the answer to an embeddings request (contract D.4)."""
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
