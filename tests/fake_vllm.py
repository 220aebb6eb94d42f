"""A stand-in for vLLM 0.33: its modules, names and signatures, with a model that counts on from its prompt.

The model's token after n is n + 1, and its text is a letter for each. What a test wants to go wrong it sets on
`trouble`; what was asked is in `asked`. Parameters that vLLM does not know fail here as they do there.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

CONTEXT = 64


class VLLMError(Exception):
    pass


class VLLMClientError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)


class GracefulHTTPError(VLLMError):
    pass


class EngineDeadError(VLLMError):
    pass


class EngineGenerateError(VLLMError):
    pass


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    json: str | dict | None = None
    regex: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        if self.temperature > 2.0:
            raise VLLMValidationError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class PoolingParams:
    use_activation: bool | None = None
    dimensions: int | None = None
    task: str | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass(kw_only=True)
class AsyncEngineArgs:
    model: str
    tokenizer: str | None = None
    runner: str = "auto"
    convert: str = "auto"
    trust_remote_code: bool = False
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    device_ids: list[int | str] | None = None
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float = 0.9
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    structured_outputs_config: dict | None = None
    scheduling_policy: str = "fcfs"
    generation_config: str = "auto"
    enable_lora: bool = False
    max_lora_rank: int = 16


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


@dataclass
class PoolingRequestOutput:
    request_id: str
    outputs: Any
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool
    error: Any = None


@dataclass
class Trouble:
    """What is to go wrong: while loading, over the request of a first token, or by never going on."""

    loading: Exception | None = None
    over: dict[int, Exception | str] = field(default_factory=dict)
    hang: set[int] = field(default_factory=set)


class Tensor:
    """As much of a torch tensor as an embedding needs."""

    def __init__(self, numbers: list[float]) -> None:
        self._numbers = numbers

    def float(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self):
        import numpy as np

        return np.array(self._numbers, dtype=np.float32)


class AsyncLLM:
    """Answers one token at each turn of the loop that it was made on, and on no other."""

    trouble = Trouble()
    made: ClassVar[list[AsyncLLM]] = []

    def __init__(self, arguments: AsyncEngineArgs, stat_loggers: list) -> None:
        length = CONTEXT if arguments.max_model_len in (None, -1) else arguments.max_model_len
        self.arguments = arguments
        self.model_config = SimpleNamespace(max_model_len=length)
        cache = SimpleNamespace(num_gpu_blocks=100, block_size=16, kv_cache_size_tokens=1500)
        self.vllm_config = SimpleNamespace(model_config=self.model_config, cache_config=cache)
        self.loggers = [make(self.vllm_config, 0) for make in stat_loggers]
        self.loop = asyncio.get_running_loop()
        self.asked: list[SimpleNamespace] = []
        self.aborted: list[str] = []
        self.down = False

    @classmethod
    def from_engine_args(cls, engine_args, start_engine_loop=True, usage_context=None, stat_loggers=None) -> AsyncLLM:
        if cls.trouble.loading:
            raise cls.trouble.loading
        cls.made.append(cls(engine_args, stat_loggers or []))
        return cls.made[-1]

    def shutdown(self, timeout: float | None = None) -> None:
        self.down = True

    async def generate(self, prompt, sampling_params, request_id, *, lora_request=None, priority=0):
        ids = prompt["prompt_token_ids"]
        self._note(ids, sampling_params, request_id, lora_request, priority)
        try:
            async for output in self._answer(ids, sampling_params, request_id):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise

    async def _answer(self, ids, params, request_id):
        most = min(params.max_tokens or CONTEXT, self.model_config.max_model_len - len(ids))
        given: list[int] = []
        while len(given) < most:
            await self._turn(ids, given)
            given.append(ids[-1] + 1 + len(given))
            finished = len(given) == most
            if params.output_kind is RequestOutputKind.DELTA or finished:
                new = given[-1:] if params.output_kind is RequestOutputKind.DELTA else given
                yield self._output(request_id, ids, new, params, "length" if finished else None)

    async def _turn(self, ids, given) -> None:
        await asyncio.sleep(0)
        if ids[0] in self.trouble.hang and given:
            await asyncio.Event().wait()
        trouble = self.trouble.over.get(ids[0])
        if isinstance(trouble, Exception):
            raise trouble
        self._tell(len(ids) if not given else 0)

    def _output(self, request_id, ids, new, params, reason) -> RequestOutput:
        trouble = self.trouble.over.get(ids[0])
        reason = trouble if reason and isinstance(trouble, str) else reason
        stop = params.stop[0] if reason == "stop" and params.stop else None
        logprobs = None if params.logprobs is None else [_known(token, params.logprobs) for token in new]
        text = "".join(chr(97 + token % 26) for token in new)
        output = CompletionOutput(0, text, list(new), 0.0, logprobs, reason, stop)
        return RequestOutput(request_id, list(ids), [output], reason is not None, num_cached_tokens=4)

    def _tell(self, prompt: int) -> None:
        tokens = SimpleNamespace(total=prompt, cached_tokens=4 if prompt else 0)
        step = SimpleNamespace(num_running_reqs=2, num_waiting_reqs=1, kv_cache_usage=0.5)
        done = SimpleNamespace(num_generation_tokens=1, num_preempted_reqs=0, prompt_token_stats=tokens)
        for logger in self.loggers:
            logger.record(step, done, mm_cache_stats=None, engine_idx=0)

    async def encode(self, prompt, pooling_params, request_id, lora_request=None, *, priority=0):
        ids = prompt["prompt_token_ids"]
        self._note(ids, pooling_params, request_id, lora_request, priority)
        try:
            await self._turn(ids, [0])
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        found = SimpleNamespace(data=Tensor([3.0 * len(ids), 4.0 * len(ids), 0.0]))
        yield PoolingRequestOutput(request_id, found, list(ids), 0, finished=True)

    def _note(self, ids, params, request_id, lora, priority) -> None:
        assert asyncio.get_running_loop() is self.loop, "vLLM was asked on a loop that is not its own."
        self.asked.append(SimpleNamespace(ids=ids, params=params, id=request_id, lora=lora, priority=priority))


def _known(token: int, top: int) -> dict[int, Logprob]:
    """Return what vLLM says of a place: the token first, which is the second likeliest here, then the likeliest."""
    ranked = {token: Logprob(-1.0, 2, "?")}
    return ranked | {token + other: Logprob(-0.5 * other, other, "?") for other in range(1, top + 1) if other != 2}


MODULES = {
    "vllm": {"__version__": "0.33.0"},
    "vllm.engine": {},
    "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
    "vllm.exceptions": {"VLLMClientError": VLLMClientError, "GracefulHTTPError": GracefulHTTPError},
    "vllm.lora": {},
    "vllm.lora.request": {"LoRARequest": LoRARequest},
    "vllm.pooling_params": {"PoolingParams": PoolingParams},
    "vllm.sampling_params": {
        "RequestOutputKind": RequestOutputKind,
        "SamplingParams": SamplingParams,
        "StructuredOutputsParams": StructuredOutputsParams,
    },
    "vllm.v1": {},
    "vllm.v1.engine": {},
    "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError, "EngineGenerateError": EngineGenerateError},
}


def install(monkeypatch) -> type[AsyncLLM]:
    """Be vLLM for a test; return the class that it makes engines of."""
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    for name, contents in MODULES.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(AsyncLLM, "trouble", Trouble())
    monkeypatch.setattr(AsyncLLM, "made", [])
    return AsyncLLM
