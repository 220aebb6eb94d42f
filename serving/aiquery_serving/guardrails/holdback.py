"""Answers in pieces under guardrails: what may be given already, and what has to wait for more.

Every text of an answer (each choice, its reasoning, the arguments of each tool call) is a channel. What a channel has
not given yet is held as long as something that is looked for could begin in it and end in a piece to come. Text is
given up to the end of a word, and found things are given as one.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from aiquery_serving.guardrails import personal
from aiquery_serving.guardrails.rail import LONG, Ask, Rail
from aiquery_serving.guardrails.texts import ANSWERED, Path, conversation, texts_in, with_texts
from aiquery_serving.guardrails.words import UNSPACED, folded
from aiquery_serving.messages import Json

#: Characters that were given and still tell what the next ones mean.
_REMEMBERED: Final = 128
#: Nothing that is looked for has as many characters without a space; a longer run is given in parts.
_LONGEST_RUN: Final = 512
_BREAK: Final = re.compile(f"[\\s\u3000-\u303f\uff00-\uff0f{UNSPACED}]")
#: What a part of a text is called, by the list that it is in and its own member.
_KINDS: Final = {
    ("content", "text"): "text",
    ("content", "summary"): "reasoning",
    ("summary", "text"): "summary_text",
}


class Channel:
    """One text of an answer, as it comes in and as it may go out."""

    __slots__ = ("_given", "_hold", "_rail", "_text")

    def __init__(self, rail: Rail) -> None:
        self._rail = rail
        self._hold = max(rail.longest_keyword, personal.LONGEST if rail.pii else 0) + 1
        self._text, self._given = "", 0

    def feed(self, text: str) -> str:
        """Take more text, and return what may be given.

        Raises:
            GuardrailError: What would be given now is refused.
        """
        self._text += text
        return self._give(_cut(self._text, self._given, self._hold))

    def finish(self) -> str:
        """Return what is left, when no more comes.

        Raises:
            GuardrailError: It is refused.
        """
        return self._give(len(self._text))

    def _give(self, cut: int) -> str:
        if cut <= self._given:
            return ""
        found = [finding for finding in self._rail.findings(self._text) if finding.end > self._given]
        if (crossing := next((one for one in found if one.start < cut < one.end), None)) is not None:
            cut = max(crossing.start, self._given)
        found = [finding for finding in found if finding.start < cut]
        self._refuse(cut, found)
        shifted = [_shifted(finding, self._given) for finding in found]
        given = personal.masked(self._text[self._given : cut], shifted)
        self._forget(cut)
        return given

    def _refuse(self, cut: int, found: list[personal.Finding]) -> None:
        flagged = {f"pii ({finding.kind})" for finding in found} if self._rail.pii == "BLOCK" else set()
        if self._keyword_before(cut):
            flagged.add("invalid_keywords")
        if flagged:
            raise self._rail.refusal(sorted(flagged))

    def _keyword_before(self, cut: int) -> bool:
        """Say whether a keyword begins in what would be given."""
        if self._rail.keywords is None:
            return False
        known, new, rest = (
            folded(part) for part in (self._text[: self._given], self._text[self._given : cut], self._text[cut:])
        )
        found = self._rail.keywords.search(known + new + rest, len(known))
        return found is not None and found.start() < len(known) + len(new)

    def _forget(self, cut: int) -> None:
        start = max(0, cut - _REMEMBERED)
        space = _BREAK.search(self._text, start, cut)
        start = space.end() if start and space else start
        self._text, self._given = self._text[start:], cut - start


async def held_back(chunks: AsyncGenerator[Json, None], rail: Rail) -> AsyncGenerator[Json, None]:
    """Yield the pieces of an answer with what may be given of their texts.

    Raises:
        GuardrailError: The answer is refused.
    """
    if rail.pii and not personal.loaded():
        await asyncio.to_thread(personal.find, "")
    channels: dict[Path, Channel] = {}
    last: Json = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            for piece in await _looked_at(chunk, rail, channels):
                yield piece
            last = chunk
    for piece in _flushed(last, channels):
        yield piece


async def judged(chunks: AsyncGenerator[Json, None], rail: Rail, ask: Ask) -> AsyncGenerator[Json, None]:
    """Yield the pieces of an answer when all have come and were judged.

    Raises:
        GuardrailError: The answer is refused.
        AiQueryError: An endpoint that judges failed.
    """
    kept: list[Json] = []
    texts: dict[Path, str] = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            kept.append(chunk)
            for path, text in texts_in(chunk.get("choices")):
                texts[path] = texts.get(path, "") + text
    said = [{"role": "assistant", "text": text} for text in texts.values() if text]
    said += [turn for chunk in kept for turn in conversation(chunk, ANSWERED[1:])]
    await rail.judge(said, said, ask)
    for chunk in kept:
        yield chunk


async def _looked_at(chunk: Json, rail: Rail, channels: dict[Path, Channel]) -> list[Json]:
    if not isinstance(chunk.get("choices"), list):
        return [dict(await rail.looked_through(chunk, ANSWERED))]
    if sum(map(len, _said(chunk["choices"]))) > LONG:
        return await asyncio.to_thread(_passed, chunk, rail, channels)
    return _passed(chunk, rail, channels)


def _passed(chunk: Json, rail: Rail, channels: dict[Path, Channel]) -> list[Json]:
    """Return a piece as it may be given, and before one that ends a choice what was held of that."""

    def fed(path: Path, text: str) -> str:
        return channels.setdefault(path, Channel(rail)).feed(text)

    # The probabilities of tokens would spell what is held back.
    passed = [{**choice, "logprobs": None} if "logprobs" in choice else choice for choice in chunk["choices"]]
    passed = with_texts(passed, fed)
    ended = [_index(choice, place) for place, choice in enumerate(passed) if choice.get("finish_reason")]
    tails = _flushed(chunk, {path: channels.pop(path) for path in list(channels) if path[0] in ended})
    if not tails:
        return [] if _waits(chunk, passed) else [{**chunk, "choices": passed}]
    said = [{**choice, "finish_reason": None} for choice in passed if choice.get("delta") or choice.get("text")]
    begun = [{**_head(chunk), "choices": said}] if said else []
    return [*begun, *tails, {**chunk, "choices": [_silent(choice) for choice in passed]}]


def _waits(chunk: Json, passed: list[Json]) -> bool:
    """Say whether all that a piece had to say is held, so that there is nothing to give."""
    more = chunk.get("usage") or any(choice.get("finish_reason") or _begins(choice) for choice in passed)
    return not more and any(_said(chunk["choices"])) and not any(_said(passed))


def _said(choices: list[Json]) -> list[str]:
    return [text for _, text in texts_in(choices)]


def _begins(choice: Json) -> bool:
    delta = choice.get("delta") or {}
    return "role" in delta or "tool_calls" in delta


def _flushed(chunk: Json, channels: dict[Path, Channel]) -> list[Json]:
    """Return what channels held, each as a piece like `chunk`."""
    tails = [(path, channel.finish()) for path, channel in channels.items()]
    return [{**_head(chunk), "choices": [_choice(path, tail)]} for path, tail in tails if tail]


def _choice(path: Path, text: str) -> Json:
    index, *way = path
    return {"index": index, **_nested(tuple(way), text), "finish_reason": None}


def _nested(path: Path, text: str) -> Json:
    """Return the object in which a text is found by a path.

    Examples:
        >>> _nested(("delta", "tool_calls", 0, "function", "arguments"), "1}")
        {'delta': {'tool_calls': [{'index': 0, 'function': {'arguments': '1}'}}]}}
        >>> _nested(("delta", "content", 0, "text"), "Hi")
        {'delta': {'content': [{'type': 'text', 'text': 'Hi'}]}}
    """
    name, *rest = path
    if not rest:
        return {str(name): text}
    if not isinstance(rest[0], int):
        return {str(name): _nested(tuple(rest), text)}
    if len(rest) == 1:
        return {str(name): [text]}
    kind = _KINDS.get((str(name), str(rest[1])))
    marked: Json = {"index": rest[0]} if kind is None else {"type": kind}
    return {str(name): [{**marked, **_nested(tuple(rest[1:]), text)}]}


def _silent(choice: Json) -> Json:
    """Return a choice without what it says: only that and how it ends."""
    kept: Json = {name: value for name, value in choice.items() if name not in ("delta", "message", "text")}
    return {**kept, **({"text": ""} if "text" in choice else {"delta": {}})}


def _head(chunk: Json) -> Json:
    return {name: value for name, value in chunk.items() if name not in ("choices", "usage")}


def _index(choice: Json, place: int) -> int:
    index = choice.get("index", place)
    return index if isinstance(index, int) else place


def _shifted(finding: personal.Finding, by: int) -> personal.Finding:
    return finding._replace(start=max(finding.start - by, 0), end=finding.end - by)


def _cut(text: str, given: int, hold: int) -> int:
    """Return how much of a text nothing can begin in that is not complete yet."""
    at, visible = len(text), 0
    while at > given and visible < hold:
        at -= 1
        visible += _counts(text[at])
    for end in range(at, max(given, at - _LONGEST_RUN), -1):
        if _BREAK.match(text[end - 1]):
            return end
    return max(given, at - _LONGEST_RUN)


def _counts(char: str) -> bool:
    """Say whether a character takes part in what is looked for: spaces, and what only looks or sounds, do not."""
    return not char.isspace() and char.isprintable() and not unicodedata.combining(char)
