"""How the ledger is written to a file for others to read: JSON lines or Parquet."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiquery_serving.ledger_rows import Entry
    from aiquery_serving.messages import Json


def write_lines(file: BinaryIO, batches: Iterator[list[Entry]]) -> int:
    """Write entries as JSON lines, and return how many they are."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
    count = 0
    for entry in chain.from_iterable(batches):
        fields = {**_exported(entry), "written_at": np.datetime64(entry.written_ms, "ms")}
        file.write(orjson.dumps(fields, option=options))
        count += 1
    return count


def write_parquet(file: BinaryIO, batches: Iterator[list[Entry]]) -> int:
    """Write entries as Parquet, and return how many they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("key", "endpoint", "served_entity", "answer", "failure_kind", "failure_message")
    numbers = ("prompt_tokens", "completion_tokens", "attempts")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.int64())
    schema = pa.schema({**kinds, "vector": pa.list_(pa.float32()), "written_at": pa.timestamp("ms", "UTC")})
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_pylist([_exported(entry) for entry in batch], schema))
            count += len(batch)
    return count


def _exported(entry: Entry) -> Json:
    failure = entry.failure
    return {
        "key": entry.key.hex(),
        "endpoint": entry.endpoint,
        "served_entity": entry.served_entity,
        "answer": _spelled(entry.answer) if isinstance(entry.answer, str) else None,
        "vector": None if isinstance(entry.answer, str) else entry.answer,
        "failure_kind": failure.kind if failure else None,
        "failure_message": _spelled(failure.message) if failure else None,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "attempts": entry.attempts,
        "written_at": entry.written_ms,
    }


def _spelled(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
