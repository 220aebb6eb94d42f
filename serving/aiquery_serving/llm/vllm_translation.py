"""What we ask of vLLM (0.32 or newer) in its own words, and what it answers in ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiquery_serving.errors import AiQueryError, EngineError, InvalidRequestError, OverloadedError
from aiquery_serving.llm.interface import LENGTH, STOP, Piece, Sampling, TokenLogprob
from aiquery_serving.llm.model_files import EMBEDDINGS, ModelFiles
from aiquery_serving.llm.settings import AUTO, EngineSettings

#: How vLLM says that an answer ended. What it has given up, or failed over, is an error.
_ENDS: Final = {"stop": STOP, "length": LENGTH, "repetition": STOP}
#: The ranks of LoRA adapters that vLLM makes room for.
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MOST_LOGPROBS: Final = 20
#: vLLM answers lower numbers first.
INTERACTIVE, BATCH = 0, 1


def engine_arguments(files: ModelFiles, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of vLLM's engine for a model; what is not declared is left to vLLM."""
    declared = {
        "dtype": None if settings.dtype == AUTO else settings.dtype,
        "max_num_batched_tokens": settings.max_batch_tokens,
        "max_num_seqs": settings.max_sequences,
        "gpu_memory_utilization": settings.kv_memory_fraction,
        "max_model_len": settings.context_length,
        "device_ids": _devices(settings.device),
    }
    own = _embedding_arguments() if files.task == EMBEDDINGS else _generation_arguments(adapter(files, settings))
    return {
        "model": str(files.model),
        "tokenizer": str(files.tokenizer),
        "scheduling_policy": "priority",
        "seed": 0,
        "trust_remote_code": False,
        **own,
        **{name: value for name, value in declared.items() if value is not None},
    }


def _embedding_arguments() -> dict[str, Any]:
    return {"runner": "pooling", "convert": "embed"}


def _generation_arguments(adapter: Path | None) -> dict[str, Any]:
    arguments = {
        "runner": "generate",
        "max_model_len": -1,  # as long as the model's, or as there is memory for
        "enable_prefix_caching": True,
        "max_logprobs": _MOST_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "generation_config": "auto",  # what ends an answer stands there
    }
    return arguments | ({"enable_lora": True, "max_lora_rank": _rank(adapter)} if adapter else {})


def adapter(files: ModelFiles, settings: EngineSettings) -> Path | None:
    """Return the folder of the LoRA adapter to serve the model with."""
    return Path(settings.adapter) if settings.adapter else files.adapter


def _rank(adapter: Path) -> int:
    rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r", 1))
    return next((known for known in _RANKS if known >= rank), rank)


def _devices(device: str) -> list[int] | None:
    """Return the number of a device such as `cuda:1`, for vLLM to see no other."""
    kind, _, number = device.partition(":")
    return [int(number)] if kind == "cuda" and number else None


def sampling_parameters(sampling: Sampling) -> dict[str, Any]:
    """Return the arguments of vLLM's SamplingParams but for the schema and the kind of output."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else sampling.seed % 2**63,  # -1 is none to vLLM
        "stop": list(sampling.stop),
        "logprobs": sampling.top_logprobs if sampling.logprobs else None,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "ignore_eos": sampling.ignore_eos,
    }


def piece(completion: Any, *, top: int) -> Piece:
    """Return what one of vLLM's outputs adds to an answer, with so many of the likeliest tokens at each place.

    Raises:
        EngineError: vLLM has given the request up.
    """
    reason = completion.finish_reason
    if reason is not None and reason not in _ENDS:
        raise EngineError(f"vLLM gave up the request (it says: {reason}). Send it again.")
    places = zip(completion.token_ids, completion.logprobs or (), strict=False)
    logprobs = tuple(_logprob(token, known, top) for token, known in places)
    if reason == "stop" and not isinstance(completion.stop_reason, str):
        logprobs = logprobs[:-1]  # of the token that ended it, and is no part of it
    return Piece(completion.text, logprobs, None if reason is None else _ENDS[reason])


def _logprob(token: int, known: Mapping[int, Any], top: int) -> TokenLogprob:
    ranked = sorted(known.items(), key=lambda item: (item[1].rank or 0, -item[1].logprob))[:top]
    return TokenLogprob(token, known[token].logprob, tuple((other, entry.logprob) for other, entry in ranked))


def translated(error: BaseException) -> AiQueryError:
    """Return our error for one of vLLM's."""
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, AiQueryError):
        return error
    if isinstance(error, VLLMClientError | ValueError):
        return InvalidRequestError(f"vLLM does not take the request: {error}")
    if isinstance(error, GracefulHTTPError):
        return OverloadedError(f"vLLM takes no more requests at present: {error}")
    if isinstance(error, EngineDeadError):
        return EngineError("The process in which vLLM computes has ended. Its log says why; load the model again.")
    return EngineError(f"vLLM failed over the request: {type(error).__name__}: {error}")
