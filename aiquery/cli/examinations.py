"""What `aiquery doctor` looks at. An examination never raises: what it finds wrong is its finding."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLongError
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from aiquery.client import Workspace
    from aiquery_serving.store import Store

State: TypeAlias = Literal["ok", "warn", "fail"]

#: What it is good for to have a package that nothing here requires.
_OPTIONAL: Final = {
    "mlflow": "tracking UI, evaluation and agents",
    "polars": "ai_query on Polars frames",
    "scikit-learn": "scikit-learn models",
    "tiktoken": "exact token counts of OpenAI's models",
    "torch": "PyTorch models",
    "transformers": "transformers models",
}
#: A registry that has not answered by then is called unreachable, in seconds.
_REGISTRY_SECONDS: Final = 15.0
#: Bits of a file's mode that let others than its owner have it.
_OTHERS: Final = 0o077
_DUCKDB: Final = 2
#: What ends the name in a requirement.
_NAME: Final = re.compile(r"[^\w.-]")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one examination found, and what to do about it where there is something to do."""

    subject: str
    state: State
    found: str
    advice: str = ""


def installed() -> Iterator[Finding]:
    """Look at Python and the packages that are required."""
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    for name in sorted(_required()):
        found = _version(name)
        if found is None:
            yield Finding(name, "fail", "not installed", f"pip install {name}")
        elif name == "duckdb" and int(found.partition(".")[0]) != _DUCKDB:
            yield Finding(name, "fail", found, f"pip install 'duckdb>={_DUCKDB},<{_DUCKDB + 1}'")
        else:
            yield Finding(name, "ok", found)


def optional() -> Iterator[Finding]:
    """Look at packages that are good to have."""
    for name, use in _OPTIONAL.items():
        found = _version(name)
        advice = "" if found else f"for {use}: pip install {name}"
        yield Finding(name, "ok", found or "not installed, optional", advice)


def language_models() -> Iterator[Finding]:
    """Look at what would run a language model here, and on what."""
    missing = [name for name in ("torch", "transformers", "llguidance") if _version(name) is None]
    if missing:
        yield Finding("language models", "ok", "cannot be run here, optional", "for them: pip install 'aiquery[llm]'")
        return
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    engine = "vLLM" if gpus and _version("vllm") else "PyTorch"
    yield Finding("language models", "ok", f"{engine} on {', '.join(gpus) or 'the processors'}")


def event_loop() -> Iterator[Finding]:
    """Look at what runs the requests."""
    from aiquery_udfs.engine_thread import engine_thread

    kind = type(engine_thread.loop()).__module__.partition(".")[0]
    slow = kind != "uvloop" and sys.platform != "win32"
    yield Finding("event loop", "warn" if slow else "ok", kind, "for more requests a second: pip install uvloop" * slow)


def folder(path: Path | None) -> Iterator[Finding]:
    """Look at the workspace's folder and the file in it."""
    from aiquery_serving.store import MIGRATIONS, Store

    if path is None:
        yield Finding("workspace", "ok", "in memory")
    elif not path.exists():
        place = next(parent for parent in path.parents if parent.exists())
        can = os.access(place, os.W_OK)
        advice = "" if can else f"make '{place}' writable, or choose another folder with --workspace or AIQUERY_HOME"
        yield Finding("workspace", "ok" if can else "fail", f"{path}, made at first use", advice)
    elif not os.access(path, os.W_OK):
        yield Finding("workspace", "fail", f"{path} cannot be written", "make the folder writable, or choose another")
    else:
        with _findings("workspace") as found:
            store = Store(path)
            found.append(Finding("workspace", "ok", f"{path}, schema {len(MIGRATIONS)}"))
            found.extend(_key(path, store))
            store.close()
        yield from found


def contents(workspace: Workspace) -> Iterator[Finding]:
    """Look at the model registry, the endpoints and the ledger of a workspace that opens."""
    yield _registry(workspace)
    with _findings("endpoints") as found:
        found.extend(_endpoint(workspace, item["name"]) for item in workspace.list_endpoints())
    yield from found or [Finding("endpoints", "ok", "none yet", "declare one: aiquery endpoints create --help")]
    with _findings("ledger") as found:
        entries = workspace.ledger.stats()
        found.append(Finding("ledger", "ok", f"{sum(entry['answers'] for entry in entries):,} answers"))
    yield from found


def attempt() -> Iterator[Finding]:
    """Ask a provider in this process something with ai_query, in a workspace that leaves nothing behind."""
    import duckdb

    from aiquery.cli.echo_provider import EchoProvider
    from aiquery.client import Workspace, register

    with _findings("ai_query") as found, EchoProvider() as provider, Workspace(":memory:") as workspace:
        workspace.create_endpoint("echo", {"served_entities": [{"name": "echo", "external_model": provider.model}]})
        with duckdb.connect() as connection:
            register(connection, workspace)
            answers = connection.execute("SELECT ai_query('echo', 'row ' || i) FROM range(3) t(i)").fetchall()
        right = answers == [("row 0",), ("row 1",), ("row 2",)]
        found.append(Finding("ai_query", "ok" if right else "fail", "answers" if right else f"answers {answers}"))
    yield from found


def _required() -> Iterator[str]:
    try:
        lines = requires("aiquery") or []
    except PackageNotFoundError:  # run from its source, without being installed
        lines = ["duckdb"]
    for line in lines:
        if "extra ==" not in line and ("sys_platform" not in line or sys.platform != "win32"):
            yield _NAME.split(line, maxsplit=1)[0]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _key(path: Path, store: Store) -> Iterator[Finding]:
    """Look at what the secrets are sealed with."""
    from aiquery_serving.secrets import KEY_VARIABLE, Secrets

    secrets, file = Secrets(store, key=None), path / "secret.key"
    if os.environ.get(KEY_VARIABLE):
        secrets.derived_key(b"doctor")
        yield Finding("secrets", "ok", f"sealed under {KEY_VARIABLE}")
    elif not file.exists():
        lost = bool(secrets.list())
        advice = f"bring '{file}' back, or store the secrets again" if lost else ""
        yield Finding("secrets", "fail" if lost else "ok", "the key file is missing" if lost else "none yet", advice)
    elif sys.platform != "win32" and file.stat().st_mode & _OTHERS:
        mode = f"{file.stat().st_mode & 0o777:04o}"
        yield Finding("secrets", "fail", f"others can have the key file (mode {mode})", f"chmod 600 '{file}'")
    else:
        yield Finding("secrets", "ok", f"{len(secrets.list())} stored, key file readable by you alone")


def _registry(workspace: Workspace) -> Finding:
    uri = workspace.models.registry_uri
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():
        return Finding("model registry", "ok", f"{file}, made at first use")
    with _findings("model registry") as found, _impatient_mlflow(), ThreadPoolExecutor(1) as thread:
        thread.submit(workspace.models.start).result(_REGISTRY_SECONDS)
        found.append(Finding("model registry", "ok", uri.rpartition("@")[2]))
    return found[0]


@contextmanager
def _impatient_mlflow() -> Iterator[None]:
    """Let MLflow give up soon: it asks a server that is not there for minutes."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _endpoint(workspace: Workspace, name: str) -> Finding:
    from aiquery.cli.applying import trouble
    from aiquery.cli.endpoints import state_of

    endpoint = workspace.get_endpoint(name)
    subject = f"endpoint {name}"
    if problem := trouble(endpoint):
        return Finding(subject, "fail", problem, "mend what it says, then update the endpoint")
    with _findings(subject) as found:
        for text in _texts(endpoint.get("config", {})):
            workspace.secrets.resolve(text)
        found.append(Finding(subject, "ok", state_of(endpoint)))
    return found[0]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


@contextmanager
def _findings(subject: str) -> Iterator[list[Finding]]:
    """Collect findings; an error is one of them."""
    from aiquery.cli.exits import sentence

    found: list[Finding] = []
    try:
        yield found
    except TookTooLongError:
        found.append(Finding(subject, "fail", f"no answer within {_REGISTRY_SECONDS:g} s", "check address and network"))
    except Exception as error:  # noqa: BLE001 - whatever is broken is what a doctor is asked about
        found.append(Finding(subject, "fail", sentence(error)))


#: The examinations that need nothing, in the order in which they are told.
BASIC: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    installed,
    optional,
    language_models,
    event_loop,
    attempt,
)
