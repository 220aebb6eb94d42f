"""How tokens are to be chosen: the fields of a chat or completions request (contract D.2, D.3)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from aiquery_serving.entities.foundation.fields import flag, number, texts, whole, wrong
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.llm.interface import Sampling
from aiquery_serving.messages import CHAT, Json

#: The most choices that one prompt may have.
MOST_CHOICES: Final = 128
_MOST_STOPS: Final = 32
_MOST_LOGPROBS: Final = 20
_SEEDS: Final = 2**63
#: What others have and we have not, and the value that asks for nothing.
_ABSENT: Final = {
    "suffix": "",
    "functions": [],
    "function_call": "none",
    "best_of": 1,
    "min_p": 0,
    "repetition_penalty": 1,
}


def sampling_of(asked: Json, task: str, *, vocabulary: int, schema: str | None = None) -> Sampling:
    """Return how a request wants its tokens chosen.

    Args:
        asked: The request's fields.
        task: `llm/v1/chat` or `llm/v1/completions`: they ask for log-probabilities in different ways.
        vocabulary: How many tokens the model knows.
        schema: What the answer must fulfil, as JSON text.

    Raises:
        InvalidRequestError: A field is wrong or asks for what no engine of ours can do; names it.
    """
    _refuse_absent(asked)
    bound = "max_tokens" if "max_tokens" in asked else "max_completion_tokens"
    logprobs, top = _chat_logprobs(asked) if task == CHAT else _completion_logprobs(asked)
    return Sampling(
        max_tokens=whole(asked, bound, 1),
        temperature=number(asked, "temperature", 0, 2, 1.0),
        top_p=number(asked, "top_p", 0, 1, 1.0, above=True),
        top_k=max(whole(asked, "top_k", -1) or 0, 0),
        seed=whole(asked, "seed", -_SEEDS, _SEEDS - 1),
        stop=_stops(asked),
        logprobs=logprobs,
        top_logprobs=top,
        frequency_penalty=number(asked, "frequency_penalty", -2, 2, 0.0),
        presence_penalty=number(asked, "presence_penalty", -2, 2, 0.0),
        logit_bias=_bias(asked, vocabulary),
        schema=schema,
        ignore_eos=flag(asked, "ignore_eos"),
    )


def choices_of(asked: Json) -> int:
    """Return how many answers a request wants to each prompt.

    Raises:
        InvalidRequestError: `n` is no such number.
    """
    return whole(asked, "n", 1, MOST_CHOICES) or 1


def of_choice(sampling: Sampling, place: int) -> Sampling:
    """Return how one of several choices is made: as it would be alone, with the next seed.

    Examples:
        >>> of_choice(Sampling(seed=7), 2).seed
        9
    """
    if sampling.seed is None or not place:
        return sampling
    return replace(sampling, seed=(sampling.seed + place) % _SEEDS)


def _stops(asked: Json) -> tuple[str, ...]:
    stops = texts(asked, "stop")
    if len(stops) > _MOST_STOPS or not all(stops):
        raise wrong("stop", asked["stop"], f"up to {_MOST_STOPS} texts, none of them empty")
    return tuple(stops)


def _chat_logprobs(asked: Json) -> tuple[bool, int]:
    wanted, top = flag(asked, "logprobs"), whole(asked, "top_logprobs", 0, _MOST_LOGPROBS) or 0
    if top and not wanted:
        raise InvalidRequestError("The request's 'top_logprobs' needs 'logprobs': true.")
    return wanted, top


def _completion_logprobs(asked: Json) -> tuple[bool, int]:
    top = whole(asked, "logprobs", 0, _MOST_LOGPROBS)
    return top is not None, top or 0


def _bias(asked: Json, vocabulary: int) -> dict[int, float]:
    given = asked.get("logit_bias", {})
    if not isinstance(given, dict):
        raise wrong("logit_bias", given, "an object from token numbers to numbers")
    bias = {_token(name, vocabulary): _shift(value) for name, value in given.items()}
    return {token: value for token, value in bias.items() if value}


def _shift(value: Any) -> float:
    try:
        return number({"logit_bias": value}, "logit_bias", -100, 100, 0.0)
    except InvalidRequestError:
        raise wrong("logit_bias", value, "an object whose every value is a number from -100 to 100") from None


def _token(name: Any, vocabulary: int) -> int:
    token = int(name) if re.fullmatch(r"\d{1,9}", str(name), re.ASCII) else -1
    if 0 <= token < vocabulary:
        return token
    raise wrong("logit_bias", name, f"an object whose keys are token numbers from 0 to {vocabulary - 1}")


def _refuse_absent(asked: Json) -> None:
    for name, nothing in _ABSENT.items():
        if asked.get(name, nothing) != nothing:
            raise InvalidRequestError(f"Models served here have no '{name}': leave it out of the request.")
