"""Custom models over 1M rows through ai_query, against the same model called directly on the columns.

DuckDB hands a function 2,048 rows at a time and there is no way to get more, so the model is also called directly in
batches of that size: what is lost between the two direct columns is the model's own cost of a call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

import aiquery
from benchmarks.report import report

ROWS = 1_000_000
FEATURES = ("a", "b", "c", "d")


class Weights(mlflow.pyfunc.PythonModel):
    """The cheapest model there is: one product of a matrix and a vector."""

    def predict(self, context, model_input, params=None):
        return model_input.to_numpy() @ np.array([0.1, 0.2, 0.3, 0.4])


class Upper(mlflow.pyfunc.PythonModel):
    """A model of short strings."""

    def predict(self, context, model_input, params=None):
        return model_input["text"].str.upper()


def models() -> dict:
    rng = np.random.default_rng(7)
    x = rng.random((20_000, 4))
    y = (x.sum(axis=1) + rng.normal(0, 0.1, len(x)) > 2).astype(int)
    doubles = Schema([ColSpec(DataType.double, name) for name in FEATURES])
    number = Schema([ColSpec(DataType.double)])
    integer = Schema([ColSpec(DataType.long)])
    text = ModelSignature(Schema([ColSpec(DataType.string, "text")]), Schema([ColSpec(DataType.string)]))
    return {
        "weights": ("python", Weights(), ModelSignature(doubles, number)),
        "logistic": ("sklearn", LogisticRegression().fit(x, y), ModelSignature(doubles, integer)),
        "boosting": (
            "sklearn",
            HistGradientBoostingClassifier(max_iter=50).fit(x, y),
            ModelSignature(doubles, integer),
        ),
        "upper": ("python", Upper(), text),
    }


def register_all(workspace: aiquery.Workspace) -> None:
    mlflow.set_tracking_uri(workspace.tracking_uri)
    mlflow.set_registry_uri(workspace.registry_uri)
    for name, (kind, model, signature) in models().items():
        if kind == "python":
            mlflow.pyfunc.log_model(name="m", python_model=model, signature=signature, registered_model_name=name)
        else:
            mlflow.sklearn.log_model(
                model, name="m", signature=signature, registered_model_name=name, serialization_format="cloudpickle"
            )
        entity = {"name": "only", "entity_name": name, "entity_version": "1"}
        workspace.create_endpoint(name, {"served_entities": [entity]})
        workspace.wait(name)


def best(work: Callable[[], object], runs: int = 3) -> float:
    """Return the least seconds of a few runs."""
    found = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def compare(con: duckdb.DuckDBPyConnection, workspace: aiquery.Workspace, name: str) -> dict:
    request, columns = ("text", "text") if name == "upper" else ("{a: a, b: b, c: c, d: d}", "a, b, c, d")
    table = "words" if name == "upper" else "numbers"
    path = workspace.models.path(name, "1")
    model = mlflow.pyfunc.load_model(str(path))

    def direct() -> object:
        frame = con.sql(f"SELECT {columns} FROM {table}").df()
        return model.predict(frame)

    def batched() -> object:
        frame = con.sql(f"SELECT {columns} FROM {table}").df()
        return [model.predict(frame[start : start + 2048]) for start in range(0, ROWS, 2048)]

    def ours() -> object:
        return con.sql(f"SELECT ai_query('{name}', {request}) AS answer FROM {table}").to_arrow_table()

    bare, small, through = best(direct), best(batched), best(ours)
    return {
        "model": name,
        "direct Mrow/s": ROWS / bare / 1e6,
        "direct, 2048 rows a call": ROWS / small / 1e6,
        "ai_query Mrow/s": ROWS / through / 1e6,
        "ratio": bare / through,
        "ratio to 2048 rows a call": small / through,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, aiquery.Workspace(Path(folder)) as workspace:
        register_all(workspace)
        con = duckdb.connect()
        aiquery.register(con, workspace=workspace)
        con.execute(f"CREATE TABLE numbers AS SELECT random() a, random() b, random() c, random() d FROM range({ROWS})")
        con.execute(f"CREATE TABLE words AS SELECT 'word ' || i AS text FROM range({ROWS}) t(i)")
        rows = [compare(con, workspace, name) for name in ("weights", "logistic", "boosting", "upper")]
    aims = [(f"{row['model']}: ratio >= 0.8", row["ratio"] >= 0.8) for row in rows]
    report("pyfunc", rows, aims)
