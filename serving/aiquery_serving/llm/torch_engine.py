"""Answers many prompts at once with PyTorch: one thread runs the model, over whatever can be computed together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

import torch

from aiquery_serving.errors import (
    AiQueryError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
)
from aiquery_serving.llm import batch
from aiquery_serving.llm.ending import await_before_exit, close_before_exit
from aiquery_serving.llm.generation import Answer, Post
from aiquery_serving.llm.grammar import Grammars
from aiquery_serving.llm.interface import (
    LENGTH,
    STOP,
    EngineMetrics,
    GenerationRequest,
    GenerationUsage,
    Piece,
    TokenLogprob,
)
from aiquery_serving.llm.model_files import ModelFiles
from aiquery_serving.llm.processors import computed
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.sampler import NO_TOKEN, Chooser, Sampler
from aiquery_serving.llm.scheduler import Row, Scheduler, Sequence, Step
from aiquery_serving.llm.settings import EngineSettings
from aiquery_serving.llm.text_stream import TextStream
from aiquery_serving.llm.weights import LoadedModel, kv_slots, load

#: Most sequences and tokens of one run, on a CPU and on a GPU.
_CPU_SEQUENCES, _CPU_TOKENS = 64, 512
_GPU_SEQUENCES, _GPU_TOKENS = 256, 8192
#: With less, there is hardly a prompt that could be answered.
_FEWEST_SLOTS = 64
#: Seconds that the engine's thread has to end.
_PATIENCE = 1.0
_CLOSED = "The model is being unloaded. Try again in a moment."
_NOT_FINITE = (
    "The model computes no finite numbers for what comes next: its weights are broken, or its numbers of 16 bits"
    " overflow (AIQUERY_DTYPE sets others)."
)


@dataclass(eq=False, slots=True, kw_only=True)
class _Turn:
    """One request while it is answered."""

    sequence: Sequence
    chooser: Chooser
    text: TextStream
    answer: Answer
    stream: bool
    ends: frozenset[int]
    written: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def take(self, token: int, logprob: TokenLogprob | None) -> str | None:
        """Take a token that was chosen; returns why it was the last, if it was."""
        self.chooser.check()
        if token in self.ends:
            return STOP
        self.chooser.accept(token)
        shown, stopped = self.text.feed(token)
        self.written.append(shown)
        if logprob is not None:
            self.logprobs.append(logprob)
        if stopped or self.chooser.complete:
            return STOP
        return LENGTH if len(self.sequence.token_ids) >= self.sequence.limit else None

    def piece(self, reason: str | None) -> Piece | None:
        """Return what can be shown now: whole if it has ended, nothing yet if it is not asked for as a stream."""
        if reason:
            self.written.append(self.text.finish())
        elif not self.stream or not any(self.written):
            return None
        said = Piece("".join(self.written), tuple(self.logprobs), reason)
        self.written, self.logprobs = [], []
        return said


class TorchEngine:
    """A language model that runs in this process.

    Args:
        loaded: The model.
        prompter: Its tokenizer.
        slots: Tokens that there is room for in its key-value memory.
        max_sequences: The most generations in the batch.
        max_batch_tokens: The most tokens of one run of the model.
        share_prefixes: Whether prompts take over what others with the same beginning have computed.
    """

    name = "torch"

    def __init__(
        self,
        loaded: LoadedModel,
        prompter: Prompter,
        *,
        slots: int,
        max_sequences: int = _CPU_SEQUENCES,
        max_batch_tokens: int = _CPU_TOKENS,
        share_prefixes: bool = True,
    ) -> None:
        self._loaded, self._vocabulary, self._decode = loaded, loaded.vocabulary, prompter.decode
        self.device = str(loaded.model.device)
        self._scheduler = Scheduler(
            slots=slots, max_sequences=max_sequences, max_batch_tokens=max_batch_tokens, share_prefixes=share_prefixes
        )
        self.context_length = min(loaded.context_length, self._scheduler.slots)
        self._memory = loaded.memory(self._scheduler.slots)
        end = prompter.tokenizer.eos_token_id
        self._ends = loaded.ends | ({end} if isinstance(end, int) else set())
        self._grammars = Grammars(prompter.tokenizer, loaded.vocabulary, self._ends)
        self._sampler = Sampler(self.device, self._grammars)
        self._turns: dict[Sequence, _Turn] = {}
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._post = Post()
        self._closing = threading.Lock()
        self._closed = False
        self._finished = self._completion_tokens = self._steps = 0
        self._busy_seconds = 0.0
        self._grammars.prepare()
        self._thread = threading.Thread(target=self._serve, name="aiquery-llm", daemon=True)
        self._thread.start()
        close_before_exit(self)
        await_before_exit(self._thread)

    @classmethod
    def load(
        cls, files: ModelFiles, settings: EngineSettings, prompter: Prompter, say: Callable[[str], None]
    ) -> TorchEngine:
        """Load a model and begin to serve it.

        Raises:
            ConfigurationError: It is to run where it cannot.
            ModelError: The engine cannot run it, or has no memory for it.
        """
        try:
            loaded = load(files, settings, say)
            slots, sequences, tokens = _limits(loaded, settings)
            if slots < _FEWEST_SLOTS:
                raise ModelError(
                    f"The model in {files.model} leaves no memory for the keys and values of even {_FEWEST_SLOTS}"
                    " tokens: raise AIQUERY_KV_MEMORY_FRACTION, or serve a smaller model."
                )
            engine = cls(loaded, prompter, slots=slots, max_sequences=sequences, max_batch_tokens=tokens)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"The model in {files.model} is too large for the GPU's memory: {error}") from error
        say(
            f"PyTorch {torch.__version__} on {engine.device} in {str(loaded.model.dtype).removeprefix('torch.')}: "
            f"context of {engine.context_length:,} tokens, memory for {slots:,}."
        )
        return engine

    def prepare(self, schema: str) -> None:
        """Compile a JSON schema, for `submit` not to wait for it. From any thread but an event loop's.

        Raises:
            InvalidRequestError: It cannot be followed.
        """
        self._grammars.matcher(schema)

    def submit(self, request: GenerationRequest, *, stream: bool = False) -> Answer:
        """Begin to answer; on an event loop, never blocks.

        Raises:
            ContextLengthError: The prompt leaves no room for an answer.
            InvalidRequestError: The prompt is empty, its schema cannot be followed, or it names unknown tokens.
            OverloadedError: The engine is closed.
        """
        turn = self._turn(request, stream=stream)
        with self._closing:
            if self._closed:
                raise OverloadedError(_CLOSED)
            self._inbox.put(partial(self._begin, turn))
        return turn.answer

    def metrics(self) -> EngineMetrics:
        """Return what it has done. From any thread."""
        scheduler = self._scheduler
        return EngineMetrics(
            running=scheduler.running,
            waiting=scheduler.waiting + self._inbox.qsize(),
            finished=self._finished,
            preempted=scheduler.preempted,
            prompt_tokens=scheduler.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            completion_tokens=self._completion_tokens,
            steps=self._steps,
            busy_seconds=self._busy_seconds,
            kv_tokens=scheduler.slots,
            kv_tokens_used=scheduler.slots_used,
        )

    def close(self) -> None:
        """Stop within a second and give memory back; who waits gets an OverloadedError. From any thread."""
        with self._closing:
            self._closed = True
        self._inbox.put(lambda: None)
        self._thread.join(_PATIENCE)
        self._grammars.close()

    def _turn(self, request: GenerationRequest, *, stream: bool) -> _Turn:
        """Check a request and make it ready."""
        sampling, prompt = request.sampling, list(request.token_ids)
        self._check(request)
        matcher = self._grammars.matcher(sampling.schema) if sampling.schema is not None else None
        limit = self.context_length
        if sampling.max_tokens is not None:
            limit = min(limit, len(prompt) + sampling.max_tokens)
        sequence = Sequence(prompt, limit, batch=request.batch)
        return _Turn(
            sequence=sequence,
            chooser=Chooser(sampling, self.device, matcher),
            text=TextStream(self._decode, sampling.stop),
            answer=Answer(
                asyncio.get_running_loop(),
                usage=partial(_usage, sequence),
                cancel=lambda: self._inbox.put(partial(self._drop, sequence)),
            ),
            stream=stream,
            ends=frozenset() if sampling.ignore_eos else self._ends,
        )

    def _check(self, request: GenerationRequest) -> None:
        length, vocabulary = len(request.token_ids), self._vocabulary
        if not length:
            raise InvalidRequestError("The prompt is empty: it has not a single token.")
        if length >= self.context_length:
            raise ContextLengthError(
                f"The prompt of {length:,} tokens leaves no room for an answer in the model's context of"
                f" {self.context_length:,}: shorten it."
            )
        unknown = [token for token in request.sampling.logit_bias if not 0 <= token < vocabulary]
        if unknown:
            raise InvalidRequestError(
                f"logit_bias names token {unknown[0]}; the model has tokens 0 to {vocabulary - 1}."
            )

    # What follows runs on the engine's thread.

    def _serve(self) -> None:
        try:
            while self._take_in():
                self._step()
        finally:
            self._stop()

    def _stop(self) -> None:
        """Let nobody wait for what will not come, and give memory back."""
        with self._closing:
            self._closed = True
        self._take_in()
        for turn in list(self._turns.values()):
            self._end(turn, OverloadedError(_CLOSED))
        self._post.send()
        del self._memory, self._loaded, self._sampler
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def _take_in(self) -> bool:
        """Do what came in, and wait for it when there is nothing else to do. False when the engine is closed."""
        while not self._inbox.empty() or not (self._turns or self._closed):
            self._inbox.get()()
        return not self._closed

    def _begin(self, turn: _Turn) -> None:
        self._turns[turn.sequence] = turn
        self._scheduler.add(turn.sequence)

    def _drop(self, sequence: Sequence) -> None:
        if self._turns.pop(sequence, None):
            self._scheduler.remove(sequence)
            self._finished += 1

    def _end(self, turn: _Turn, news: Piece | Exception) -> None:
        self._drop(turn.sequence)
        self._post.add(turn.answer, news)

    def _step(self) -> None:
        began, step = time.perf_counter(), None
        try:
            step = self._scheduler.step()
            self._compute(step)
        except Exception as error:  # noqa: BLE001 - whatever it is: others are to be answered still
            self._fail([row.sequence for row in step.rows] if step else [*self._turns], error)
        for answer in self._post.send():
            answer.cancel()
        self._steps += 1
        self._busy_seconds += time.perf_counter() - began

    def _compute(self, step: Step) -> None:
        """Do what a step says, and give out the tokens that follow."""
        turns = [self._turns[row.sequence] for row in step.rows if row.samples]
        tokens, logprobs = computed(self.device, partial(self._run, step, [turn.chooser for turn in turns]))
        self._scheduler.done(step)
        for place, (turn, token) in enumerate(zip(turns, tokens, strict=True)):
            self._give(turn, token, logprobs.get(place))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _run(self, step: Step, choosers: list[Chooser]) -> tuple[list[int], dict[int, TokenLogprob]]:
        """Do a step's moves, run the model, and choose a token for each chooser."""
        for move in step.moves:
            self._memory.move(move.source, move.target, move.count)
        if not step.rows:
            return [], {}
        logits = batch.run(self._loaded.model, self._memory, [*map(_part, step.rows)], flash=self._loaded.flash)
        return self._sampler.choose(logits, choosers) if choosers else ([], {})

    def _give(self, turn: _Turn, token: int, logprob: TokenLogprob | None) -> None:
        """Give a turn the token that was chosen for it."""
        if token == NO_TOKEN:
            self._end(turn, ModelError(_NOT_FINITE))
            return
        self._completion_tokens += 1
        self._scheduler.append(turn.sequence, token)
        try:
            reason = turn.take(token, logprob)
            piece = turn.piece(reason)
        except Exception as error:  # noqa: BLE001 - as above
            self._end(turn, _failure(error))
            return
        if reason and piece:
            self._end(turn, piece)
        elif piece:
            self._post.add(turn.answer, piece)

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        """Fail those that were computed; whoever else is running begins anew."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        self._scheduler.abandon()
        for sequence in sequences:
            if sequence in self._turns:
                self._end(self._turns[sequence], _failure(error))


def _limits(loaded: LoadedModel, settings: EngineSettings) -> tuple[int, int, int]:
    """Return the slots, the sequences and the tokens of an engine."""
    usual = (_GPU_SEQUENCES, _GPU_TOKENS) if loaded.model.device.type == "cuda" else (_CPU_SEQUENCES, _CPU_TOKENS)
    sequences, tokens = settings.max_sequences or usual[0], settings.max_batch_tokens or usual[1]
    return kv_slots(loaded, settings, sequences=sequences, tokens=tokens), sequences, tokens


def _part(row: Row) -> batch.Part:
    tokens = row.sequence.token_ids[row.start : row.start + row.count]
    return batch.Part(tokens, row.start, row.sequence.start, row.samples)


def _failure(error: Exception) -> AiQueryError:
    if isinstance(error, AiQueryError):
        return error
    failure = EngineError(f"The engine failed over this request: {type(error).__name__}: {error}. Try it again.")
    failure.__cause__ = error
    return failure


def _usage(sequence: Sequence) -> GenerationUsage:
    return GenerationUsage(
        prompt_tokens=sequence.prompt_length,
        completion_tokens=len(sequence.token_ids) - sequence.prompt_length,
        cached_tokens=sequence.cached,
    )
