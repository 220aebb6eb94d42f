"""How likely each token of an answer was, as chat and as completions say it."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiquery_serving.messages import Json

if TYPE_CHECKING:
    from aiquery_serving.llm.interface import TokenLogprob
    from aiquery_serving.llm.prompting import Prompter


def chat_logprobs(tokens: Sequence[TokenLogprob], prompter: Prompter) -> list[Json]:
    """Return the entries of a chat choice's `logprobs.content`."""
    return [
        {
            **_chat_token(token.token_id, token.logprob, prompter),
            "top_logprobs": [_chat_token(token_id, logprob, prompter) for token_id, logprob in token.top],
        }
        for token in tokens
    ]


def _chat_token(token_id: int, logprob: float, prompter: Prompter) -> Json:
    data = prompter.token_bytes(token_id)
    return {"token": prompter.token_text(token_id), "logprob": logprob, "bytes": list(data)}


class CompletionLogprobs:
    """Writes the `logprobs` of a completion, for all of it or piece by piece.

    Args:
        prompter: Knows the texts of tokens.
        offset: Characters of the text before the first token.
    """

    def __init__(self, prompter: Prompter, offset: int = 0) -> None:
        self._prompter = prompter
        self._offset = offset
        self._decoder = getincrementaldecoder("utf-8")("ignore")

    def of(self, tokens: Sequence[TokenLogprob]) -> Json:
        """Return the entry of the next tokens; offsets count characters of the answer's text."""
        text_of = self._prompter.token_text
        return {
            "tokens": [text_of(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{text_of(one): logprob for one, logprob in token.top} for token in tokens],
            "text_offset": [self._next_offset(token.token_id) for token in tokens],
        }

    def _next_offset(self, token_id: int) -> int:
        here = self._offset
        self._offset += len(self._decoder.decode(self._prompter.token_bytes(token_id)))
        return here
