"""How a foundation model is to be run: what its served entity declares, and good defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from aiquery_serving.errors import ConfigurationError

#: The engine that fits: vLLM where it is installed and there is a GPU, else PyTorch.
AUTO = "auto"
#: Workload types that say CPU and mean it: plain `CPU` is what everybody has who says nothing.
_CPU_ONLY = ("CPU_MEDIUM", "CPU_LARGE")
_PREFIX: Final = "AIQUERY_"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of one engine; None and `AUTO` leave the choice to it.

    Attributes:
        engine: `auto`, `torch` or `vllm`.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        max_batch_tokens: The most tokens of one run of the model.
        max_sequences: The most generations in the batch.
        kv_memory_fraction: The share of the device's memory for the model and its keys and values (0 to 1).
        context_length: The most tokens of a prompt and its answer together.
        system_prompt: What a conversation without a system message begins with; None for the model's own.
        adapter: The folder of a LoRA adapter to serve the model with.
    """

    engine: str = AUTO
    device: str = AUTO
    dtype: str = AUTO
    max_batch_tokens: int | None = None
    max_sequences: int | None = None
    kv_memory_fraction: float | None = None
    context_length: int | None = None
    system_prompt: str | None = None
    adapter: str | None = None

    @classmethod
    def parse(cls, environment_vars: Mapping[str, str], workload_type: str = "CPU") -> Self:
        """Read the settings that a served entity declares, as `AIQUERY_<SETTING>` in its environment.

        Without `AIQUERY_DEVICE` a GPU is used where there is one, whatever the workload type asks for; `CPU_MEDIUM`
        and `CPU_LARGE` stay on the CPU.

        Args:
            environment_vars: The served entity's; names without our prefix are none of ours.
            workload_type: The served entity's.

        Raises:
            ConfigurationError: A value is not legal, or there is no such setting; the message lists what is legal.

        Examples:
            >>> EngineSettings.parse({"AIQUERY_MAX_SEQUENCES": "8"}).max_sequences
            8
        """
        given = {name: value for name, value in environment_vars.items() if name.startswith(_PREFIX)}
        unknown = sorted(given.keys() - _READERS.keys())
        if unknown:
            raise ConfigurationError(
                f"There is no setting {unknown[0]} of a foundation model. Those there are: {', '.join(_READERS)}."
            )
        read = {_member(name): _READERS[name](name, value.strip()) for name, value in given.items()}
        return cls(**{"device": "cpu" if workload_type in _CPU_ONLY else AUTO} | read)


def _member(name: str) -> str:
    return name.removeprefix(_PREFIX).lower()


def _one_of(*words: str) -> Callable[[str, str], str]:
    def read(name: str, value: str) -> str:
        if value.lower() not in words:
            raise ConfigurationError(f"{name} must be one of {', '.join(words)}; got {value!r}.")
        return value.lower()

    return read


def _device(name: str, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value.lower()):
        raise ConfigurationError(f"{name} must be auto, cpu, cuda or cuda:<number>; got {value!r}.")
    return value.lower()


def _count(name: str, value: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", value, re.ASCII):
        raise ConfigurationError(f"{name} must be a whole number of at least 1; got {value!r}.")
    return int(value)


def _fraction(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ConfigurationError(f"{name} must be a number above 0 and at most 1, such as 0.9; got {value!r}.")
    return number


def _text(_name: str, value: str) -> str:
    return value


def _adapter(name: str, value: str) -> str:
    folder = Path(value).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ConfigurationError(
            f"{name} must be the folder of a LoRA adapter, with its adapter_config.json; got {value!r}."
        )
    return str(folder)


_READERS: Final[dict[str, Callable[[str, str], Any]]] = {
    "AIQUERY_ENGINE": _one_of(AUTO, "torch", "vllm"),
    "AIQUERY_DEVICE": _device,
    "AIQUERY_DTYPE": _one_of(AUTO, "float32", "bfloat16", "float16"),
    "AIQUERY_MAX_BATCH_TOKENS": _count,
    "AIQUERY_MAX_SEQUENCES": _count,
    "AIQUERY_KV_MEMORY_FRACTION": _fraction,
    "AIQUERY_CONTEXT_LENGTH": _count,
    "AIQUERY_SYSTEM_PROMPT": _text,
    "AIQUERY_ADAPTER": _adapter,
}
