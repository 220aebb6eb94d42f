"""Where the model of a served entity comes from: the registry, a folder, a hub, or another name for one of these."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiquery_serving import hub
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.models import Models
from aiquery_serving.store import Store

#: How the name of a model that others would call built-in begins; its endpoint's begins with the other.
SYSTEM, ENDPOINT = "system.ai.", "databricks-"

_ALIAS = re.compile(r"(?:system\.ai\.|databricks-)([A-Za-z0-9_-]{1,52})")
_FOLDER = re.compile(r"~|~?/.*|\.\.?/.*", re.DOTALL)
_MLFLOW = re.compile(r"models:/(?P<name>[^/@]+)[/@](?P<version>[^/@]+)")
_UNREADABLE: Final = (
    "{source!r} names no model. Give a folder (/path, ~/path or ./path), a name on a hub (organisation/model), or a"
    " registered model (models:/name/version, models:/name@alias)."
)


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """A name, `system.ai.<name>`, that stands for a model.

    Attributes:
        name: The name.
        source: A registered model's name, a folder, or a name on a hub.
        version: The registered model's version or alias, or the hub's revision; empty for a folder.
    """

    name: str
    source: str
    version: str = ""

    @property
    def endpoint(self) -> str:
        """The name of the endpoint that serves it to everybody."""
        return ENDPOINT + self.name.removeprefix(SYSTEM)


def is_folder(name: str) -> bool:
    """Say whether the name of a model is the path of a folder.

    Examples:
        >>> [is_folder(name) for name in ("/models/a", "~/a", "./a", "a/b", "catalog.schema.a")]
        [True, True, True, False, False]
    """
    return _FOLDER.fullmatch(name) is not None


class ModelSources:
    """The models that served entities may name. From any thread.

    `entity_name` is, in this order: another name given to a model (`system.ai.<name>` or `databricks-<name>`), the
    path of a folder, a name on a hub, a registered model.

    Args:
        models: The model registry.
        store: The workspace's store, where other names are kept.
    """

    def __init__(self, models: Models, store: Store) -> None:
        self._models = models
        self._store = store

    def path(self, name: str, version: str, *, weights: bool = True) -> Path:
        """Return the folder with a model's files, fetched where they are not on this machine.

        Args:
            name: The `entity_name`.
            version: The `entity_version`: a registered model's version or alias, or a hub's revision.
            weights: All files; else those that say what the model is are enough.

        Raises:
            ConfigurationError: There is no such model; the message says what was looked for.
            WorkspaceError: The workspace cannot be read.
        """
        if alias := self.find(name):
            name, version = alias.source, alias.version
        if is_folder(name):
            return _existing(name)
        if hub.is_name(name):
            return hub.fetch(name, version, weights=weights)
        if not version:
            raise ConfigurationError(_unversioned(name))
        return self._models.path(name, version, weights=weights)

    def check(self, name: str, version: str) -> None:
        """Make sure that there is a model.

        Raises:
            ConfigurationError: There is none.
            WorkspaceError: The workspace cannot be read.
        """
        self.path(name, version, weights=False)

    def find(self, name: str) -> ModelAlias | None:
        """Return what a name stands for, or None when it was never given to anything.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        if not _ALIAS.fullmatch(name):
            return None
        query = "SELECT name, source, version FROM model_aliases WHERE name = ?"
        with self._store.read() as database:
            row = database.execute(query, (_canonical(name),)).fetchone()
        return ModelAlias(*row) if row else None

    def alias(self, name: str, source: str, version: str = "") -> ModelAlias:
        """Let a name stand for a model, instead of what it stood for before.

        Args:
            name: `system.ai.<name>` or `databricks-<name>`, which are one.
            source: A folder, a name on a hub, a registered model's name or `models:/` address, or another alias.
            version: The registered model's version or alias, or the hub's revision.

        Raises:
            ConfigurationError: The name is not legal, or there is no such model.
            WorkspaceError: The workspace cannot be written.
        """
        made = self.read(name, source, version)
        self.check(made.source, made.version)
        self.put(made)
        return made

    def read(self, name: str, source: str, version: str = "") -> ModelAlias:
        """Return the alias that these words mean; nothing is kept.

        Raises:
            ConfigurationError: They mean none.
            WorkspaceError: The workspace cannot be read.
        """
        canonical = _canonical(name)
        if other := self.find(source):
            return ModelAlias(canonical, other.source, other.version)
        if is_folder(source):
            return ModelAlias(canonical, str(Path(source).expanduser().absolute()))
        if address := _MLFLOW.fullmatch(source):
            return ModelAlias(canonical, address["name"], address["version"])
        if not source or ":" in source or ("/" in source and not hub.is_name(source)):
            raise ConfigurationError(_UNREADABLE.format(source=source))
        return ModelAlias(canonical, source, version)

    def put(self, alias: ModelAlias) -> None:
        """Keep an alias as it is, whether or not its model is there.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        with self._store.write() as database:
            row = (alias.name, alias.source, alias.version)
            database.execute("INSERT OR REPLACE INTO model_aliases (name, source, version) VALUES (?, ?, ?)", row)

    def aliases(self) -> list[ModelAlias]:
        """Return every alias, in order of the names.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as database:
            rows = database.execute("SELECT name, source, version FROM model_aliases ORDER BY name").fetchall()
        return [ModelAlias(*row) for row in rows]

    def unalias(self, name: str) -> ModelAlias:
        """Forget a name, and return what it stood for.

        Raises:
            ConfigurationError: It stands for nothing.
            WorkspaceError: The workspace cannot be written.
        """
        alias = self.find(name)
        if alias is None:
            known = ", ".join(one.name for one in self.aliases()) or "none"
            raise ConfigurationError(f"The name '{name}' stands for no model. Those that do: {known}.")
        with self._store.write() as database:
            database.execute("DELETE FROM model_aliases WHERE name = ?", (alias.name,))
        return alias


def _canonical(name: str) -> str:
    legal = _ALIAS.fullmatch(name)
    if not legal:
        raise ConfigurationError(
            f"The name {name[:64]!r} cannot be given to a model: it has to be {SYSTEM}<name> or {ENDPOINT}<name>, of"
            " letters, digits, '-' and '_', 52 at most."
        )
    return SYSTEM + legal[1]


def _unversioned(name: str) -> str:
    if _ALIAS.fullmatch(name):
        return (
            f"The name '{name}' stands for no model here. Let it stand for one (aiquery models alias {name} SOURCE),"
            " or give the version of a registered model of that name."
        )
    return f"Which version of the registered model '{name}' is meant? Give its number or an alias of it."


def _existing(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        way_out = "" if folder.is_absolute() else f" {name!r} is sought where a process runs: declare the whole path."
        raise ConfigurationError(f"There is no folder {folder.absolute()} with a model.{way_out}")
    return folder
