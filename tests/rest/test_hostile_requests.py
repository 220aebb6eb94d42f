"""Requests that no client of good will sends, byte by byte: each has a coded answer, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import socket
import struct
import time
from pathlib import Path

import httpx
import pytest
from engine_endpoints import external
from providers import OpenAIServer

import aiquery
from aiquery.server import serve
from aiquery_udfs.engine_thread import engine_thread

HOST = b"host: localhost\r\n"
HELLO = b'{"messages":[{"role":"user","content":"hi"}]}'
INVOKE = b"/serving-endpoints/chat/invocations"
API = b"/api/2.0/serving-endpoints"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server():
    with OpenAIServer() as provider, aiquery.Workspace(":memory:", user="ada") as workspace:
        workspace.create_endpoint("chat", {"served_entities": [external(provider, "llm/v1/chat", "gpt-4o", "gpt")]})
        with serve(workspace, body_seconds=0.5) as running:
            yield running


def request(method=b"POST", path=INVOKE, more=b"", *, body=HELLO, version=b"1.1", head=HOST, length=True):
    size = b"content-length: %d\r\n" % len(body) if length else b""
    return b"%b %b HTTP/%b\r\n%bconnection: close\r\n%b%b\r\n%b" % (method, path, version, head, size, more, body)


def get(path, method=b"GET"):
    return request(method, path, body=b"")


def sized(header, body=HELLO):
    return request(more=header, body=body, length=False)


def posted(body, path=API, more=b""):
    return request(path=path, body=body, more=more)


def chunks(*parts):
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


BOMB = gzip.compress(b" " * 50_000_000, mtime=0)
CASES = {
    # Of another time, or with nothing wrong but the looks.
    "http/1.0": (200, request(version=b"1.0")),
    "http/1.0 without a host": (200, request(version=b"1.0", head=b"")),
    "an absolute target": (200, request(path=b"http://localhost" + INVOKE)),
    "a long query": (200, request(path=INVOKE + b"?" + b"a=b&" * 10_000)),
    "thousands of headers": (200, request(more=b"".join(b"x-%d: y\r\n" % each for each in range(4000)))),
    "a body where none is read": (200, request(b"GET", API)),
    "a chunk per byte": (200, sized(CHUNKED, chunks(*(bytes([each]) for each in HELLO)))),
    "an id that is no text": (200, request(more=b"x-request-id: \xff\xfe\r\n")),
    "an odd expectation": (200, request(more=b"expect: 200-ok\r\n")),
    # Methods.
    **{method.decode(): (405, get(API, method)) for method in (b"TRACE", b"PROPFIND", b"OPTIONS", b"MKCOL", b"PURGE")},
    "a method in lower case": (400, get(API, b"get")),
    "a method that is none": (400, get(API, b"GETX")),
    "no method": (400, b" / HTTP/1.1\r\n\r\n"),
    "http/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    # Paths.
    "a long path": (404, get(b"/" + b"x" * 50_000)),
    "a long name": (404, request(path=b"/serving-endpoints/" + b"a" * 50_000 + b"/invocations")),
    "a star": (404, get(b"*", b"OPTIONS")),
    "double slashes": (404, request(path=INVOKE.replace(b"/", b"//"))),
    "a way around": (404, request(path=b"/x/.." + INVOKE)),
    "an encoded way around": (404, request(path=b"/x/%2e%2e" + INVOKE)),
    "an encoded slash": (404, request(path=b"/serving-endpoints%2Fchat%2Fx/invocations")),
    "a zero byte": (404, request(path=b"/serving-endpoints/chat%00/invocations")),
    "a line's end": (404, request(path=b"/serving-endpoints/chat%0d%0ax:y/invocations")),
    "half a character": (404, request(path=b"/serving-endpoints/%ff%fe/invocations")),
    "a broken escape": (404, request(path=b"/serving-endpoints/%zz/invocations")),
    "a zero byte in a name": (404, get(API + b"/a%00b")),
    "a surrogate in a name": (404, get(API + b"/%ed%a0%80")),
    "a zero byte for an id": (404, get(b"/api/2.0/permissions/serving-endpoints/%00")),
    # Headers.
    "too many headers": (431, request(more=b"".join(b"x-%d: y\r\n" % each for each in range(9000)))),
    "a folded header": (400, request(more=b"x: a\r\n b\r\n")),
    "a header without a name": (400, request(more=b": x\r\n")),
    "a name with a space": (400, request(more=b"x y: z\r\n")),
    "lines that end alone": (400, request().replace(b"\r\n", b"\n")),
    # Lengths.
    "a signed length": (400, sized(b"content-length: +45\r\n")),
    "a length below zero": (400, sized(b"content-length: -5\r\n")),
    "a list of lengths": (400, sized(b"content-length: 45, 45\r\n")),
    "a length beyond counting": (400, sized(b"content-length: 99999999999999999999999\r\n")),
    "a length of half of all": (413, sized(b"content-length: 9223372036854775808\r\n")),
    "a coding that is none": (400, sized(b"transfer-encoding: xchunked\r\n", chunks())),
    "a coding that is not last": (400, sized(b"transfer-encoding: chunked, gzip\r\n", chunks())),
    "a coding twice": (400, sized(b"transfer-encoding: chunked, chunked\r\n", chunks())),
    "a chunk beyond counting": (400, sized(CHUNKED, b"f" * 19 + b"\r\nx")),
    "a chunk that does not come": (408, sized(CHUNKED, b"ffffffffffffffff\r\nx")),
    "a chunk of no size": (400, sized(CHUNKED, b"\r\n\r\n")),
    # Bodies.
    "a bomb": (413, posted(BOMB, INVOKE, b"content-encoding: gzip\r\n")),
    "a bomb for the control plane": (413, posted(BOMB, API, b"content-encoding: gzip\r\n")),
    "a packing that is not read": (415, request(more=b"content-encoding: br\r\n")),
    "lists without end": (400, posted(b'{"name":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "objects without end": (400, posted(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    "a number without end": (400, posted(b'{"name":' + b"9" * 1_000_000 + b"}")),
    "a number that is none": (400, posted(b'{"messages":NaN}', INVOKE)),
    "a key twice": (400, posted(b'{"name":"a","name":"b"}')),
    "another alphabet": (400, posted(HELLO.decode().encode("utf-16"), INVOKE)),
    "a mark before it": (400, posted(b"\xef\xbb\xbf" + HELLO, INVOKE)),
    "half a character in it": (400, posted(b'{"a":"\xc3("}', INVOKE)),
    "half a pair": (400, posted(b'{"name":"\\ud800"}')),
    "a misspelt header": (400, posted(b"no json", INVOKE, b"Context-Type: text/json\r\n")),
    "another type": (415, posted(b"a,b", INVOKE, b"content-type: text/csv\r\n")),
}  # fmt: skip


def exchanged(server, sent):
    """Send bytes, and return the status and the body of the one answer."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(sent)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_request_has_a_coded_answer(server, name):
    expected, sent = CASES[name]
    status, body = exchanged(server, sent)
    assert status == expected, body[:300]
    if status != 200:
        error = json.loads(body)
        assert error.keys() == {"error_code", "message"}
        assert error["error_code"]


@pytest.mark.parametrize(
    ("path", "status"), [(b"/health", 200), (b"/none", 404), (INVOKE, 405), (API, 405), (b"/openapi.json", 405)]
)
def test_the_answer_to_head_has_no_body(server, path, status):
    assert exchanged(server, get(path, b"HEAD")) == (status, b"")


def test_who_waits_to_be_told_to_go_on_is_told(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(request(more=b"expect: 100-continue\r\n")[: -len(HELLO)])
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(HELLO)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def vanish(server, sent):
    """Send bytes, and reset the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(sent)


def vanish_now_and_then(server):
    stream = request(body=HELLO[:-1] + b',"stream":true}')
    for sent in (request()[:-5], request(), stream, sized(CHUNKED, b"5\r\n{"), posted(BOMB[:9000], INVOKE), get(API)):
        vanish(server, sent)


async def _tasks():
    return len(asyncio.all_tasks())


def held():
    """Return how many descriptors and tasks there are, and the bytes of memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), engine_thread.run(_tasks()), pages * os.sysconf("SC_PAGE_SIZE")  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux shows")
def test_whatever_was_sent_nothing_stays(server):
    quick = [sent for status, sent in CASES.values() if status != 408]

    def everything(times):
        for _ in range(times):
            for sent in quick:
                exchanged(server, sent)
            vanish_now_and_then(server)

    everything(2)
    descriptors, tasks, memory = held()
    rounds = 5
    everything(rounds)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (held()[0] > descriptors or held()[1] > tasks):
        time.sleep(0.05)
    after = held()
    # What leaks does so in every round; a connection to the provider that is kept for the next request does not.
    assert after[0] - descriptors < rounds
    assert after[1] <= tasks
    assert after[2] - memory < 32 * 2**20
    assert httpx.post(server.url + INVOKE.decode(), content=HELLO).status_code == 200
