"""Other libraries beside ours, each in an environment of its own: throughput, duplicates, a hard limit.

`make bench-rivals` installs them first (`--install`), outside of this folder; what cannot be installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from providers import KEY, OpenAIServer

from benchmarks.report import report

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "aiquery-rivals"
#: What each needs; some wheels forget what they import.
RIVALS = {
    "fenic": ["fenic", "tqdm", "httpx"],
    "curator": ["bespokelabs-curator"],
    "litellm": ["litellm"],
    "daft": ["daft", "openai", "numpy"],
}
INSTALL_SECONDS, RUN_SECONDS = 900, 120
#: Rows, distinct prompts, and the provider.
SCENARIOS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "throughput": (1000, 1000, {"delay": 0.1}),
    "duplicates": (2000, 100, {"delay": 0.02}),
    "hard_limit": (500, 500, {"delay": 0.02, "limit": (300, 10.0), "headers": True}),
}


class Provider(OpenAIServer):
    """Refuses a chat without messages, as OpenAI does: curator sends one to see the limits in the headers."""

    def refuse(self, request, body):
        if body.get("messages") == []:
            return self.error(400, "Invalid 'messages': empty array. Expected an array with minimum length 1.")
        return super().refuse(request, body)


def python(rival: str) -> Path:
    """Return the interpreter that has a library."""
    if rival == "aiquery":
        return Path(sys.executable)
    return FOLDER / rival / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(rival: str) -> None:
    """Make a library's environment, once."""
    done = FOLDER / rival / ".installed"
    if done.exists():
        return
    print(f"Installing {rival} in {done.parent}", flush=True)
    venv.create(done.parent, with_pip=True, clear=True)
    command = [python(rival), "-m", "pip", "install", "--quiet", *RIVALS[rival]]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{rival} is left out: {error}", flush=True)
    else:
        done.touch()


def environment() -> dict[str, str]:
    """Return what the libraries need to run without a network, and without reporting to their makers."""
    tokens = next(FOLDER.glob("litellm/lib/*/site-packages/litellm/litellm_core_utils/tokenizers"), None)
    return os.environ | {
        "OPENAI_API_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DO_NOT_TRACK": "1",
        "DAFT_ANALYTICS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **({"TIKTOKEN_CACHE_DIR": str(tokens)} if tokens else {}),
    }


def run(rival: str, scenario: str) -> dict[str, Any]:
    """Run one library through one scenario."""
    rows, distinct, knobs = SCENARIOS[scenario]
    ours = rival == "aiquery"
    environ = environment() if ours else {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    program = Path(__file__).with_name("rival_programs.py")
    with Provider(**knobs) as server:
        command = [python(rival), "-P", program, rival, server.url, str(rows), str(distinct)]
        try:
            done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=RUN_SECONDS, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            found = {"seconds": float(RUN_SECONDS), "rows": 0, "failure": "stopped after so long"}
        except (subprocess.CalledProcessError, ValueError, IndexError) as error:
            found = {"seconds": 0.0, "rows": 0, "failure": str(getattr(error, "stderr", None) or error)[-200:]}
        answers = server.stats.statuses.get(200, 0)
        found |= {"calls": len(server.requests), "429s": server.stats.too_many, "paid": answers}
    line = {"scenario": scenario, "library": rival, "of": rows, "rows/s": found["rows"] / max(found["seconds"], 1e-9)}
    print(line | found, flush=True)
    found["failure"] = " ".join(found["failure"].split())[:60]
    return line | found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--install", action="store_true", help=f"install the libraries in {FOLDER} first")
    options.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    options.add_argument("--libraries", nargs="+", choices=RIVALS, default=list(RIVALS))
    chosen = options.parse_args()
    for rival in chosen.libraries if chosen.install else ():
        install(rival)
    present = ["aiquery", *(rival for rival in chosen.libraries if (FOLDER / rival / ".installed").exists())]
    rows = [run(rival, scenario) for scenario in chosen.only for rival in present]
    report("rivals", rows, aims(rows))


def aims(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Say how our throughput compares with the best of theirs."""
    rates = {row["library"]: row["rows/s"] for row in rows if row["scenario"] == "throughput"}
    ours, best = rates.pop("aiquery", 0.0), max(rates.values(), default=0.0)
    return [(f"throughput: >= 3 times the best of them ({ours / best:.1f})", ours >= 3 * best)] if best else []
