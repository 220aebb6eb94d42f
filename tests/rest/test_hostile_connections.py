"""Clients that stall, flood, mumble and vanish: each gets a coded answer or is hung up on, and nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

import aiquery
from aiquery.server import serve
from aiquery_serving.rest.connection import HEAD_CAP, STALLED_SECONDS, Connection
from aiquery_serving.rest.corked import Corked

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
#: Answered when its body has come; the next, at once: there is no such endpoint.
READ = b"POST /serving-endpoints/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
POST = b"POST /serving-endpoints/none/invocations HTTP/1.1\r\nhost: localhost\r\n"


@pytest.fixture(scope="module")
def workspace():
    with aiquery.Workspace(":memory:", user="ada") as opened:
        yield opened


@pytest.fixture(scope="module")
def server(workspace):
    with serve(workspace, header_seconds=0.4, body_seconds=0.4, idle_seconds=2) as running:
        yield running


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=8)


def rest_of(client):
    """Return what the server still sends until it hangs up."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answers(received):
    """Return the (status, JSON body) of each answer in what was received."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:"))
        found.append((int(lines[0].split()[1]), json.loads(received[:length])))
        received = received[length:]
    return found


def exchanged(server, *sent):
    with connect(server) as client:
        for part in sent:
            client.sendall(part)
        return answers(rest_of(client))


def dripping(server, first, drop):
    """Send some bytes now and then, for at most 8 seconds; return the answers, and the seconds until it was over."""
    began = time.monotonic()
    with connect(server) as client:
        client.sendall(first)
        client.settimeout(0.1)
        received = b""
        while time.monotonic() < began + 8:
            try:
                part = client.recv(65536)
            except TimeoutError:
                pass
            except ConnectionResetError:
                break
            else:
                if not part:
                    break
                received += part
            try:
                client.sendall(drop)
            except OSError:
                break
        return answers(received), time.monotonic() - began


SLOW = {
    "says nothing": (b"", b"", []),
    "sends half a head": (b"GET /health HTTP/1.1\r\nhost: loc", b"", [408]),
    "drips a head": (b"GET /health HTTP/1.1\r\n", b"x", [408]),
    "drips a second head": (GET + b"GET /health HTTP/1.1\r\n", b"x", [200, 408]),
    "drips blank lines": (b"", b"\r\n", [408]),
    "drips a body": (READ + b"content-length: 1000\r\n\r\n", b" ", [408]),
    "drips chunks": (READ + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n", [408]),
    "goes on after the answer": (b"PUT /none HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n", b" ", [404]),
}  # fmt: skip


def test_slow_clients_are_hung_up_on(server):
    """Together, for each takes a second or two."""
    ended = {}

    def be(name):
        ended[name] = dripping(server, *SLOW[name][:2])

    threads = [threading.Thread(target=be, args=(name,)) for name in SLOW]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: [status for status, _ in got] for name, (got, _) in ended.items()} == {
        name: statuses for name, (_, _, statuses) in SLOW.items()
    }
    assert all(body["error_code"] for got, _ in ended.values() for status, body in got if status != 200)
    assert max(seconds for _, seconds in ended.values()) < 5


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # TLS where none is spoken
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /h\xc3\xa4 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        READ + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_gets_a_coded_400(server, sent):
    got = exchanged(server, sent)
    assert [status for status, _ in got] == [400]
    assert got[0][1]["error_code"] == "BAD_REQUEST"


@pytest.mark.parametrize("part", [1000, 10**6])
def test_a_head_beyond_the_cap_is_refused(server, part):
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * (HEAD_CAP + 1)
    with connect(server) as client:
        for at in range(0, len(head), part):
            client.sendall(head[at : at + part])
        if part > HEAD_CAP:
            client.sendall(b"\r\n\r\n")
        assert [status for status, _ in answers(rest_of(client))] == [431]


def test_a_large_head_within_the_cap_is_served(server):
    assert httpx.get(server.url + "/health", headers={"x": "x" * (HEAD_CAP - 1000)}).status_code == 200


def test_a_large_body_is_no_large_head(server):
    assert httpx.put(server.url + "/none", content=b"x" * 3_000_000).json()["error_code"] == "ENDPOINT_NOT_FOUND"


def test_endless_trailers_end_the_connection(server):
    with connect(server) as client:
        client.sendall(READ + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx: ")
        with pytest.raises(OSError):  # noqa: PT012
            for _ in range(200):
                client.sendall(b"x" * 65536)
                time.sleep(0.001)


def test_trailers_are_no_headers(server):
    chunks = b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\n{}\r\n0\r\n"
    with connect(server) as client:
        client.sendall(READ + chunks + b"x-request-id: trailing\r\n\r\n")
        received = rest_of(client)
    assert b"x-request-id" in received
    assert b"trailing" not in received


def test_upgrades_are_not_made(server):
    upgrade = (
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    assert exchanged(server, GET[:-2] + upgrade) == [(200, {"status": "ok"})]
    http2 = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    got = exchanged(server, POST + http2 + b"content-length: 2\r\n\r\n{}")
    assert [(status, body["error_code"]) for status, body in got] == [(404, "RESOURCE_DOES_NOT_EXIST")]


def test_requests_in_a_row_are_answered_in_order(server):
    other = b"GET /.well-known/databricks-config HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    assert exchanged(server, GET + GET + other) == [(200, {"status": "ok"})] * 2 + [(200, {})]


def test_what_follows_a_request_does_not_cut_its_answer_off(server):
    assert exchanged(server, GET + b"GARBAGE\r\n\r\n")[0] == (200, {"status": "ok"})


def test_beyond_the_most_connections_the_answer_is_a_coded_503(workspace):
    with serve(workspace, max_connections=2) as server, connect(server) as first, connect(server) as second:
        for client in (first, second):
            client.sendall(GET)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        with connect(server) as third:
            third.sendall(GET)
            received = rest_of(third)
        assert b"retry-after: 1" in received.lower()
        assert [(status, body["error_code"]) for status, body in answers(received)] == [
            (503, "TEMPORARILY_UNAVAILABLE")
        ]
        first.sendall(GET)
        assert first.recv(4096).startswith(b"HTTP/1.1 200")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_and_drop(server, count):
    for number in range(0, count, 250):
        clients = [connect(server) for _ in range(min(250, count - number))]
        for index, client in enumerate(clients):
            if index % 2:
                client.sendall(READ + b"content-length: 900\r\n\r\n{" if index % 3 else GET[:20])
        for client in clients:
            client.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors where Linux shows them")
def test_ten_thousand_dropped_connections_leave_nothing_behind(server):
    open_and_drop(server, 2_000)
    before, memory = descriptors(), resident()
    open_and_drop(server, 10_000)
    deadline = time.monotonic() + 10
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptors() <= before
    gc.collect()
    assert resident() - memory < 16 * 2**20
    assert httpx.get(server.url + "/health").status_code == 200


class Wire(asyncio.Transport):
    """A client that takes nothing."""

    def __init__(self):
        super().__init__()
        self.aborted = self.closing = False
        self.written = b""

    def get_extra_info(self, name, default=None):
        return default

    def write(self, data):
        self.written += data

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    def abort(self):
        self.aborted = True


async def never(scope, receive, send):
    await asyncio.Event().wait()


def connected():
    config = uvicorn.Config(never, http=Connection, ws="none", lifespan="off", log_config=None, interface="asgi3")
    config.load()
    connection = Connection(config, ServerState(), {}, _loop=asyncio.get_running_loop())
    connection.wire = Wire()
    connection.connection_made(connection.wire)
    return connection


def seconds_until_aborted(connection):
    now = asyncio.get_running_loop().time()
    for second in range(1000):
        connection.tick(now + second, 10)
        if connection.wire.aborted:
            return second
    return None


@pytest.mark.parametrize(
    ("stalls", "expected"),
    [
        (lambda connection: None, 10),
        (lambda connection: connection.data_received(GET), None),
        (lambda connection: (connection.data_received(GET), connection.pause_writing()), int(STALLED_SECONDS) + 1),
        (lambda connection: (connection.data_received(GET), connection.pause_writing(), connection.resume_writing()), None),
        (lambda connection: connection.transport.close(), 10),
    ],
    ids=["says nothing", "waits for an answer", "takes nothing", "takes all", "takes nothing at the end"],
)  # fmt: skip
def test_connections_end_when_their_client_owes_something_for_too_long(stalls, expected):
    async def run():
        connection = connected()
        stalls(connection)
        seconds = seconds_until_aborted(connection)
        for task in connection.tasks:
            task.cancel()
        return seconds

    assert asyncio.run(run()) == expected


def test_a_client_that_takes_a_little_now_and_then_is_not_hung_up_on():
    async def run():
        connection, now = connected(), asyncio.get_running_loop().time()
        connection.data_received(GET)
        for second in range(0, 1000, 100):
            connection.pause_writing()
            connection.tick(now + second, 10)
            connection.resume_writing()
        assert not connection.wire.aborted
        for task in connection.tasks:
            task.cancel()

    asyncio.run(run())


def test_a_head_beyond_the_cap_is_refused_though_it_comes_in_one_piece():
    async def run():
        connection = connected()
        connection.data_received(GET[:-2] + b"x: " + b"x" * HEAD_CAP + b"\r\n\r\n")
        assert not connection.tasks
        assert [status for status, _ in answers(connection.wire.written)] == [431]

    asyncio.run(run())


def test_what_is_written_in_one_turn_leaves_in_one_piece():
    async def run():
        wire = Wire()
        corked = Corked(wire, asyncio.get_running_loop())
        corked.write(b"head")
        corked.write(bytearray(b" and body"))
        assert (wire.written, corked.get_write_buffer_size()) == (b"", 13)
        await asyncio.sleep(0)
        assert wire.written == b"head and body"
        corked.write(b", the end")
        corked.close()
        assert (wire.written, wire.closing) == (b"head and body, the end", True)

    asyncio.run(run())
