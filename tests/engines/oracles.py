"""Models in the test's own process, as many as a query asks for, that answer at once and remember what came."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import duckdb
import polars as pl
import pyarrow as pa
from engines.query_shapes import Shape

import aiquery
from aiquery_serving.errors import ProviderRequestError
from aiquery_serving.messages import CHAT, EMBEDDINGS, Response
from aiquery_udfs import duckdb_engine

#: What an endpoint takes at once.
CONCURRENCY = 32
PLAIN, STOCK, SESSION = MODES = ("plain", "stock", "session")


def digest(salt: int, text: str) -> int:
    """Return a number that nobody would guess from a text, the same in every process."""
    return crc32(text.encode(), salt) >> 7


def answer(endpoint: str, prompt: str, salt: int = 0) -> str:
    """Say what the chat endpoints say."""
    number = digest(salt, prompt)
    match endpoint:
        case "cls":
            return "abc"[number % 3]
        case "num":
            return str(number % 10)
        case "bad" if number % 5 == 0:
            raise ProviderRequestError(f"I will not talk of {prompt}.")
        case _:
            return f"R:{prompt}"


class Oracles(aiquery.Workspace):
    """A workspace in memory whose endpoints are answered by `say(endpoint, prompt)`, after `delay` seconds."""

    def __init__(self) -> None:
        super().__init__(":memory:", user="ada@example.com")
        self.asked: Counter[tuple[str, str]] = Counter()
        self.say: Callable[[str, str], str] = answer
        self.delay: Callable[[str], float] = lambda prompt: 0.0
        #: The one prompt that is answered only when so many requests have come, or after two seconds.
        self.held, self.until, self.seen = "", 0, 0
        for name in ("ep", "sum", "cls", "num", "bad", "emb"):
            task = EMBEDDINGS if name == "emb" else CHAT
            self.create_endpoint(name, {"served_entities": [self.declared(name, task)]})

    def declared(self, name: str, task: str) -> dict:
        """Declare the served entity of an endpoint."""
        model = {"provider": "openai", "name": name, "task": task, "openai_config": {"openai_api_key_plaintext": "k"}}
        return {"external_model": model, "max_provisioned_concurrency": CONCURRENCY}

    def _load(self, entity: Any, say: Any) -> Any:
        return Oracle(self, entity.external_model.name, entity.external_model.task)

    async def everything(self) -> None:
        """Wait for the requests that `until` says."""
        deadline = time.monotonic() + 2
        while self.asked.total() < self.until and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self.seen = self.asked.total()

    def heard(self) -> Counter[tuple[str, str]]:
        """Return what was asked since the last time."""
        asked, self.asked = self.asked, Counter()
        return asked


@dataclass
class Oracle:
    """One served entity."""

    world: Oracles
    name: str
    task: str

    async def send(self, body: Mapping[str, Any]) -> Response:
        world, prompts = self.world, [body["messages"][-1]["content"]] if self.task == CHAT else body["input"]
        world.asked.update((self.name, prompt) for prompt in prompts)
        await asyncio.sleep(max(map(world.delay, prompts)))
        if world.held in prompts:
            await world.everything()
        return Response(body=self._spoken(prompts) if self.task == CHAT else _embedded(prompts))

    def _spoken(self, prompts: list[str]) -> dict:
        return {"choices": [{"message": {"role": "assistant", "content": self.world.say(self.name, prompts[0])}}]}

    async def close(self) -> None:
        """Hold nothing."""


def _embedded(prompts: list[str]) -> dict:
    return {"data": [{"embedding": [float(digest(salt, text) % 8) for salt in range(4)]} for text in prompts]}


@dataclass
class Stage:
    """Where shapes are run: the oracles, the folder of the files that some shapes read, and DuckDB's threads."""

    oracles: Oracles
    folder: str
    threads: int = 2

    def run(self, shape: Shape, rows: int, mode: str) -> tuple[list[Any], Counter[tuple[str, str]]]:
        """Run a shape over `rows` rows; return what it yields, and leaves, and what was asked for that."""
        with self.connected(rows, mode) as con:
            self._bring(con, shape.sql)
            for part in (shape.setup, shape.sql):
                found = con.execute(part.replace("$folder", self.folder)).fetchall() if part else []
            asked = self.oracles.heard()
            if shape.then:
                found += con.execute(shape.then.replace("$folder", self.folder)).fetchall()
        return (found if shape.ordered else sorted(found, key=repr)), asked

    def connected(self, rows: int, mode: str) -> Any:
        """Open a connection of one kind that has the tables; `threads` of DuckDB work for it."""
        if mode == SESSION:
            con = aiquery.connect(workspace=self.oracles, progress=False)
        else:
            con = duckdb.connect()
            duckdb_engine.register(con, self.oracles.execution, look_ahead=mode == STOCK)
        con.execute(f"SET threads = {self.threads}; CREATE TABLE t AS {table(rows)}")
        con.execute("CREATE TABLE s AS SELECT i * 50 AS i, 'v' || i AS v FROM range(40) r(i)")
        self.oracles.heard()
        return con

    def _bring(self, con: Any, sql: str) -> None:
        """Bring the files and frames that a statement reads."""
        for kind in ("parquet", "csv"):
            if f"$folder/t.{kind}" in sql:
                con.execute(f"COPY t TO '{self.folder}/t.{kind}'")
        for name, made in _FRAMES.items():
            if name in sql:
                con.register(name, made(con.sql("FROM t").to_arrow_table()))


_FRAMES = {"pandas_t": pa.Table.to_pandas, "polars_t": pl.from_arrow, "arrow_t": pa.table}


def table(rows: int) -> str:
    """Return the query that fills the table `t`."""
    return f"SELECT i, i % 10 AS g, 'w' || i // 8 AS w, 'u' || i AS u FROM range({rows}) r(i)"
