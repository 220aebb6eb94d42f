"""What travels between rows, gateway and models: responses, usage, limit hints, entity protocols."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import pyarrow as pa

#: A JSON object, as `orjson.loads` gives it.
Json: TypeAlias = dict[str, Any]

CHAT = "llm/v1/chat"
COMPLETIONS = "llm/v1/completions"
EMBEDDINGS = "llm/v1/embeddings"
TASKS = (CHAT, COMPLETIONS, EMBEDDINGS)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out of one invocation, as the provider counted them (0 when it did not)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens in and out together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a provider's headers say is left of one limit.

    `limit` and `remaining` count calls or tokens; `reset_after` is the seconds until the allowance is
    whole again. Each may be unknown.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitHint:
    """What an answer's headers teach about the provider's limits."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer: the REST API's JSON body, what it used, and what its headers teach.

    `served_entity` and `attempts` (how often entities were asked) are the gateway's to say.
    """

    body: Json
    usage: Usage = Usage()
    hint: LimitHint | None = None
    served_entity: str = ""
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One answer as it comes, from an entity that has begun to give it.

    `chunks` yields `chat.completion.chunk` or `text_completion` objects (contract D.5). What the answer used
    is in the `usage` of its last chunk, whose `choices` may be empty. Closing the generator hangs up; so does
    closing the `sources` it is made of, which matters where nobody has asked it for a chunk: Python does not run
    the end of a generator that has not begun.
    """

    chunks: AsyncGenerator[Json, None]
    hint: LimitHint | None = None
    sources: tuple[AsyncGenerator[Json, None], ...] = ()


@runtime_checkable
class StreamingEntity(Protocol):
    """A served entity that takes one request at a time and can answer it piece by piece."""

    async def stream(self, body: Mapping[str, Any]) -> Stream:
        """Begin to answer one REST request body; returns when the answer has begun.

        Called on the event loop, never retries: as `RequestEntity.send`. Errors from before the first
        chunk are raised here; `chunks` raises those that come later.

        Raises:
            ProviderError: One of its kinds.
        """
        ...


@runtime_checkable
class StreamingModel(Protocol):
    """A model in this process, or in one of its workers, that can answer piece by piece."""

    def stream(self, payload: Mapping[str, Any]) -> Iterator[Json]:
        """Yield the pieces of one answer. Iterated on a thread; closed from it when nobody listens any more.

        Raises:
            InvalidRequestError: The input does not fit, or the model cannot stream.
            ModelError: The model raised.
        """
        ...


@runtime_checkable
class RequestEntity(Protocol):
    """A served entity that takes one request at a time, hundreds in flight (design 2.4)."""

    #: `llm/v1/chat`, `llm/v1/completions` or `llm/v1/embeddings`.
    task: str

    async def send(self, body: Mapping[str, Any]) -> Response:
        """Answer one REST request body (contract D.2-D.4), in the REST API's response shape.

        Called on the event loop. Never retries and never waits for limits: that is the gateway's.

        Raises:
            ProviderError: One of its kinds; `hint` headers of a 429 are in its `retry_after`.
        """
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


@runtime_checkable
class QueueingEntity(Protocol):
    """A served entity with a queue of its own: it wants to know who can wait.

    Its `send(body, *, batch=False)` and `stream(body, *, batch=False)` are those of `RequestEntity` and
    `StreamingEntity`; `batch` says that the request may wait for others.
    """

    #: Always True.
    queues: bool


@runtime_checkable
class ReportingEntity(Protocol):
    """A served entity with an engine of its own, which says what that does and has done."""

    def report(self) -> Json:
        """Return the engine's name, its device, whether it is loaded, and its metrics. From any thread."""
        ...


@runtime_checkable
class BatchEntity(Protocol):
    """A served entity that takes a whole Arrow batch at once, no Python object per row."""

    #: The inputs the model's signature names, in order; None when it has no signature.
    input_schema: pa.Schema | None
    #: The type of one answer: a scalar for one output column, a struct for several; None when the
    #: signature does not say.
    output_type: pa.DataType | None

    def predict(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None = None) -> pa.Array:
        """Return one answer per row.

        Called from any thread, several at once.

        Raises:
            InvalidRequestError: The rows do not fit the model's signature.
            ModelError: The model raised, or gave another number of answers than rows.
        """
        ...

    def query(self, payload: Mapping[str, Any]) -> Json:
        """Answer one REST request body of contract D.1, in the REST API's response shape.

        Raises:
            MalformedRequestError: The body has not exactly one of the four input forms.
            InvalidRequestError: The input does not fit the model's signature.
            ModelError: The model raised.
        """
        ...


@runtime_checkable
class MicrobatchedModel(Protocol):
    """A model of ours that puts requests together which come at once."""

    async def aquery(self, payload: Mapping[str, Any]) -> Json:
        """As `BatchEntity.query`, on the event loop."""
        ...


@runtime_checkable
class Retirable(Protocol):
    """A served entity that holds something to be given back: a process, a device, connections."""

    def retire(self, *, at_once: bool = False) -> None:
        """Give everything back when what is under way has ended, or now. Nothing new is asked. From any thread."""
        ...


Entity: TypeAlias = RequestEntity | BatchEntity
