"""Real processes on one workspace keep its rate limits together, also when one of them is killed."""

import subprocess
import sys
import time
from bisect import bisect_left
from pathlib import Path

import pytest
from engine_endpoints import external
from providers import OpenAIServer

import aiquery

pytestmark = pytest.mark.slow

CALLS, PERIOD = 100, 2.0

#: Sends chat requests as fast as it may and prints when each was admitted, in seconds since 1970.
PROGRAM = f"""
import asyncio, sys, time
import aiquery
from aiquery_serving import limits
from aiquery_serving.admission import Admission
from aiquery_udfs.engine_thread import engine_thread

limits.PERIODS["minute"] = {PERIOD}
take = Admission._take

def noted(self, asked):
    print(time.time(), flush=True)
    return take(self, asked)

async def main(gateway, count):
    body = {{"messages": [{{"role": "user", "content": "hello"}}]}}
    await asyncio.gather(*(gateway.invoke("chat", body) for _ in range(count)))

Admission._take = noted
with aiquery.Workspace(sys.argv[1]) as workspace:
    print("ready", flush=True)
    sys.stdin.readline()
    engine_thread.run(main(workspace.gateway, int(sys.argv[2])))
"""


@pytest.fixture
def folder(tmp_path):
    with OpenAIServer() as server, aiquery.Workspace(tmp_path / "ws") as workspace:
        entity = external(server, "llm/v1/chat", "gpt-4o")
        limit = {"calls": CALLS, "renewal_period": "minute"}
        workspace.create_endpoint("chat", {"served_entities": [entity]}, rate_limits=[limit])
        yield tmp_path / "ws"


@pytest.fixture
def start(folder):
    """Start programs at once: each is given how many calls to send."""
    running = []

    def started(*counts):
        for count in counts:
            command = [sys.executable, "-c", PROGRAM, str(folder), str(count)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running.append(subprocess.Popen(command, env={"PYTHONPATH": ":".join(sys.path)}, text=True, **pipes))
        for program in running:
            assert program.stdout.readline() == "ready\n", program.communicate()[1]
        for program in running:
            program.stdin.write("\n")
            program.stdin.flush()
        return running

    yield started
    for program in running:
        program.kill()
        program.communicate()


def stamps(program):
    out, err = program.communicate(timeout=60)
    assert err == ""
    return [float(line) for line in out.split()]


def most_in_any_period(sent):
    ordered = sorted(sent)
    return max(bisect_left(ordered, at + PERIOD) - place for place, at in enumerate(ordered))


def test_two_processes_never_exceed_a_limit_together_and_both_get_their_share(start):
    sent = [stamps(program) for program in start(200, 200)]
    assert [len(one) for one in sent] == [200, 200]
    merged = sorted(sent[0] + sent[1])
    assert most_in_any_period(merged) == CALLS
    # 400 calls need three renewals.
    assert merged[-1] - merged[0] < PERIOD * 3.9
    ended = sorted(one[-1] for one in sent)
    assert ended[1] - ended[0] < PERIOD * 1.5


def test_ten_processes_lose_no_time_together(start):
    sent = [stamps(program) for program in start(*[20] * 10)]
    merged = sorted(at for one in sent for at in one)
    assert (len(merged), most_in_any_period(merged)) == (200, CALLS)
    # 200 calls need one renewal.
    assert merged[-1] - merged[0] < PERIOD * 1.9


def test_a_process_that_is_killed_holds_up_the_other_no_longer_than_what_it_sent(start):
    victim, other = start(400, 200)
    time.sleep(PERIOD * 1.2)
    victim.kill()
    killed_at = time.time()
    out, _ = victim.communicate()
    sent = stamps(other)
    whole = [float(line) for line in out.split("\n")[:-1]]
    assert len(sent) == 200
    assert CALLS / 4 < len(whole) < 400
    assert most_in_any_period(sent + whole) <= CALLS
    assert max(sent) - killed_at < PERIOD * 3.2


def test_the_lease_file_is_the_owners_alone(start, folder):
    stamps(start(1)[0])
    assert Path(folder / "limits.db").stat().st_mode & 0o777 == 0o600
