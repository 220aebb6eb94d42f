"""Which members of requests and answers are text that somebody wrote, and how to change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from aiquery_serving.messages import Json

#: The way to a text: names of members, and the places of a list's items.
Path: TypeAlias = tuple[str | int, ...]

#: Where requests have text.
ASKED: Final = ("messages", "prompt", "input", "instructions", "instruction", "suffix")
#: Where answers have text.
ANSWERED: Final = ("choices", "output")
#: What has text in it, inside of those.
_SPOKEN: Final = frozenset(
    (
        "message", "delta", "content", "text", "output_text", "refusal", "reasoning", "reasoning_content", "thinking",
        "summary", "tool_calls", "function_call", "function", "custom", "arguments", "input", "output",
    )
)  # fmt: skip


def spoken(body: Mapping[str, Any], members: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Yield the texts of a request or an answer, in order, each with the way to it.

    Examples:
        >>> body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "user": "ada"}
        >>> list(spoken(body, ASKED))
        [(('messages', 0, 'content', 0, 'text'), 'Hi')]
    """
    for member in members:
        yield from texts_in(body.get(member), (member,))


def texts_in(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield the texts in a part of a body, each with the way to it."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, list):
        for place, item in enumerate(node):
            yield from texts_in(item, (*path, _place(item, place)))
    elif isinstance(node, Mapping):
        for name, value in node.items():
            if name in _SPOKEN:
                yield from texts_in(value, (*path, name))


def rewritten(body: Mapping[str, Any], members: tuple[str, ...], change: Callable[[str], str]) -> Json:
    """Return a request or an answer with its texts changed; what was given stays as it is."""
    changed = {
        member: with_texts(body[member], lambda _, text: change(text), (member,))
        for member in members
        if member in body
    }
    return {**body, **changed}


def with_texts(node: Any, change: Callable[[Path, str], str], path: Path = ()) -> Any:
    """Return a part of a body with its texts changed."""
    if isinstance(node, str):
        return change(path, node)
    if isinstance(node, list):
        return [with_texts(item, change, (*path, _place(item, place))) for place, item in enumerate(node)]
    if isinstance(node, Mapping):
        return {
            name: with_texts(value, change, (*path, name)) if name in _SPOKEN else value for name, value in node.items()
        }
    return node


def conversation(body: Mapping[str, Any], members: tuple[str, ...]) -> list[Json]:
    """Return who said what, as `{"role", "text"}`: the messages of a chat, or the texts of anything else."""
    said = []
    for member in members:
        items = body.get(member)
        for item in items if isinstance(items, list) else [items]:
            text = "\n".join(text for _, text in texts_in(item))
            if text:
                said.append({"role": _role(item, member), "text": text})
    return said


def last_question(body: Mapping[str, Any]) -> list[Json]:
    """Return what the user said last in a chat, or the texts of any other request."""
    said = conversation(body, ASKED)
    asked = [turn for turn in said if turn["role"] == "user"]
    return asked[-1:] if "messages" in body else asked


def _role(item: Any, member: str) -> str:
    if member in ANSWERED:
        return "assistant"
    return str(item.get("role") or "user") if isinstance(item, Mapping) else "user"


def _place(item: Any, place: int) -> int:
    # Pieces of an answer say which item they continue; their own place in the list does not.
    index = item.get("index") if isinstance(item, Mapping) else None
    return index if isinstance(index, int) else place
