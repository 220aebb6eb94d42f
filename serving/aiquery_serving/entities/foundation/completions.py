"""Completions: from `prompt` to tokens, and from what the model writes to a text completion (contract D.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.foundation.fields import flag, texts, unwrapped, word, wrong
from aiquery_serving.entities.foundation.logprobs import CompletionLogprobs
from aiquery_serving.entities.foundation.requests import Asked, generations_of
from aiquery_serving.entities.foundation.sampling import choices_of, sampling_of
from aiquery_serving.errors import ContextLengthError, InvalidRequestError
from aiquery_serving.messages import COMPLETIONS, Json

if TYPE_CHECKING:
    from aiquery_serving.llm.interface import Piece, Sampling
    from aiquery_serving.llm.prompting import Prompter

#: What is to become of a prompt that leaves less room than the answer may take.
_TRUNCATE, _ERROR = "truncate", "error"
_MOST_ANSWERS = 2048


def ask(body: Mapping[str, Any], prompter: Prompter, *, context: int, batch: bool = False) -> Asked:
    """Return what a completions request comes to; `context` is the most tokens of a prompt and its answer.

    Raises:
        InvalidRequestError: A field is wrong.
        ContextLengthError: A prompt and its answer may be too long, and `error_behavior` is `error`.
    """
    asked = unwrapped(body)
    sampling = sampling_of(asked, COMPLETIONS, vocabulary=len(prompter.tokenizer))
    echo, raw, choices = flag(asked, "echo"), flag(asked, "use_raw_prompt"), choices_of(asked)
    if echo and sampling.logprobs:
        raise InvalidRequestError("Prompts have no log-probabilities here: ask for 'echo' or for 'logprobs'.")
    given, behavior = _prompts(asked), word(asked, "error_behavior", _TRUNCATE, _ERROR)
    if len(given) * choices > _MOST_ANSWERS:
        raise InvalidRequestError(
            f"The request asks for {len(given) * choices:,} answers, 'n' to each prompt: one request may have"
            f" {_MOST_ANSWERS:,}."
        )
    prompts = [_fitted(prompter.text(text, raw=raw), sampling, context, behavior) for text in given]
    writers = [
        TextChoice(place * choices + index, prompter, echo=text if echo else "", logprobs=sampling.logprobs)
        for place, text in enumerate(given)
        for index in range(choices)
    ]
    return Asked(generations_of(prompts, sampling, choices, batch=batch), [*writers], choices)


def _prompts(asked: Json) -> list[str]:
    if prompts := texts(asked, "prompt"):
        return prompts
    raise wrong("prompt", asked.get("prompt"), "a string or a list of strings")


def _fitted(prompt: list[int], sampling: Sampling, context: int, behavior: str | None) -> list[int]:
    """Return a prompt that leaves room for its answer: its end, where it may be truncated."""
    room = max(context - (sampling.max_tokens or 1), 1)
    if len(prompt) <= room or behavior is None:
        return prompt
    if behavior == _TRUNCATE:
        return prompt[-room:]
    raise ContextLengthError(
        f"The prompt of {len(prompt)} tokens and an answer of up to {sampling.max_tokens or 1} are more than the "
        f"model's context of {context}: shorten the prompt, lower 'max_tokens', or set 'error_behavior' to 'truncate'."
    )


class TextChoice:
    """Writes one answer of a text completion (a `requests.Choice`).

    Args:
        index: Its place among all.
        prompter: Knows the texts of tokens.
        echo: What it repeats before the answer.
        logprobs: Whether it tells how likely each token was.
    """

    def __init__(self, index: int, prompter: Prompter, *, echo: str, logprobs: bool) -> None:
        self._index = index
        self._echo = echo
        self._logprobs = CompletionLogprobs(prompter) if logprobs else None

    def whole(self, piece: Piece) -> Json:
        """Return the choice of an answer that is all there."""
        return self._choice(self._echo + piece.text, piece)

    def begin(self) -> list[Json]:
        """Return the prompt, if it is to be repeated."""
        return [{"index": self._index, "text": self._echo, "finish_reason": None}] if self._echo else []

    def feed(self, piece: Piece) -> list[Json]:
        """Return a piece of the text; of the last one, with why it ended."""
        return [self._choice(piece.text, piece)] if piece.text or piece.logprobs or piece.finish_reason else []

    def _choice(self, text: str, piece: Piece) -> Json:
        choice = {"index": self._index, "text": text, "finish_reason": piece.finish_reason}
        return choice if self._logprobs is None else {**choice, "logprobs": self._logprobs.of(piece.logprobs)}
