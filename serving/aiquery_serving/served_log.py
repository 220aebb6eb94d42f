"""What served entities said, while they loaded and while they served: the last lines of each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from aiquery_serving.store import Store

#: While a config loads, and while it serves.
BUILD, SERVE = "build", "serve"
#: Lines kept of one served entity and kind.
MOST_LINES = 1_000
#: The longest line kept, in characters.
LONGEST_LINE = 4_000

#: An endpoint that was deleted has no log, whoever still writes to it.
_WRITE = """
INSERT INTO served_log (endpoint_id, served_entity, kind, at_ms, line)
SELECT ?1, ?2, ?3, ?4, ?5 WHERE EXISTS (SELECT 1 FROM endpoints WHERE id = ?1)
"""
_TRIM = """
DELETE FROM served_log WHERE endpoint_id = ?1 AND served_entity = ?2 AND kind = ?3 AND rowid <= (
    SELECT rowid FROM served_log WHERE endpoint_id = ?1 AND served_entity = ?2 AND kind = ?3
    ORDER BY rowid DESC LIMIT 1 OFFSET ?4
)
"""


class ServedLog:
    """The logs of the workspace's served entities. From any thread.

    Args:
        store: The workspace's store.
        epoch_ms: The wall clock in milliseconds since 1970.
    """

    def __init__(self, store: Store, epoch_ms: Callable[[], int]) -> None:
        self._store = store
        self._epoch_ms = epoch_ms

    def write(self, endpoint_id: str, served_entity: str, kind: str, text: str) -> None:
        """Keep what a served entity said, line by line; the oldest lines give way. Secrets have no place in it.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        place, now_ms = (endpoint_id, served_entity, kind), self._epoch_ms()
        lines = [(*place, now_ms, line[:LONGEST_LINE]) for line in text.splitlines()[-MOST_LINES:]]
        with self._store.write() as connection:
            connection.executemany(_WRITE, lines)
            connection.execute(_TRIM, (*place, MOST_LINES))

    def text(self, endpoint_id: str, served_entity: str, kind: str) -> str:
        """Return what is kept of a served entity, the oldest line first, each after its time (UTC).

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as connection:
            rows = connection.execute(
                "SELECT at_ms, line FROM served_log WHERE endpoint_id = ? AND served_entity = ? AND kind = ?"
                " ORDER BY rowid",
                (endpoint_id, served_entity, kind),
            ).fetchall()
        return "".join(f"{_moment(at_ms)} {line}\n" for at_ms, line in rows)

    def forget(self, endpoint_id: str) -> None:
        """Delete the logs of an endpoint.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        with self._store.write() as connection:
            connection.execute("DELETE FROM served_log WHERE endpoint_id = ?", (endpoint_id,))


def _moment(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
