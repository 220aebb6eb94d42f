"""A workspace behind HTTP: in this process beside other work, or as a program of one process or several."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiquery.server.running import Server, serve
    from aiquery.server.settings import Settings

__all__ = ["Server", "Settings", "serve"]

_HOMES = {"Server": "running", "Settings": "settings", "serve": "running"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"aiquery.server.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'aiquery.server' has no attribute '{name}'")
