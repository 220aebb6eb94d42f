"""From the files of a foundation model to its served entity."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.foundation.entity import FoundationEntity
from aiquery_serving.entities.foundation.loading import OnDemand
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.llm.instructions import Instructions
from aiquery_serving.messages import EMBEDDINGS

if TYPE_CHECKING:
    from aiquery_serving.llm.model_files import ModelFiles
    from aiquery_serving.llm.prompting import Prompter
    from aiquery_serving.llm.settings import EngineSettings

_NEEDED = ("torch", "transformers")
#: Held by whoever loads: two at once would both take the memory that is free, and transformers, which imports its
#: parts as they are used, cannot be imported by two threads at once.
_LOADING = threading.RLock()


def load_foundation(
    files: ModelFiles,
    *,
    name: str,
    settings: EngineSettings,
    idle_seconds: float | None = None,
    on_demand: bool = False,
    say: Callable[[str], None],
) -> FoundationEntity:
    """Return the served entity of a foundation model, ready to answer.

    Args:
        files: The model's files.
        name: What answers and errors call it.
        settings: How its engine is to run.
        idle_seconds: Give the engine up when nobody has asked for so long; the next request loads it again.
        on_demand: Load nothing before the first request.
        say: Writes down what is loaded, and how.

    Raises:
        ConfigurationError: PyTorch or transformers is not installed.
        ModelError: The model does not load.
    """
    require_libraries(name)
    prompter = cache(lambda: _prompter(files, settings))
    engine = OnDemand(lambda: _engine(files, settings, prompter(), say), name=name, idle_seconds=idle_seconds, say=say)
    if not on_demand:
        try:
            engine.load()
        except BaseException:
            engine.close()
            raise
    instructions = Instructions.of(files.model) if files.task == EMBEDDINGS else None
    return FoundationEntity(name, files.task, engine, prompter, instructions=instructions)


def require_libraries(name: str) -> None:
    """Let pass where what language models take is installed.

    Raises:
        ConfigurationError: It is not.
    """
    if missing := [library for library in _NEEDED if find_spec(library) is None]:
        raise ConfigurationError(
            f"Model {name!r} cannot be served here, because {' and '.join(missing)} cannot be imported: "
            "pip install 'aiquery[llm]'."
        )


def _prompter(files: ModelFiles, settings: EngineSettings) -> Prompter:
    with _LOADING:
        from aiquery_serving.llm.prompting import Prompter

        return Prompter.load(files, settings)


def _engine(files: ModelFiles, settings: EngineSettings, prompter: Prompter, say: Callable[[str], None]) -> Any:
    with _LOADING:
        from aiquery_serving.llm.choosing import load_embedder, load_engine

        load = load_embedder if files.task == EMBEDDINGS else load_engine
        return load(files, settings, prompter, say)
