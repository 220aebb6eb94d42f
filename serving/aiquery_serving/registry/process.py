"""Who is loading a config, and whether that process still runs."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

#: How long an update of another machine may take: its processes cannot be looked at from here.
FOREIGN_UPDATE_MS = 3_600_000

#: The loads that this process is running.
_running: set[str] = set()


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that is loading a pending config; `token` tells its loads apart."""

    host: str
    pid: int
    started: str
    token: str


def new_owner() -> Owner:
    """Return a mark for a load that this process starts; `release` it when the load has ended."""
    token = uuid4().hex
    _running.add(token)
    return Owner(platform.node(), os.getpid(), _started(os.getpid()), token)


def release(owner: Owner) -> None:
    """Note that a load has ended, however it did."""
    _running.discard(owner.token)


def is_loading(owner: Owner, *, since_ms: int, now_ms: int) -> bool:
    """Say whether a load that began at `since_ms` may still end well."""
    if owner.host != platform.node():
        return now_ms - since_ms < FOREIGN_UPDATE_MS
    if owner.pid == os.getpid():
        return owner.token in _running
    return owner.started == _start_of(owner.pid)


@cache
def _started(pid: int) -> str:
    return _start_of(pid)


def _start_of(pid: int) -> str:
    """Return when a process began, in the system's own words; empty when it is not running.

    A process id alone is not enough: after a restart another program may have it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _start_from_ps(pid)
    # The second field is the program's name, which may hold spaces and brackets.
    state, *rest = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


def _start_from_ps(pid: int) -> str:
    command = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    # Two processes with other settings must read the same time.
    plain = {"LC_ALL": "C", "TZ": "UTC"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)  # noqa: S603 - fixed program, numeric argument
    state, _, start = answer.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()
