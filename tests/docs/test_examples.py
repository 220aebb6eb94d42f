"""Every program in examples/ runs as a person would run it, and says nothing on stderr that is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from providers import KEY, OpenAIServer

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What MLflow prints whenever a model is registered.
REGISTERED = ("Successfully registered model", "Created version")


@pytest.fixture
def run(tmp_path):
    """Run an example in an empty folder and return its output, and what else it wrote to stderr."""

    def started(name: str, *arguments: str, **environment: str) -> tuple[str, list[str]]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AIQUERY_"))}
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            env={**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONIOENCODING": "utf-8", **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert list(tmp_path.iterdir()) == [], "an example left files behind"
        return done.stdout, [line for line in done.stderr.splitlines() if line and not line.startswith(REGISTERED)]

    return started


def test_every_example_is_tested():
    tested = {"traffic_split.py", "star_ratings.py", "similar_texts.py", "python_model.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_traffic_split(run):
    out, noise = run("traffic_split.py")
    table = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    shares = [(cells[1].strip(), cells[3].strip()) for cells in table]
    assert shares == [("current", "90.00%"), ("challenger", "10.00%"), ("current", "50.00%"), ("challenger", "50.00%")]
    assert out.count("rows/s") == 2
    assert noise == []


def stars(prompt: str) -> str:
    review = prompt.partition("Review: ")[2]
    return {"Best": "5", "Cold": "1", "Fine": "3"}.get(review.split()[0].strip("."), "It does not say.")


def test_star_ratings(run):
    with OpenAIServer(answer=stars) as server:
        out, noise = run("star_ratings.py", OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY)
        assert len(server.requests) == 4
    assert "AI_FUNCTION_HTTP_PARSE_CAST_ERROR" in out
    assert "4 calls" in out
    assert noise == []


def test_similar_texts(run):
    with OpenAIServer() as server:
        question = "Parcels leave our house on weekdays before noon."
        out, noise = run("similar_texts.py", question, OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY)
        assert [len(body["input"]) for body in server.requests] == [4, 1]
    best = next(line for line in out.splitlines() if "1.0" in line)
    assert "Delivery" in best
    assert noise == []


def test_python_model(run):
    out, noise = run("python_model.py")
    assert out.index("The cat") < out.index("Ask me") < out.index("Notwithstanding")
    assert "116.1" in out
    assert noise == []
