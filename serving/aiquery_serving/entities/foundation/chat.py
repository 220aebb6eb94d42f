"""Conversations: from `messages` to a prompt, and from what the model writes to a chat completion (contract D.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from aiquery_serving.entities.foundation.answers import finish, message, thought, tool_call
from aiquery_serving.entities.foundation.constraints import format_schema, tools_of
from aiquery_serving.entities.foundation.fields import flag, unwrapped, word, wrong
from aiquery_serving.entities.foundation.logprobs import chat_logprobs
from aiquery_serving.entities.foundation.reading import Manner, Reader
from aiquery_serving.entities.foundation.requests import Asked, generations_of
from aiquery_serving.entities.foundation.sampling import choices_of, sampling_of
from aiquery_serving.messages import CHAT, Json

if TYPE_CHECKING:
    from aiquery_serving.entities.foundation.reading import Spoken
    from aiquery_serving.llm.interface import Piece
    from aiquery_serving.llm.prompting import Prompter

_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
#: Tokens at the end of a prompt that tell whether a thought has begun there.
_LAST_FEW: Final = 16


def ask(body: Mapping[str, Any], prompter: Prompter, *, batch: bool = False) -> Asked:
    """Return what a chat request comes to.

    Raises:
        InvalidRequestError: A field is wrong, or the chat template refuses the conversation.
    """
    asked = unwrapped(body)
    tools, form = tools_of(asked), format_schema(asked)
    schema = tools.schema or form
    sampling = sampling_of(asked, CHAT, vocabulary=len(prompter.tokenizer), schema=schema)
    choices = choices_of(asked)
    prompt = prompter.chat(asked.get("messages", []), tools=tools.offered, extra=_template_words(asked))
    manner = Manner(
        # An answer that is held to a form is no call, whatever it looks like.
        functions=tools.names if tools.schema or not form else frozenset(),
        thinking=prompter.decode(prompt[-_LAST_FEW:]).rstrip().endswith("<think>"),
        literal=schema is not None,
        one_call=not flag(asked, "parallel_tool_calls", default=True),
    )
    return Asked(
        generations_of([prompt], sampling, choices, batch=batch),
        [ChatChoice(index, prompter, manner, logprobs=sampling.logprobs) for index in range(choices)],
        choices,
    )


def _template_words(asked: Json) -> Json:
    """Return what a chat template is told of how much to think, in the words that templates have for it."""
    words: Json = {}
    effort = word(asked, "reasoning_effort", *_EFFORTS)
    if effort is not None:
        words = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    match asked.get("thinking"):
        case None:
            return words
        case bool(wanted):
            pass
        case {"type": kind}:
            wanted = kind != "disabled"
        case value:
            raise wrong("thinking", value, 'true, false or {"type": "enabled" or "disabled"}')
    return {**words, "enable_thinking": wanted, "thinking": wanted}


class ChatChoice:
    """Writes one answer of a chat completion (a `requests.Choice`)."""

    def __init__(self, index: int, prompter: Prompter, manner: Manner, *, logprobs: bool) -> None:
        self._index = index
        self._prompter = prompter
        self._reader = Reader(manner)
        self._wants_logprobs = logprobs
        self._logprobs: list[Json] = []
        self._calls = 0

    def whole(self, piece: Piece) -> Json:
        """Return the choice of an answer that is all there."""
        self._note(piece)
        spoken = self._reader.read(piece.text)
        reason = finish(piece.finish_reason, called=bool(spoken.calls))
        return {"index": self._index, "message": message(spoken), "finish_reason": reason, **self._taken_logprobs()}

    def begin(self) -> list[Json]:
        """Return who speaks."""
        return [self._delta({"role": "assistant", "content": ""})]

    def feed(self, piece: Piece) -> list[Json]:
        """Return the choices of the chunks that a piece completes; of the last piece, with why it ended."""
        self._note(piece)
        spoken = self._reader.feed(piece.text)
        if piece.finish_reason is None:
            return self._deltas(spoken)
        deltas = self._deltas(spoken + self._reader.finish())
        return [*deltas, self._delta({}, finish(piece.finish_reason, called=self._calls > 0))]

    def _note(self, piece: Piece) -> None:
        self._logprobs += chat_logprobs(piece.logprobs, self._prompter)

    def _deltas(self, spoken: Spoken) -> list[Json]:
        deltas: list[Json] = []
        if spoken.thought:
            deltas.append({"content": [thought(spoken.thought)]})
        if spoken.text:
            deltas.append({"content": spoken.text})
        for call in spoken.calls:
            deltas.append({"tool_calls": [{"index": self._calls, **tool_call(call)}]})
            self._calls += 1
        return [self._delta(delta) for delta in deltas]

    def _delta(self, delta: Json, reason: str | None = None) -> Json:
        logprobs = self._taken_logprobs() if self._logprobs else {}
        return {"index": self._index, "delta": delta, "finish_reason": reason, **logprobs}

    def _taken_logprobs(self) -> Json:
        """Return the log-probabilities since the last chunk that had some."""
        taken, self._logprobs = self._logprobs, []
        return {"logprobs": {"content": taken, "refusal": None}} if self._wants_logprobs else {}
