"""`aiquery serve` as a process of its own.

with program(home, "--workers", "2") as server:
    httpx.get(server.url + "/health")
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from aiquery.cli import main; main()", "serve"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a program that works on a workspace: little of ours."""
    paths = os.pathsep.join(map(str, [ROOT, ROOT / "udfs", ROOT / "serving"]))
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": paths, "AIQUERY_HOME": str(home), "AIQUERY_USER": "ada"} | more


class Program:
    """A server that runs: its `url`, its process, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.first = process.stdout.readline()
        found = re.search(r"https?://\S+", self.first)
        assert found, "".join(self.log)
        self.url = found[0]

    def _read(self) -> None:
        # A worker that outlives its server for a moment keeps the pipe open until after it was closed here.
        with suppress(ValueError):
            self.log.extend(self.process.stderr)

    def workers(self) -> list[int]:
        """Return the processes that answer, where there are several."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    def ended(self, number: int | None = signal.SIGTERM, timeout: float = 20) -> tuple[int, str, str]:
        """Send a signal, and return the exit code and all that was written."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code, self.first + self.process.stdout.read(), "".join(self.log)


@contextmanager
def program(home: Path, *options: str, **more: str) -> Iterator[Program]:
    """Start a server on a free port, and end it."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options],
        env=environment(home, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Program(process)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


def refused(home: Path, *options: str, **more: str) -> tuple[int, str]:
    """Return the exit code and the words of a server that does not start."""
    done = subprocess.run(
        [*COMMAND, "--port", "0", *options],
        env=environment(home, **more), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr
