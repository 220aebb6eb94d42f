"""The throughput chunk of each model on each device: modelled after a quick look at the device, then remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import FoundationModel, ServedEntity
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.store import Store
from aiquery_serving.throughput import Speed, check_bounds, modelled

AUTO: Final = "auto"
#: What is copied is read and written.
_COPY: Final = 2.0
#: Nothing takes less, in seconds.
_INSTANT: Final = 1e-9
_EMBEDDINGS: Final = "llm/v1/embeddings"
#: Seconds for each of the three things that are measured.
_LOOK: Final = 0.04
#: Rows of the matrix product that is timed, and numbers of the array that is copied: more than caches hold.
_ROWS, _COPIED = {"cpu": 512, "cuda": 8192}, {"cpu": 1 << 22, "cuda": 1 << 27}

#: Measures a device of PyTorch's, such as `cpu` or `cuda:0`.
Measure = Callable[[str], Speed]


class ChunkSizes:
    """The tokens per second by which throughput is provisioned, per model and device. From any thread; blocks it.

    What was told once stays: endpoints are declared in multiples of it.

    Args:
        store: The workspace's store, where they are remembered.
        clock: Tells the time.
        measure: Measures a device; by default with PyTorch, or numpy where that is missing.
    """

    def __init__(self, store: Store, clock: Clock, *, measure: Measure | None = None) -> None:
        self._store = store
        self._measure = measure or (lambda device: measured(device, clock))

    def of(self, model: str, config: Mapping[str, Any], device: str = AUTO, *, embeds: bool = False) -> int:
        """Return the chunk of a model, in tokens per second of prompts and answers, or of texts to embed.

        Args:
            model: What the model is known by: its name and version.
            config: Its config.json.
            device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
            embeds: Whether it is an embedding model.

        Raises:
            WorkspaceError: The workspace cannot be read or written.
        """
        known = self.told(model, device)
        return known or self.learn(model, modelled(config, self._measure(_chosen(device)), embeds=embeds), device)

    def told(self, model: str, device: str = AUTO) -> int | None:
        """Return what was told of a model on a device, if anything was.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        query = "SELECT size FROM throughput_chunks WHERE model = ? AND device = ?"
        with self._store.read() as database:
            row = database.execute(query, (model, _kind(device))).fetchone()
        return int(row[0]) if row else None

    def learn(self, model: str, tokens_per_second: int, device: str = AUTO) -> int:
        """Remember what a model does on a device, unless a chunk was told before; returns the one that holds.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        statement = "INSERT INTO throughput_chunks VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        with self._store.write() as database:
            database.execute(statement, (model, _kind(device), max(1, int(tokens_per_second))))
        return self.told(model, device) or tokens_per_second

    def found(self, name: str, version: str, model: FoundationModel, config: Mapping[str, Any]) -> FoundationModel:
        """Return what is said of a model with its chunk, on the device that would be chosen for it.

        Raises:
            WorkspaceError: The workspace cannot be read or written.
        """
        size = self.of(_key(name, version), config, embeds=model.task == _EMBEDDINGS)
        return replace(model, throughput_chunk_size=size)


def provisioned(entity: ServedEntity, sizes: ChunkSizes, config: Mapping[str, Any]) -> ServedEntity:
    """Return a served entity with its model's chunk, if throughput is declared for it.

    Args:
        entity: As declared; what its files say of its model is in it.
        sizes: Knows the chunks.
        config: Its model's config.json; anything for a custom model.

    Raises:
        ConfigurationError: The model is a custom one, or the bounds are no multiples of its chunk.
        WorkspaceError: The workspace cannot be read or written.
    """
    if not entity.is_provisioned:
        return entity
    name, version, who = entity.entity_name or "", entity.entity_version or "", f"served entity {entity.name!r}"
    if entity.foundation_model is None:
        raise ConfigurationError(
            f"{who}: throughput cannot be provisioned for the custom model {name!r}: its model is not optimizable. Give"
            " workload_size instead, or log the model with MLflow's transformers flavor and a task such as llm/v1/chat"
        )
    model = sizes.found(name, version, entity.foundation_model, config)
    if entity.max_provisioned_throughput is not None and model.throughput_chunk_size is not None:
        bounds = (entity.min_provisioned_throughput, entity.max_provisioned_throughput)
        check_bounds(*bounds, model.throughput_chunk_size, who=f"{who}: ")
    return replace(entity, foundation_model=model)


def measured(device: str, clock: Clock) -> Speed:
    """Look for a fraction of a second at what a device can do.

    Args:
        device: `cpu` or `cuda:<n>`.
        clock: Tells the time.
    """
    try:
        import torch
    except ImportError:
        return _with_numpy(clock)
    kind = device.partition(":")[0]
    number = torch.bfloat16 if kind == "cuda" else torch.float32
    done = torch.cuda.synchronize if kind == "cuda" else None
    with torch.inference_mode():
        large, small = (torch.ones(rows, rows, dtype=number, device=device) for rows in (_ROWS[kind], 16))
        source = torch.ones(_COPIED[kind], dtype=number, device=device)
        target = torch.empty_like(source)
        return Speed(
            operations=2.0 * _ROWS[kind] ** 3 / _seconds(lambda: torch.mm(large, large), clock, done),
            bytes=_COPY * source.nbytes / _seconds(lambda: target.copy_(source), clock, done),
            begin=_seconds(lambda: torch.mm(small, small), clock, done, at_once=50),
            width=number.itemsize,
        )


def _with_numpy(clock: Clock) -> Speed:
    import numpy as np

    large, small = (np.ones((rows, rows), np.float32) for rows in (_ROWS["cpu"], 16))
    source = np.ones(_COPIED["cpu"], np.float32)
    target = np.empty_like(source)
    return Speed(
        operations=2.0 * _ROWS["cpu"] ** 3 / _seconds(lambda: large @ large, clock),
        bytes=_COPY * source.nbytes / _seconds(lambda: np.copyto(target, source), clock),
        begin=_seconds(lambda: small @ small, clock, at_once=50),
        width=source.itemsize,
    )


def _seconds(
    act: Callable[[], object], clock: Clock, done: Callable[[], object] | None = None, *, at_once: int = 1
) -> float:
    """Return the shortest time that something took, after a first time that does not count."""

    def took(times: int) -> float:
        start = clock.now()
        for _ in range(times):
            act()
        if done is not None:
            done()  # a GPU answers before it has computed
        return (clock.now() - start) / times

    took(1)
    best, until = took(at_once), clock.now() + _LOOK
    while best > 0 and clock.now() < until:
        best = min(best, took(at_once))
    return max(best, _INSTANT)


def _chosen(device: str) -> str:
    """Return the device that is meant: a GPU when there is one."""
    if device not in (AUTO, "cuda"):
        return device
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _kind(device: str) -> str:
    """Name a device so that another one of its kind has the same name: by its model if it is a GPU."""
    chosen = _chosen(device)
    if not chosen.startswith("cuda"):
        return chosen
    import torch

    return str(torch.cuda.get_device_name(chosen)) if torch.cuda.is_available() else chosen


def _key(name: str, version: str) -> str:
    return f"{name}/{version}"
