"""Embeds with PyTorch what many callers ask at once, on one thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from aiquery_serving.errors import ContextLengthError, EngineError, InvalidRequestError, OverloadedError
from aiquery_serving.llm.embedding_batches import RunSizes, Text, TextQueue
from aiquery_serving.llm.ending import await_before_exit, close_before_exit
from aiquery_serving.llm.interface import EmbeddingEngine, EngineMetrics
from aiquery_serving.llm.model_files import ModelFiles
from aiquery_serving.llm.processors import computed
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: On a CPU larger runs are no faster, and keep others waiting for longer; a GPU needs them.
CPU_SIZES, GPU_SIZES = RunSizes(most_tokens=2048, run_cost=64), RunSizes(most_tokens=32_768, run_cost=2048)
#: Seconds that `close` waits for a run of the model to end.
_PATIENCE = 1.0


def load_torch_embedder(
    files: ModelFiles, settings: EngineSettings, prompter: Prompter, say: Callable[[str], None]
) -> EmbeddingEngine:
    """Load an embedding model of transformers, an encoder or a decoder.

    Raises:
        ConfigurationError: PyTorch is not installed, or the settings do not fit the model or the machine.
        ModelError: The files hold no model that can be loaded without running code of theirs.
    """
    from aiquery_serving.llm.encoder import load_encoder

    encoder = load_encoder(files, settings, prompter.tokenizer, say)
    usual = CPU_SIZES if encoder.device == "cpu" else GPU_SIZES
    return TorchEmbedder(encoder, RunSizes(settings.max_batch_tokens or usual.most_tokens, usual.run_cost))


class Encodes(Protocol):
    """A loaded model that embeds texts, on the thread that asks."""

    device: str
    context_length: int
    dimensions: int
    vocabulary: int

    def __call__(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return one embedding per tokenized text: shape (texts, dimensions)."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """Texts that a caller waits for; `rows` are filled as they are embedded, in whatever order."""

    texts: Sequence[Sequence[int]]
    rows: NDArray[np.float32]
    answer: Future[None] = field(default_factory=Future)


class TorchEmbedder:
    """An embedding model that many callers ask at once.

    While one run of the model computes, what is asked for is collected; then texts of like length run
    together, whoever asked for them. If a run fails, those fail who have a text in it.

    Args:
        encoder: The model. Called on one thread; closed with the embedder.
        sizes: How large a run may be.
        seconds: Returns the time, for durations.
    """

    name = "torch"

    def __init__(self, encoder: Encodes, sizes: RunSizes, *, seconds: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.context_length, self.dimensions = encoder.device, encoder.context_length, encoder.dimensions
        self._encoder, self._seconds = encoder, seconds
        self._queue: TextQueue[_Call] = TextQueue(sizes)
        self._calls: dict[_Call, int] = {}  # texts that are not embedded yet
        self._changed = threading.Condition()
        self._metrics = EngineMetrics()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="aiquery-embedder", daemon=True)
        self._thread.start()
        close_before_exit(self)
        await_before_exit(self._thread)

    async def embed(self, texts: Sequence[Sequence[int]], *, batch: bool = False) -> NDArray[np.float32]:
        """Return one embedding per tokenized text, in order: shape (texts, dimensions), of length 1 each.

        When the caller is cancelled, what has not begun of theirs is dropped.

        Args:
            texts: Tokens of each text, special ones included.
            batch: Let those go first who wait for single answers.

        Raises:
            ContextLengthError: A text is longer than the context.
            InvalidRequestError: A text has no tokens, or one that the model does not know.
            EngineError: The model failed over one of the texts, or over one beside it.
            OverloadedError: The engine is closed.
        """
        self._check(texts)
        call = _Call(texts, np.empty((len(texts), self.dimensions), np.float32))
        if texts:
            self._add(call, batch=batch)
            await asyncio.wrap_future(call.answer)
        return call.rows

    def metrics(self) -> EngineMetrics:
        """Return what it has done, counting texts for generations. From any thread."""
        with self._changed:
            return replace(self._metrics, waiting=self._queue.waiting)

    def close(self) -> None:
        """End after the run under way; who waits gets an OverloadedError at once. From any thread."""
        with self._changed:
            self._is_closed = True
            left = [*self._calls]
            self._changed.notify_all()
        for call in left:
            _fail(call, OverloadedError("The embedding model is being unloaded: ask again."))
        self._thread.join(_PATIENCE)

    def _check(self, texts: Sequence[Sequence[int]]) -> None:
        for number, text in enumerate(texts, 1):
            if not text:
                raise InvalidRequestError(f"Text {number} of {len(texts)} is empty: it has no tokens to embed.")
            if len(text) > self.context_length:
                raise ContextLengthError(
                    f"Text {number} of {len(texts)} has {len(text)} tokens, and the model takes at most"
                    f" {self.context_length}: shorten it, or embed its parts."
                )
            if not 0 <= min(text) <= max(text) < self._encoder.vocabulary:
                raise InvalidRequestError(
                    f"Text {number} of {len(texts)} has tokens from {min(text)} to {max(text)}, and the model knows"
                    f" 0 to {self._encoder.vocabulary - 1}."
                )

    def _add(self, call: _Call, *, batch: bool) -> None:
        with self._changed:
            if self._is_closed:
                raise OverloadedError("The embedding model has been unloaded: ask again.")
            self._calls[call] = len(call.texts)
            self._queue.add(call, [len(text) for text in call.texts], batch=batch)
            self._changed.notify_all()
        call.answer.add_done_callback(lambda _: self._forget(call))

    def _forget(self, call: _Call) -> None:
        """Drop a call that has its answer, or whose caller has left."""
        with self._changed:
            self._calls.pop(call, None)
            self._queue.drop(call)

    def _work(self) -> None:
        """Run the model over what waits until the embedder is closed; on its thread."""
        while run := self._next_run():
            began = self._seconds()
            outcome = self._outcome(run)
            self._count(run, self._seconds() - began)
            self._settle(run, outcome)
        self._encoder.close()

    def _next_run(self) -> list[Text[_Call]]:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._queue.waiting)
            run = [] if self._is_closed else self._queue.next_run()
            self._metrics = replace(self._metrics, running=len(run))
            return run

    def _outcome(self, run: Sequence[Text[_Call]]) -> NDArray[np.float32] | Exception:
        try:
            rows = computed(self.device, partial(self._encoder, [text.caller.texts[text.row] for text in run]))
        except Exception as error:  # noqa: BLE001 - those who asked are told
            return error
        return rows if np.isfinite(rows).all() else ArithmeticError("it gives numbers that are none; is it float16?")

    def _count(self, run: Sequence[Text[_Call]], seconds: float) -> None:
        with self._changed:
            so_far = self._metrics
            self._metrics = replace(
                so_far,
                running=0,
                finished=so_far.finished + len(run),
                prompt_tokens=so_far.prompt_tokens + sum(text.length for text in run),
                steps=so_far.steps + 1,
                busy_seconds=so_far.busy_seconds + seconds,
            )

    def _settle(self, run: Sequence[Text[_Call]], outcome: NDArray[np.float32] | Exception) -> None:
        if isinstance(outcome, Exception):
            for call in {text.caller for text in run}:
                _fail(call, EngineError(f"The embedding model failed: {outcome}"), outcome)
            return
        for text, row in zip(run, outcome, strict=True):
            text.caller.rows[text.row] = row
        for call, embedded in Counter(text.caller for text in run).items():
            if self._is_done(call, embedded):
                with suppress(InvalidStateError):  # its caller has left
                    call.answer.set_result(None)

    def _is_done(self, call: _Call, embedded: int) -> bool:
        """Count what was embedded of a call, and say whether that was all of it."""
        with self._changed:
            left = self._calls.get(call, 0) - embedded
            if call in self._calls:
                self._calls[call] = left
            return left == 0


def _fail(call: _Call, error: Exception, cause: Exception | None = None) -> None:
    error.__cause__ = cause
    with suppress(InvalidStateError):  # its caller has left
        call.answer.set_exception(error)
