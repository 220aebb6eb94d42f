"""The REST server in front of a provider and of a custom model: requests/s, CPU and latency it adds.

Beside it, in the same run: a bare ASGI app, and (`--install` puts them in environments of their own) the MLflow
gateway and the LiteLLM proxy in front of the same provider. Every server, the provider and the clients are
processes of their own; with two cores they share them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import report
from benchmarks.rest_load import ANSWER
from benchmarks.rivals import FOLDER, environment
from benchmarks.setting import chat_entity

LOAD = Path(__file__).with_name("rest_load.py")
CHAT = {"messages": [{"role": "user", "content": "y" * 900}], "max_tokens": 100}
ROW = {"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": [[0.1, 0.2, 0.3, 0.4]]}}
CLIENTS = (1, 32, 128)
RIVALS = {"mlflow": ["mlflow[gateway]"], "litellm-proxy": ["litellm[proxy]"]}
START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(command: list[Any], *, ready: str | None, env: dict[str, str] | None = None) -> Iterator[int]:
    """Run a program until the block ends; wait until `ready` answers 200."""
    log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115 - the child writes it
    process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        await_answer(process, ready, log.name)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        Path(log.name).unlink()


def await_answer(process: subprocess.Popen, url: str | None, log: str) -> None:
    until = time.monotonic() + START_SECONDS
    while url and time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"It did not start: {Path(log).read_text()[-500:]}")
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError:  # not there yet, or still loading (503)
            time.sleep(0.1)
        else:
            return


def cpu_seconds(group: int) -> float:
    """Return the CPU time that the processes of a group have used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Target(NamedTuple):
    """A server's process group (None: not measured), its port, and what is posted where."""

    group: int | None
    port: int
    path: str
    body: dict[str, Any]


def measured(target: Target, clients: int, seconds: float) -> dict[str, Any]:
    """Load a server, and say what a request cost it."""
    group = target.group
    before = cpu_seconds(group) if group else 0.0
    command = [sys.executable, LOAD, "load", str(target.port), target.path, str(clients), str(seconds)]
    done = subprocess.run(command, input=json.dumps(target.body).encode(), capture_output=True, check=True)
    found = json.loads(done.stdout)
    # The half second of warming up is in the CPU time, not among the requests.
    used = (cpu_seconds(group) - before) * seconds / (seconds + 0.5) if group else 0.0
    requests = found.pop("requests")
    return found | {"CPU us": used / max(requests, 1) * 1e6}


def workspace(folder: Path, provider: int, *, custom: bool) -> None:
    """Declare an endpoint `chat` and, with a model, `rows`."""
    import aiquery

    with aiquery.Workspace(folder) as made:
        made.create_endpoint("chat", {"served_entities": [chat_entity(f"http://127.0.0.1:{provider}/v1")]})
        if custom:
            log_model(made)
            entity = {"entity_name": "linear", "entity_version": "1", "workload_size": "Large"}
            made.create_endpoint("rows", {"served_entities": [entity]})
            made.wait("rows")


def log_model(made: Any) -> None:
    """Register a small linear model with four columns."""
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    rows = pd.DataFrame(np.random.default_rng(1).random((100, 4)), columns=list("abcd"))
    model = LinearRegression().fit(rows, rows.sum(axis=1))
    mlflow.set_tracking_uri(made.tracking_uri)
    mlflow.set_registry_uri(made.registry_uri)
    mlflow.sklearn.log_model(
        model,
        name="linear",
        registered_model_name="linear",
        signature=infer_signature(rows, model.predict(rows)),
        pip_requirements=[],
    )


@contextmanager
def bare(port: int) -> Iterator[int]:
    """A raw ASGI app on uvicorn that reads the body, parses it and answers as much as the provider does."""
    command = [sys.executable, "-m", "uvicorn", "benchmarks.rest:app", "--port", port, "--log-level", "error"]
    with running(
        command, ready=f"http://127.0.0.1:{port}/", env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ) as pid:
        yield pid


async def app(scope, receive, send) -> None:
    """The bare app: as little as an ASGI server can do for a JSON request."""
    import orjson

    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if body:
        orjson.loads(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


@contextmanager
def ours(port: int, folder: Path, workers: int) -> Iterator[int]:
    """`aiquery serve` on a workspace."""
    command = [
        Path(sys.executable).with_name("aiquery"), "serve", "--workspace", folder, "--port", port, "--workers", workers,
        "--no-access-log", "--quiet",
    ]  # fmt: skip
    with running(command, ready=f"http://127.0.0.1:{port}/ready") as pid:
        yield pid


def install(rival: str) -> None:
    import venv

    done = FOLDER / rival / ".installed"
    if done.exists():
        return
    print(f"Installing {rival} in {done.parent}", flush=True)
    venv.create(done.parent, with_pip=True, clear=True)
    command = [FOLDER / rival / "bin/python", "-m", "pip", "install", "--quiet", *RIVALS[rival]]
    try:
        subprocess.run(command, check=True, timeout=900)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{rival} is left out: {error}", flush=True)
    else:
        done.touch()


@contextmanager
def mlflow_gateway(port: int, provider: int) -> Iterator[int]:
    config = {
        "endpoints": [
            {
                "name": "chat",
                "endpoint_type": "llm/v1/chat",
                "model": {
                    "provider": "openai",
                    "name": "gpt-4o",
                    "config": {"openai_api_key": "k", "openai_api_base": f"http://127.0.0.1:{provider}/v1"},
                },
            }
        ]
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)
        file.flush()
        command = [FOLDER / "mlflow/bin/mlflow", "gateway", "start", "--config-path", file.name, "--port", port]
        with running(
            [*command, "--workers", 1], ready=f"http://127.0.0.1:{port}/health", env=rival_environment("mlflow")
        ) as pid:
            yield pid


@contextmanager
def litellm_proxy(port: int, provider: int) -> Iterator[int]:
    base = {"api_base": f"http://127.0.0.1:{provider}/v1", "api_key": "k", "model": "openai/gpt-4o"}
    config = {"model_list": [{"model_name": "chat", "litellm_params": base}]}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)
        file.flush()
        command = [FOLDER / "litellm-proxy/bin/litellm", "--config", file.name, "--port", port, "--num_workers", 1]
        with running(
            command, ready=f"http://127.0.0.1:{port}/health/liveliness", env=rival_environment("litellm-proxy")
        ) as pid:
            yield pid


def rival_environment(rival: str) -> dict[str, str]:
    plain = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    # LiteLLM does not start without a key of its own, unless it is told that this is a play.
    plain["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    return plain | {"PATH": f"{FOLDER / rival / 'bin'}{os.pathsep}{plain['PATH']}"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--install", action="store_true", help=f"install the rivals in {FOLDER} first")
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--no-custom", action="store_true", help="leave the custom model out")
    chosen = options.parse_args()
    for rival in RIVALS if chosen.install else ():
        install(rival)
    provider = free_port()
    with running([sys.executable, LOAD, "provide", provider], ready=None), tempfile.TemporaryDirectory() as folder:
        time.sleep(0.5)
        workspace(Path(folder), provider, custom=not chosen.no_custom)
        rows = list(figures(chosen, provider, Path(folder)))
    report("rest", rows, aims(rows))


def figures(chosen: argparse.Namespace, provider: int, folder: Path) -> Iterator[dict[str, Any]]:
    chat, rows = "/serving-endpoints/chat/invocations", "/serving-endpoints/rows/invocations"

    def each(server: str, workers: int, target: Target) -> Iterator[dict[str, Any]]:
        for clients in chosen.clients:
            line = {"server": server, "workers": workers, "clients": clients}
            line |= measured(target, clients, chosen.seconds)
            print(line, flush=True)
            yield line

    yield from each("provider alone", 1, Target(None, provider, "/v1/chat/completions", CHAT))
    port = free_port()
    with bare(port) as group:
        yield from each("bare ASGI", 1, Target(group, port, "/", CHAT))
    for workers in chosen.workers:
        port = free_port()
        with ours(port, folder, workers) as group:
            yield from each("aiquery, external", workers, Target(group, port, chat, CHAT))
            if not chosen.no_custom:
                yield from each("aiquery, custom", workers, Target(group, port, rows, ROW))
    yield from rivals(each, provider)


def rivals(each: Any, provider: int) -> Iterator[dict[str, Any]]:
    """Measure the other gateways that are installed."""
    paths = {"mlflow": "/gateway/chat/invocations", "litellm-proxy": "/v1/chat/completions"}
    for rival, start in {"mlflow": mlflow_gateway, "litellm-proxy": litellm_proxy}.items():
        if not (FOLDER / rival / ".installed").exists():
            continue
        port = free_port()
        with start(port, provider) as group:
            body = CHAT if rival == "mlflow" else CHAT | {"model": "chat"}
            yield from each(rival, 1, Target(group, port, paths[rival], body))


def aims(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Say how we compare with the others in this run, and what 25,000 requests/s would take."""

    def best(server: str, workers: int = 1) -> float:
        return max((r["requests/s"] for r in rows if (r["server"], r["workers"]) == (server, workers)), default=0.0)

    own = best("aiquery, external")
    found = [
        (f"at least half of the bare ASGI app: {own / max(best('bare ASGI'), 1):.2f}", own >= 0.5 * best("bare ASGI"))
    ]
    for rival, factor in (("mlflow", 5), ("litellm-proxy", 50)):
        if best(rival):
            ratio = own / best(rival)
            found.append((f"at least {factor} times {rival} on one worker: {ratio:.1f}", ratio >= factor))
    costs = [r["CPU us"] for r in rows if r["server"] == "aiquery, external" and r["workers"] == 1 and r["CPU us"]]
    if costs:
        found.append(
            (f"25,000 requests/s take {25_000 * min(costs) / 1e6:.1f} cores at {min(costs):.0f} us a request", True)
        )
    return found
