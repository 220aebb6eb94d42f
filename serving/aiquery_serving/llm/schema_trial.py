"""Tries in a process of its own whether a JSON schema can be compiled: some take hours, and some end the process.

Grammars limit what following a schema costs, not what compiling it does: patterns that must all match have been seen to
take minutes, and references through thousands of parts to overflow the stack.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Final

from aiquery_serving.errors import InvalidRequestError

#: Seconds that a schema may take to compile.
SECONDS: Final = 2.0
#: Words of schemas without any of which compiling takes no longer than reading.
_RISKY: Final = re.compile(r'"(\$ref|\$dynamicRef|\$recursiveRef|allOf|pattern|patternProperties|multipleOf)"')
#: Its stack is a fraction of what threads have: what passes here has room elsewhere. Compiling lets the timer run.
_PROGRAM: Final = """
import os, sys, threading
from llguidance import LLMatcher, LLTokenizer

def serve(tokenizer=LLTokenizer("byte")):
    for schema in sys.stdin:
        timer = threading.Timer(float(sys.argv[1]), os._exit, [1])
        timer.start()
        try:
            LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)
        except ValueError:
            pass
        timer.cancel()
        print(flush=True)

threading.stack_size(2**20)
threading.Thread(target=serve).start()
"""


class SchemaTrial:
    """Compiles schemas where no harm is done. From any thread; those that come at once wait for each other."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def check(self, schema: str) -> None:
        """Let a schema pass, which is JSON text, if compiling it comes to an end; whether it succeeds does not matter.

        Raises:
            InvalidRequestError: It does not.
        """
        if _RISKY.search(schema) and not self._ends(schema):
            raise InvalidRequestError(
                f"The JSON schema of the answer is too complex: it takes more than {self._seconds:g} s to compile, or"
                " refers to itself too deeply. Use fewer patterns, multiples and references in it."
            )

    def close(self) -> None:
        """End the process, and who waits for it. Another schema begins another one."""
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _ends(self, schema: str) -> bool:
        with self._lock:
            process = self._running()
            assert process.stdin is not None  # noqa: S101 - both are pipes
            assert process.stdout is not None  # noqa: S101
            with suppress(BrokenPipeError):
                process.stdin.write(schema.replace("\n", " ") + "\n")
                process.stdin.flush()
                if process.stdout.readline():
                    return True
            self._end()
            return False

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(  # noqa: S603 - a program of ours
                [sys.executable, "-P", "-c", _PROGRAM, str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # an interrupt of ours is none of its
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
