"""What vLLM reports of its own work, added up."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from aiquery_serving.llm.interface import EngineMetrics


class Meter:
    """Adds up what vLLM's engine reports after each step.

    vLLM calls the interface unstable: what is not there any more is not counted, and nothing fails over it.

    Attributes:
        room: Tokens whose keys and values there is memory for.
    """

    def __init__(self) -> None:
        self.room = 0
        self._finished = 0
        self._ending = threading.Lock()
        self._running = self._waiting = self._steps = self._preempted = 0
        self._prompt = self._cached = self._given = 0
        self._used = self._busy = self._at = 0.0

    def end(self) -> None:
        """Count a request that has ended, however. From any thread."""
        with self._ending:
            self._finished += 1

    def logger(self, config: Any, index: int = 0) -> Meter:
        """Be the logger that vLLM makes for an engine."""
        del config, index
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
        """Take in one step; vLLM's own names and order."""
        del others, more
        with suppress(AttributeError, TypeError):
            self._take_step(time.monotonic(), scheduler_stats)
        with suppress(AttributeError, TypeError):
            self._take_tokens(iteration_stats)

    def _take_step(self, now: float, stats: Any) -> None:
        if self._running:
            self._busy += now - self._at
        self._at = now
        self._steps += 1
        if stats is not None:
            self._running, self._waiting = stats.num_running_reqs, stats.num_waiting_reqs
            self._used = stats.kv_cache_usage

    def _take_tokens(self, stats: Any) -> None:
        if stats is not None:
            self._given += stats.num_generation_tokens
            self._preempted += stats.num_preempted_reqs
            self._prompt += stats.prompt_token_stats.total
            self._cached += stats.prompt_token_stats.cached_tokens

    def log_engine_initialized(self) -> None:
        """Say nothing; vLLM calls it once."""

    def log(self) -> None:
        """Say nothing; vLLM calls it now and then."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Note nothing; vLLM calls it when it is put to sleep."""

    def metrics(self) -> EngineMetrics:
        """Return what there is so far. From any thread."""
        return EngineMetrics(
            running=self._running,
            waiting=self._waiting,
            finished=self._finished,
            preempted=self._preempted,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            completion_tokens=self._given,
            steps=self._steps,
            busy_seconds=self._busy,
            kv_tokens=self.room,
            kv_tokens_used=round(self._used * self.room),
        )
