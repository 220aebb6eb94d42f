"""The registry answers by name, number and alias, and says what there is when it cannot."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow import MlflowClient

from aiquery_serving.errors import ConfigurationError
from aiquery_serving.models import Models, default_uris


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        return model_input.iloc[:, 0]


@pytest.fixture(scope="module")
def filled(registry, sign):
    def log(model, **options):
        return mlflow.pyfunc.log_model(python_model=model, **options)

    for name in ("demo.health.tumour-b", "demo.health.tumour-b", "catalog.schema.model-A"):
        registry.log(name, log, Echo(), signature=sign({"a": "double"}, ["double"]))
    client = MlflowClient(registry.uri, registry.uri)
    client.set_registered_model_alias("demo.health.tumour-b", "champion", "2")
    return registry


@pytest.mark.parametrize(
    ("name", "version", "same_as"),
    [
        ("demo.health.tumour-b", "2", "2"),
        ("demo.health.tumour-b", "champion", "2"),
        ("demo.health.tumour-b", "@champion", "2"),
        ("catalog.schema.model-A", "1", "1"),
    ],
)
def test_a_version_is_found_by_number_and_by_alias(filled, name, version, same_as):
    filled.models.check(name, version)
    folder = filled.models.path(name, version)
    assert (folder / "MLmodel").is_file()
    assert folder == filled.models.path(name, same_as)


def test_local_files_are_used_where_they_lie(filled):
    folder = filled.models.path("demo.health.tumour-b", "1")
    assert folder.is_relative_to(filled.folder / "models")
    assert folder != filled.models.path("demo.health.tumour-b", "2")


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("demo.health.tumour-b", "3", ["has no version 3", "versions: 1, 2", "aliases: champion"]),
        ("demo.health.tumour-b", "hero", ["has no version hero", "aliases: champion"]),
        ("demo.health.nobody", "1", ["no registered model 'demo.health.nobody'", "registered_model_name"]),
        ("demo.health.nobody", "champion", ["no registered model 'demo.health.nobody'"]),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(filled, name, version, says):
    with pytest.raises(ConfigurationError) as caught:
        filled.models.check(name, version)
    assert all(part in str(caught.value) for part in says)


def test_a_version_whose_files_are_gone_says_so(filled, registry, sign):
    import shutil

    def log(model, **options):
        return mlflow.pyfunc.log_model(python_model=model, **options)

    registry.log("gone", log, Echo(), signature=sign({"a": "double"}, ["double"]))
    shutil.rmtree(registry.models.path("gone", "1"))
    with pytest.raises(ConfigurationError, match="'gone' version 1 has no files any more"):
        registry.models.path("gone", "1")


def test_mlflows_global_registry_is_neither_read_nor_changed(filled, monkeypatch):
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    mlflow.set_registry_uri("http://127.0.0.1:1")
    try:
        fresh = Models(filled.uri, filled.uri)
        assert fresh.path("demo.health.tumour-b", "champion").is_dir()
        assert mlflow.get_tracking_uri() == "http://127.0.0.1:1"
        assert mlflow.get_registry_uri() == "http://127.0.0.1:1"
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def test_threads_may_share_it_from_the_first_call_on(filled):
    fresh = Models(filled.uri, filled.uri)
    found: list[Path] = []
    start = threading.Barrier(8)

    def look() -> None:
        start.wait()
        found.append(fresh.path("demo.health.tumour-b", "champion"))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_registry_that_cannot_be_opened_says_which(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, but long enough to be read" * 50)
    uri, _ = default_uris(tmp_path)
    with pytest.raises(ConfigurationError, match=r"mlflow\.db cannot be opened"):
        Models(uri, uri).check("a", "1")


def test_passwords_in_the_registrys_address_are_not_told():
    models = Models("sqlite:////x", "postgresql://me:hunter2@db/models")
    assert models._place() == "postgresql://db/models"


def test_the_environment_wins_over_the_workspaces_own_registry(tmp_path, monkeypatch):
    own = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uris(tmp_path) == (own, own)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry")
    assert default_uris(tmp_path) == (own, "http://registry")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    assert default_uris(tmp_path) == ("http://tracking", "http://registry")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    assert default_uris(tmp_path) == ("http://tracking", "http://tracking")


def test_workspaces_in_memory_do_not_share_a_registry(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uris(None) != default_uris(None)


def test_importing_the_module_does_not_import_mlflow():
    code = "import sys, aiquery_serving.models; sys.exit('mlflow' in sys.modules)"
    paths = {"PYTHONPATH": str(Path(__file__).parents[2] / "serving")}
    assert subprocess.run([sys.executable, "-c", code], env=paths, check=False).returncode == 0


@pytest.mark.slow
def test_creating_a_registry_is_quiet(tmp_path):
    code = (
        "import sys; from pathlib import Path; from aiquery_serving.models import *;"
        "Models(*default_uris(Path(sys.argv[1]))).start()"
    )
    paths = {"PYTHONPATH": str(Path(__file__).parents[2] / "serving")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=paths, check=True, capture_output=True)
    assert done.stderr == b""
    assert done.stdout == b""
