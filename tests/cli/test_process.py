"""The installed command as a process: quick, complete, interruptible, and quiet when its reader has gone."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aiquery.cli import app

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-c", "from aiquery.cli import main; main()"]


@pytest.fixture
def environment(home):
    paths = os.pathsep.join(map(str, [ROOT, ROOT / "udfs", ROOT / "serving"]))
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": paths, "AIQUERY_HOME": str(home), "PYTHONWARNINGS": "error::ResourceWarning"}


def start(environment, *arguments, **options):
    command = [*RUN, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def run(environment, *arguments, **options):
    process = start(environment, *arguments, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def interrupted(environment, ready, *arguments):
    """Press Ctrl-C once `ready` says so; return the exit code, the words, and the seconds it took."""
    process = start(environment, *arguments)
    deadline = time.monotonic() + 30
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    return process.returncode, err, time.monotonic() - pressed


def test_errors_are_one_sentence_and_verbose_shows_where(environment):
    assert run(environment, "endpoints", "get", "nope") == (3, "", "Error: Endpoint with name 'nope' does not exist.\n")
    code, _, err = run(environment, "endpoints", "get", "nope", "--verbose")
    assert code == 3
    assert "Traceback" in err


def test_ctrl_c_ends_a_query_that_waits_for_answers(environment, gpt):
    gpt.delay = 60.0
    sql = "SELECT ai_query('gpt', 'n' || i) FROM range(5000) t(i)"
    code, err, seconds = interrupted(environment, lambda: len(gpt.requests) > 10, "sql", sql)

    assert (code, err) == (130, "Interrupted.\n")
    assert seconds < 5


def test_ctrl_c_ends_a_query_that_only_computes(environment, tmp_path):
    mark = tmp_path / "mark.csv"
    sql = f"COPY (SELECT 1) TO '{mark}'; SELECT sum(a.range) FROM range(1000000) a, range(1000000) b"
    code, err, _ = interrupted(environment, mark.exists, "sql", sql)
    assert (code, err) == (130, "Interrupted.\n")


def test_ctrl_c_keeps_what_a_job_has_paid_for(environment, gpt, tmp_path):
    gpt.delay = lambda body: 0.0 if int(body["messages"][0]["content"]) < 50 else 60.0
    (tmp_path / "job.sql").write_text("SELECT ai_query('gpt', '' || i) FROM range(100) t(i)")
    job = ("run", tmp_path / "job.sql", "-o", tmp_path / "out.csv")
    code, err, _ = interrupted(environment, lambda: len(gpt.requests) == 100, *job)
    gpt.delay = 0.0
    sent = len(gpt.requests)

    assert code == 130
    assert "run the job again" in err
    assert run(environment, *job)[0] == 0
    assert len(gpt.requests) - sent == 50


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_a_reader_that_has_enough_ends_the_command_in_silence(environment, kind):
    process = start(environment, "sql", "FROM range(3000000)", "--output", kind)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


def test_a_full_disk_is_told(environment):
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [*RUN, "version"], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (process.returncode, process.stderr) == (1, "Error: No space left on device.\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(environment, shell):
    words = {"COMP_WORDS": "aiquery endp", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "aiquery endp"}
    asked = environment | words | {"_AIQUERY_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code, out, _ = run(asked)
    assert code == 0
    assert "endpoints" in out


def test_help_is_quick_and_loads_no_engine(environment):
    code = (
        "import sys, time\nbegan = time.perf_counter()\nfrom aiquery.cli import main\nsys.argv = ['aiquery', '--help']\n"
        "try:\n    main()\nfinally:\n    print(time.perf_counter() - began, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    seconds, *modules = done.stderr.split()

    assert "endpoints" in done.stdout
    assert not {"duckdb", "pandas", "mlflow", "pyarrow", "yaml", "aiquery_serving", "aiquery.client"} & set(modules)
    assert float(seconds) < 1.0


def commands(click, path=()):
    for name, command in getattr(click, "commands", {}).items():
        yield (*path, name), command
        yield from commands(command, (*path, name))


def every_command():
    import typer.main

    return list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("path", "command"), every_command(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_is_documented_and_every_example_can_be_read(path, command):
    if not hasattr(command, "commands"):
        assert f"`aiquery {' '.join(path)}" in (ROOT / "docs" / "reference" / "cli.md").read_text()
        assert "\n\b\nExamples:\n" in command.help
    for line in command.help.partition("Examples:")[2].splitlines():
        for part in line.partition("(")[0].split(" | ") if "ai_query(" not in line else [line]:
            if part.strip().startswith("aiquery "):
                words = shlex.split(part.partition(" > ")[0])[1:]
                assert words[0] == path[0]
                result = CliRunner().invoke(app, [*words, "--help"])
                assert result.exit_code == 0, result.output
