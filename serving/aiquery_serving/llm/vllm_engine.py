"""vLLM behind the engines' interface: on an event loop of its own, while its model computes in its own process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from aiquery_serving.errors import (
    ConfigurationError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
)
from aiquery_serving.llm.generation import Answer
from aiquery_serving.llm.interface import EngineMetrics, GenerationRequest, GenerationUsage, Piece
from aiquery_serving.llm.schema_trial import SchemaTrial
from aiquery_serving.llm.settings import EngineSettings
from aiquery_serving.llm.vllm_metrics import Meter
from aiquery_serving.llm.vllm_translation import (
    BATCH,
    INTERACTIVE,
    adapter,
    engine_arguments,
    piece,
    sampling_parameters,
    translated,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aiquery_serving.llm.model_files import ModelFiles
    from aiquery_serving.llm.prompting import Prompter

#: Seconds that vLLM's process has to end by itself.
_PATIENCE: Final = 1.0
_WAYS_OUT: Final = "pip install 'vllm>=0.32' where there is a GPU, or declare AIQUERY_ENGINE=torch."


class VllmEngine:
    """A language model that vLLM runs.

    Args:
        files: The model.
        settings: How to run it.
        say: Told what was loaded.

    Raises:
        ConfigurationError: vLLM is not installed, or the model is declared for the CPU.
        ModelError: vLLM cannot load the model.
    """

    name = "vllm"

    def __init__(self, files: ModelFiles, settings: EngineSettings, say: Callable[[str], None]) -> None:
        self._host = _Host(files, settings)
        self.device = _device(settings)
        self.context_length: int = self._host.llm.model_config.max_model_len
        self._adapter = _lora(files, settings)
        self._trial = SchemaTrial()
        say(f"vLLM {_version()} on {self.device}: context of {self.context_length:,} tokens.")

    def prepare(self, schema: str) -> None:
        """Find out that a JSON schema does no harm to vLLM's process. From any thread but an event loop's.

        Raises:
            InvalidRequestError: It does.
        """
        self._trial.check(schema)

    def submit(self, request: GenerationRequest, *, stream: bool = False) -> Answer:
        """Begin to answer; on an event loop, never blocks.

        Raises:
            ContextLengthError: The prompt leaves no room for an answer.
            InvalidRequestError: The prompt is empty, or vLLM takes no such parameters. A schema that cannot be
                followed is found out later: iterating raises it.
            OverloadedError: The engine is closed.
        """
        self._host.check_open()
        _check_length(len(request.token_ids), self.context_length, answered=True)
        parameters = _parameters(request, stream=stream)
        turn = _Turn(request)
        turn.begin(self._host, self._work(request, parameters, turn))
        return turn.answer

    async def _work(self, request: GenerationRequest, parameters: Any, turn: _Turn) -> None:
        """Pass on what vLLM gives, on its own loop; an end of this coroutine aborts the request."""
        outputs = self._host.llm.generate(
            {"prompt_token_ids": list(request.token_ids)},
            parameters,
            self._host.next_id(),
            lora_request=self._adapter,
            priority=BATCH if request.batch else INTERACTIVE,
        )
        async with aclosing(outputs):
            async for output in outputs:
                turn.take(output)

    def metrics(self) -> EngineMetrics:
        """Return what it has done. From any thread."""
        return self._host.meter.metrics()

    def close(self) -> None:
        """Stop within seconds and give memory back; who waits gets an OverloadedError. From any thread."""
        self._host.close()
        self._trial.close()


class VllmEmbedder:
    """An embedding model that vLLM runs, with the pooling that the model's own files ask for.

    Args:
        files: The model.
        settings: How to run it.
        prompter: Makes the tokens of a first text, which tells how many numbers an embedding has.
        say: Told what was loaded.

    Raises:
        ConfigurationError: vLLM is not installed, or the model is declared for the CPU.
        ModelError: vLLM cannot load the model.
    """

    name = "vllm"

    def __init__(
        self, files: ModelFiles, settings: EngineSettings, prompter: Prompter, say: Callable[[str], None]
    ) -> None:
        self._host = _Host(files, settings)
        self.device = _device(settings)
        self.context_length: int = self._host.llm.model_config.max_model_len
        try:
            self.dimensions = len(self._host.spawn(self._embed_one(prompter.text("a"), INTERACTIVE)).result())
        except Exception as error:
            self._host.close()
            raise ModelError(f"vLLM cannot embed with the model in {files.model}: {error}") from error
        say(f"vLLM {_version()} on {self.device}: embeddings of {self.dimensions:,} numbers.")

    async def embed(self, texts: Sequence[Sequence[int]], *, batch: bool = False) -> NDArray[np.float32]:
        """Return one embedding per tokenized text, in order: shape (texts, dimensions), of length 1 each.

        Raises:
            ContextLengthError: A text is longer than the context.
            InvalidRequestError: A text has no tokens.
            OverloadedError: The engine is closed.
        """
        self._host.check_open()
        for text in texts:
            _check_length(len(text), self.context_length, answered=False)
        future = self._host.spawn(self._embed(texts, BATCH if batch else INTERACTIVE))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._host.check_open()
            raise
        except ExceptionGroup as errors:
            raise translated(errors.exceptions[0]) from errors

    async def _embed(self, texts: Sequence[Sequence[int]], priority: int) -> NDArray[np.float32]:
        import numpy as np

        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._embed_one(text, priority)) for text in texts]
        found = np.stack([task.result() for task in asked])
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        unit: NDArray[np.float32] = found / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit

    async def _embed_one(self, text: Sequence[int], priority: int) -> NDArray[np.float32]:
        from vllm.pooling_params import PoolingParams

        outputs = self._host.llm.encode(
            {"prompt_token_ids": list(text)}, PoolingParams(task="embed"), self._host.next_id(), priority=priority
        )
        async with aclosing(outputs):
            async for output in outputs:
                if getattr(output, "error", None) is not None:
                    raise EngineError(f"vLLM failed over a text: {output.error.message}")
                found: NDArray[np.float32] = output.outputs.data.float().cpu().numpy()
        return found

    def metrics(self) -> EngineMetrics:
        """Return what it has done. From any thread."""
        return self._host.meter.metrics()

    def close(self) -> None:
        """Stop within seconds and give memory back. From any thread."""
        self._host.close()


class _Turn:
    """One request while vLLM answers it."""

    def __init__(self, request: GenerationRequest) -> None:
        self._top = request.sampling.top_logprobs
        self._loop = asyncio.get_running_loop()
        self._usage = GenerationUsage(prompt_tokens=len(request.token_ids))
        self._work: Future[None] = Future()
        self.answer = Answer(self._loop, usage=lambda: self._usage, cancel=self._drop)

    def begin(self, host: _Host, work: Coroutine[Any, Any, None]) -> None:
        """Let it be answered."""
        self._work = host.spawn(work)
        self._work.add_done_callback(lambda work: self._end(host, work))

    def take(self, output: Any) -> None:
        """Pass on what vLLM has given."""
        given = output.outputs[0]
        self._usage = GenerationUsage(
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens + len(given.token_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )
        new = piece(given, top=self._top)
        if new.text or new.logprobs or new.finish_reason:
            self._pass(new)

    def _drop(self) -> None:
        self._work.cancel()

    def _end(self, host: _Host, work: Future[None]) -> None:
        host.meter.end()
        error = _closing_error() if work.cancelled() else work.exception()
        if error is not None:
            self._pass(translated(error))

    def _pass(self, news: Piece | Exception) -> None:
        with suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.answer.deliver, news)


class _Host:
    """vLLM's engine with the event loop that it lives on."""

    def __init__(self, files: ModelFiles, settings: EngineSettings) -> None:
        self.meter = Meter()
        self.llm: Any = None
        self._numbers = count()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="aiquery-vllm", daemon=True)
        self._thread.start()
        try:
            self.llm = self.spawn(_loaded(files, settings, self.meter)).result()
        except BaseException:
            self.close()
            raise

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on vLLM's loop. It is cancelled when the engine is closed."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def next_id(self) -> str:
        """Return a request's id that no other has."""
        return f"aiquery-{next(self._numbers)}"

    def check_open(self) -> None:
        """Raise OverloadedError when the engine is closed."""
        if self._closed:
            raise _closing_error()

    def close(self) -> None:
        """End what is under way, and vLLM with it."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            if threading.current_thread() is not self._thread:
                self._thread.join(2 * _PATIENCE)

    def _live(self) -> None:
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=_PATIENCE))
        if self.llm is not None:
            self.llm.shutdown(timeout=_PATIENCE)
        self._loop.close()


async def _loaded(files: ModelFiles, settings: EngineSettings, meter: Meter) -> Any:
    """Return vLLM's engine; on the loop that it is to live on, which it blocks until then."""
    if settings.device == "cpu":
        raise ConfigurationError(f"vLLM computes on a GPU, and the model is declared for the CPU: {_WAYS_OUT}")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # read once, when vLLM is imported
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ConfigurationError(f"vLLM cannot be used ({error}): {_WAYS_OUT}") from error
    try:
        arguments = AsyncEngineArgs(**engine_arguments(files, settings))
        llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[meter.logger])
    except Exception as error:  # whatever vLLM and its drivers raise
        raise ModelError(f"vLLM cannot load the model in {files.model}: {error}") from error
    meter.room = _room(llm.vllm_config.cache_config)
    return llm


def _closing_error() -> OverloadedError:
    """Return what those are told whose requests cannot be answered any more."""
    return OverloadedError("The model is being unloaded. Try again in a moment.")


def _room(cache: Any) -> int:
    """Return the tokens whose keys and values there is memory for."""
    return getattr(cache, "kv_cache_size_tokens", None) or (cache.num_gpu_blocks or 0) * (cache.block_size or 0)


def _parameters(request: GenerationRequest, *, stream: bool) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = request.sampling.schema
    try:
        return SamplingParams(
            **sampling_parameters(request.sampling),
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        )
    except Exception as error:
        raise translated(error) from error


def _lora(files: ModelFiles, settings: EngineSettings) -> Any:
    from vllm.lora.request import LoRARequest

    folder = adapter(files, settings)
    return LoRARequest("adapter", 1, str(folder)) if folder else None


def _check_length(tokens: int, context: int, *, answered: bool) -> None:
    if not tokens:
        raise InvalidRequestError("The prompt is empty: it has not a single token.")
    if tokens + answered > context:
        room = " leaves no room for an answer" if answered else " does not fit"
        raise ContextLengthError(
            f"The prompt of {tokens:,} tokens{room} in the model's context of {context:,}: shorten it."
        )


def _device(settings: EngineSettings) -> str:
    return settings.device if ":" in settings.device else "cuda:0"


def _version() -> str:
    import vllm

    return str(vllm.__version__)
