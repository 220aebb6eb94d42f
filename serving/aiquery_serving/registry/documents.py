"""How the workspace keeps its endpoints: one JSON document each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import orjson

from aiquery_serving.endpoint import EndpointRecord, RateLimit
from aiquery_serving.errors import EndpointNotFoundError, WorkspaceError
from aiquery_serving.registry.lifecycle import IN_PROGRESS, LoadFailure, fail
from aiquery_serving.registry.process import Owner, is_loading
from aiquery_serving.wire import dump_config, load_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiquery_serving.messages import Json
    from aiquery_serving.store import Store


@dataclass(frozen=True, slots=True)
class Stored:
    """An endpoint as the workspace keeps it; `owner` is who is loading its pending config."""

    record: EndpointRecord
    owner: Owner | None = None


class Documents:
    """The workspace's table of endpoints.

    What is read is what is true by now: an update whose process has ended reads as failed.

    Args:
        store: The workspace's store. Its transactions may enclose several calls.
        epoch_ms: The wall clock in milliseconds since 1970.
    """

    def __init__(self, store: Store, epoch_ms: Callable[[], int]) -> None:
        self._store = store
        self._epoch_ms = epoch_ms

    def all(self) -> dict[str, Stored]:
        """Return every endpoint by its name, in order of the names.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as connection:
            rows = connection.execute("SELECT name, document FROM endpoints ORDER BY name")
            found = rows.fetchall()
        return {name: self._read(name, text) for name, text in found}

    def find(self, name: str) -> Stored | None:
        """Return an endpoint, or None when there is none of that name.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        text = self._text(name)
        return None if text is None else self._read(name, text)

    def get(self, name: str) -> Stored:
        """Return an endpoint.

        Raises:
            EndpointNotFoundError: There is none of that name.
            WorkspaceError: The workspace cannot be read.
        """
        stored = self.find(name)
        if stored is None:
            raise EndpointNotFoundError(f"Endpoint with name '{name}' does not exist.")
        return stored

    def name_of(self, endpoint_id: str) -> str:
        """Return the name of the endpoint that has an id.

        Raises:
            EndpointNotFoundError: None has.
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as connection:
            row = connection.execute("SELECT name FROM endpoints WHERE id = ?", (endpoint_id,)).fetchone()
        if row is None:
            raise EndpointNotFoundError(f"Endpoint with id '{endpoint_id}' does not exist.")
        return str(row[0])

    def save(self, stored: Stored) -> None:
        """Store an endpoint, in place of an earlier one of that name.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        record = stored.record
        with self._store.write() as connection:
            connection.execute(
                "INSERT INTO endpoints (name, id, document) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET document = excluded.document",
                (record.name, record.id, dump_stored(stored)),
            )

    def delete(self, name: str) -> None:
        """Delete an endpoint.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        with self._store.write() as connection:
            connection.execute("DELETE FROM endpoints WHERE name = ?", (name,))

    def revision(self) -> int | None:
        """Return a number that grows with every change, or None when the store is busy just now.

        Never waits for another thread.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        row = self._store.glance("SELECT number FROM endpoints_revision")
        return int(row[0]) if row else None

    def _text(self, name: str) -> str | None:
        with self._store.read() as connection:
            row = connection.execute("SELECT document FROM endpoints WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def _read(self, name: str, text: str) -> Stored:
        stored = self._parse(name, text)
        if not _is_orphaned(stored, self._epoch_ms()):
            return stored
        # The load may have ended well after the text was read and before its process was looked for.
        latest = self._text(name)
        return _failed(stored) if latest in {text, None} else self._read(name, str(latest))

    def _parse(self, name: str, text: str) -> Stored:
        try:
            return load_stored(text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkspaceError(
                f"What the workspace '{self._store.path}' keeps of endpoint '{name}' cannot be read"
                f" ({error!r}). Restore the file from a backup, or delete the endpoint's row."
            ) from error


def dump_stored(stored: Stored) -> str:
    """Return the text that the workspace keeps."""
    record = stored.record
    document: Json = {name: getattr(record, name) for name in _PLAIN}
    document["rate_limits"] = [asdict(limit) for limit in record.rate_limits]
    for name in _CONFIGS:
        config = getattr(record, name)
        document[name] = dump_config(config) if config else None
    document["owner"] = asdict(stored.owner) if stored.owner else None
    return orjson.dumps(document).decode()


def load_stored(text: str) -> Stored:
    """Return what `dump_stored` wrote, fields that this version does not know left out."""
    document: Json = orjson.loads(text)
    owner = document.get("owner")
    values = {name: document[name] for name in _PLAIN if name in document}
    values["tags"] = tuple((key, value) for key, value in document["tags"])
    for name in ("states", "pending_states"):
        values[name] = {entity: tuple(state) for entity, state in document[name].items()}
    values["rate_limits"] = tuple(RateLimit(**limit) for limit in document["rate_limits"])
    for name in _CONFIGS:
        values[name] = load_config(document[name]) if document[name] else None
    return Stored(EndpointRecord(**values), Owner(**owner) if owner else None)


_CONFIGS = ("config", "pending_config")
_PLAIN = tuple(field.name for field in fields(EndpointRecord) if field.name not in (*_CONFIGS, "rate_limits"))


def _is_orphaned(stored: Stored, now_ms: int) -> bool:
    """Say whether a config is pending that nobody loads any more."""
    record, owner, since_ms = stored.record, stored.owner, stored.record.pending_since_ms or 0
    if record.config_update != IN_PROGRESS or record.pending_config is None:
        return False
    return owner is None or not is_loading(owner, since_ms=since_ms, now_ms=now_ms)


def _failed(stored: Stored) -> Stored:
    record = stored.record
    names = [entity.name for entity in record.pending_config.served_entities] if record.pending_config else [""]
    gone = LoadFailure(names[0], "The process that was loading it ended. Update the config again.")
    return Stored(fail(record, gone, now_ms=record.updated_ms))
