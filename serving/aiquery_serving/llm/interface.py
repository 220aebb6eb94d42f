"""What an engine is asked and what it gives, whichever engine it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Why an answer ended: the model or a stop string ended it, or it had as many tokens as it may.
STOP, LENGTH = "stop", "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when they end (contract D.2).

    Attributes:
        max_tokens: The most tokens to give; None for as many as the context has room for.
        temperature: 0 takes the likeliest token, whatever else is in the batch.
        top_p: Only the likeliest tokens that are together this likely.
        top_k: Only so many of the likeliest tokens; 0 for all.
        seed: Makes the choice the same every time, whatever else is in the batch.
        stop: Texts that end the answer and are no part of it; they may span tokens.
        logprobs: Say how likely each token was, before temperature and the like.
        top_logprobs: Say so of this many of the likeliest tokens, too (0 to 20).
        frequency_penalty: Taken off a token's logit for every time that it was given.
        presence_penalty: Taken off a token's logit once it was given.
        logit_bias: Added to the logits of tokens.
        schema: A JSON schema, as JSON text, that the answer is guaranteed to fulfil unless it ends for length.
        ignore_eos: Go on behind the model's own end, up to `max_tokens`; for measurements.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    schema: str | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to go on from it. Of those that wait, one that is no `batch` work goes first."""

    token_ids: Sequence[int]
    sampling: Sampling = Sampling()
    batch: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was given, its log-probability, and the likeliest tokens at its place, the likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: whole characters, and the tokens they came from if log-probabilities were asked for.

    `finish_reason` (`STOP` or `LENGTH`) is in the last piece only.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationUsage:
    """Tokens of one generation; `cached_tokens` of the prompt's were taken over from another one's prefix."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Generation(Protocol):
    """One answer on its way. Iterated once, on the event loop on which it was asked for.

    Iterating raises EngineError when the engine fails over it; `usage` is whole when it has ended.
    """

    @property
    def usage(self) -> GenerationUsage:
        """Tokens so far."""
        ...

    def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield its pieces; a single one if it was not asked for as a stream."""
        ...

    def cancel(self) -> None:
        """Give its place to others at once. Nothing more comes. From any thread; once more does nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """What an engine has done since it was loaded, and what it is doing.

    Attributes:
        running: Generations that are in the batch.
        waiting: Generations that wait for room in it.
        finished: Generations that have ended, however.
        preempted: How often one had to make room and begin anew.
        prompt_tokens: Tokens of prompts, of those that have begun.
        cached_tokens: Of these, tokens that were taken over from another's prefix.
        completion_tokens: Tokens given.
        steps: Runs of the model.
        busy_seconds: Seconds spent in them.
        kv_tokens: Room for tokens in the key-value memory.
        kv_tokens_used: Of it, what running generations hold.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    kv_tokens: int = 0
    kv_tokens_used: int = 0

    @property
    def prefix_hit_rate(self) -> float:
        """The share of prompts' tokens that were taken over rather than computed."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Engine(Protocol):
    """A loaded language model that answers many at once.

    Attributes:
        name: `torch` or `vllm`.
        device: Where it computes, such as `cpu` or `cuda:0`.
        context_length: The most tokens of a prompt and its answer together.
    """

    name: str
    device: str
    context_length: int

    def prepare(self, schema: str) -> None:
        """Do beforehand what takes long to follow a JSON schema, up to seconds. From any thread but an event loop's.

        Raises:
            InvalidRequestError: The schema cannot be followed.
        """
        ...

    def submit(self, request: GenerationRequest, *, stream: bool = False) -> Generation:
        """Begin to answer; on an event loop, never blocks.

        Raises:
            ContextLengthError: The prompt leaves no room for an answer.
            InvalidRequestError: The prompt is empty, or its schema cannot be followed.
            OverloadedError: The engine is closed.
        """
        ...

    def metrics(self) -> EngineMetrics:
        """Return what it has done. From any thread."""
        ...

    def close(self) -> None:
        """Stop within a second and give memory back; who waits gets an OverloadedError. From any thread."""
        ...


class EmbeddingEngine(Protocol):
    """A loaded embedding model.

    Attributes:
        name: `torch` or `vllm`.
        device: Where it computes.
        context_length: The most tokens of one text.
        dimensions: Numbers of one embedding.
    """

    name: str
    device: str
    context_length: int
    dimensions: int

    async def embed(self, texts: Sequence[Sequence[int]], *, batch: bool = False) -> NDArray[np.float32]:
        """Return one embedding per tokenized text, in order: shape (texts, dimensions), of length 1 each.

        What several callers ask at once is computed together, texts of like length beside each other. When the
        caller is cancelled, what has not begun of theirs is dropped.

        Raises:
            ContextLengthError: A text is longer than the context.
            OverloadedError: The engine is closed.
        """
        ...

    def metrics(self) -> EngineMetrics:
        """Return what it has done. From any thread."""
        ...

    def close(self) -> None:
        """Stop within a second and give memory back. From any thread."""
        ...
