"""Access to the MLflow model registry: from a name and a version or alias to a folder of files."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SQLITE = "sqlite:///"
#: The files that say what a model is: MLflow's own, which comes first, and Hugging Face's.
_DESCRIPTION = (
    "MLmodel",
    "model/config.json",
    "model.sentence_transformer/config.json",
    "peft/adapter_config.json",
)
#: The registries that workspaces of this process have by default.
_OWN: set[str] = set()
#: MLflow tells at length how it creates its tables; nobody asked.
_NOISY_LOGGERS = ("mlflow.store.db.utils", "alembic")


def default_uris(folder: Path | None) -> tuple[str, str]:
    """Return the tracking and the registry URI of a workspace.

    `MLFLOW_TRACKING_URI` and `MLFLOW_REGISTRY_URI` win; else both are an SQLite file in the
    workspace's folder. A workspace in memory gets a folder that lasts as long as the process.
    """
    tracking = _from_environment("MLFLOW_TRACKING_URI")
    registry = _from_environment("MLFLOW_REGISTRY_URI")
    if not tracking:
        home = folder if folder is not None else _passing_folder()
        tracking = f"{_SQLITE}{(home / 'mlflow.db').resolve()}"
        _OWN.add(tracking)
    return tracking, registry or tracking


def _from_environment(variable: str) -> str | None:
    """Return what the user's environment says.

    `mlflow.set_tracking_uri` writes the variable too: one workspace's registry, logged to by this very
    process, must not become the next workspace's.
    """
    uri = os.environ.get(variable)
    return None if uri in _OWN else uri


def _passing_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="aiquery-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class Models:
    """The registered models of one MLflow registry.

    Any number may live in one process: MLflow's own, global registry setting is neither read nor
    changed. An SQLite registry that does not exist yet is created at first use, with the files of
    models in `models/` beside it. Safe to use from several threads.
    """

    def __init__(self, tracking_uri: str, registry_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self.registry_uri = registry_uri
        self._client: Any = None
        self._lock = threading.Lock()
        self._downloads: dict[str, Path] = {}

    def start(self) -> None:
        """Create the registry if it is not there yet (seconds), else do nothing.

        To be called before others log models under `tracking_uri`: MLflow alone would put the files
        of a registry that it creates below the current directory.

        Raises:
            ConfigurationError: The registry cannot be opened.
        """
        self._connected()

    def check(self, name: str, version: str) -> None:
        """Make sure that a model version exists; `version` is a number or an alias.

        Raises:
            ConfigurationError: There is no such model, version or alias.
        """
        self._version(name, version)

    def path(self, name: str, version: str, *, weights: bool = True) -> Path:
        """Return the folder with a model version's files, downloaded if they are not on this machine.

        Args:
            name: The registered model.
            version: A number or an alias.
            weights: All files; else, of those that are not on this machine, only what says what the model is.

        Raises:
            ConfigurationError: There is no such model, version or alias, or its files are gone.
        """
        number = self._version(name, version)
        uri = self._source(name, number)
        folder = _local_folder(uri) or (self._downloaded(uri) if weights else self._described(uri))
        if not (folder / "MLmodel").is_file():
            raise ConfigurationError(
                f"Registered model '{name}' version {number} has no files any more: {folder} holds no "
                "MLmodel. Log the model again and serve the new version."
            )
        return folder

    def _version(self, name: str, version: str) -> str:
        """Return the number of a version that exists."""
        from mlflow.exceptions import MlflowException

        client = self._connected()
        wanted = version.removeprefix("@")
        try:
            if wanted.isdecimal():
                found = client.get_model_version(name, wanted)
            else:
                found = client.get_model_version_by_alias(name, wanted)
        except MlflowException as error:
            raise self._missing(name, version, error) from error
        return str(found.version)

    def _missing(self, name: str, version: str, error: Exception) -> ConfigurationError:
        """Say which of model, version and alias is missing, and what there is instead."""
        from mlflow.exceptions import MlflowException

        client = self._connected()
        try:
            model = client.get_registered_model(name)
            versions = client.search_model_versions(f"name = '{name}'")
        except MlflowException as why:
            if why.error_code != "RESOURCE_DOES_NOT_EXIST":
                return ConfigurationError(f"Registered model '{name}' cannot be read: {why.message}")
            return ConfigurationError(
                f"There is no registered model '{name}' in {self._place()}; log it with "
                f"mlflow.<flavour>.log_model(..., registered_model_name='{name}')."
            )
        if getattr(error, "error_code", "") not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return ConfigurationError(f"Registered model '{name}' cannot be read: {error}")
        numbers = sorted(int(found.version) for found in versions)
        aliases = sorted(getattr(model, "aliases", None) or {})
        return ConfigurationError(
            f"Registered model '{name}' has no version {version} in {self._place()}; versions: "
            f"{_listed(numbers)}; aliases: {_listed(aliases)}."
        )

    def _place(self) -> str:
        """Return the registry's address without what may be secret in it."""
        parsed = urlparse(self.registry_uri)
        if "@" not in parsed.netloc:
            return self.registry_uri
        return parsed._replace(netloc=parsed.netloc.rpartition("@")[2]).geturl()

    def _source(self, name: str, number: str) -> str:
        """Return where a version's files are, past MLflow's `models:/m-…` indirection."""
        client = self._connected()
        uri = str(client.get_model_version_download_uri(name, number))
        parsed = urlparse(uri)
        model_id = parsed.path.strip("/")
        if parsed.scheme == "models" and model_id.startswith("m-") and "/" not in model_id:
            return str(client.get_logged_model(model_id).artifact_location)
        return uri

    def _downloaded(self, uri: str) -> Path:
        with self._lock:
            if uri not in self._downloads:
                self._downloads[uri] = self._fetched(uri, _passing_folder())
            return self._downloads[uri]

    def _described(self, uri: str) -> Path:
        """Return a folder with the small files of a model, or with all where they were needed before."""
        with self._lock:
            whole, key = self._downloads.get(uri), f"{uri} described"
            if whole is None and key not in self._downloads:
                folder = _passing_folder()
                self._fetched(f"{uri}/{_DESCRIPTION[0]}", folder)
                for name in _DESCRIPTION[1:]:
                    with suppress(ConfigurationError):  # no model has all of them
                        self._fetched(f"{uri}/{name}", folder / Path(name).parent)
                self._downloads[key] = folder
            return whole or self._downloads[key]

    def _fetched(self, uri: str, folder: Path) -> Path:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            local = download_artifacts(
                artifact_uri=uri,
                dst_path=str(folder),
                tracking_uri=self.tracking_uri,
                registry_uri=self.registry_uri,
            )
        except (MlflowException, OSError) as error:
            raise ConfigurationError(f"The files of the model at {uri} cannot be fetched: {error}") from error
        return Path(local)

    def _connected(self) -> Any:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        with self._lock:
            if self._client is None:
                try:
                    with _quiet():
                        _create(self.tracking_uri)
                        _create(self.registry_uri)
                        client = MlflowClient(self.tracking_uri, self.registry_uri)
                        client.search_registered_models(max_results=1)
                except (MlflowException, SQLAlchemyError, OSError) as error:
                    raise ConfigurationError(
                        f"The model registry {self._place()} cannot be opened: {_first_line(error)}"
                    ) from error
                self._client = client
            return self._client


def _create(uri: str) -> None:
    """Create an SQLite registry that is not there, so that models' files lie beside it."""
    if not uri.startswith(_SQLITE):
        return
    file = Path(uri.removeprefix(_SQLITE))
    if file.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    SqlAlchemyStore(uri, str(file.parent.resolve() / "models"))


def _local_folder(uri: str) -> Path | None:
    """Return the folder that a URI names if it is on this machine."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(uri) if not parsed.scheme else None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _listed(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values) or "none"


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
