"""Two classifiers behind one endpoint: 90/10 first, then 50/50, over a real table in DuckDB.

Run it with `make demo`. It needs no key and no network: the data set ships inside scikit-learn.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import mlflow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import aiquery

MODELS = {
    "demo.health.tumour_a": GaussianNB(),
    "demo.health.tumour-b": make_pipeline(StandardScaler(), LogisticRegression()),
}
#: How often each of the 569 real measurements is asked, so that there is something to watch.
COPIES = 1_000

QUERY = """
CREATE OR REPLACE TABLE answers AS
SELECT id, truth,
       ai_query('multi-model', struct_pack(*columns(* EXCLUDE (id, truth)))) AS prediction,
       ai_served_entity('multi-model', struct_pack(*columns(* EXCLUDE (id, truth)))) AS served_entity
FROM tumours
"""


def train(workspace: aiquery.Workspace) -> None:
    """Fit both models on half of the data and register them in the workspace's MLflow registry."""
    data = load_breast_cancer(as_frame=True)
    mlflow.set_tracking_uri(workspace.tracking_uri)
    for name, model in MODELS.items():
        model.fit(data.data[::2], data.target[::2])
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(data.data, model.predict(data.data)),
            registered_model_name=name,
            pip_requirements=["scikit-learn"],  # else MLflow finds them out, which takes seconds
        )


def config(current: int, challenger: int) -> dict[str, Any]:
    """Return the JSON that the REST API takes."""
    entity = {"entity_version": "1", "workload_size": "Small", "scale_to_zero_enabled": True}
    return {
        "served_entities": [
            {"name": "current", "entity_name": "demo.health.tumour_a", **entity},
            {"name": "challenger", "entity_name": "demo.health.tumour-b", **entity},
        ],
        "traffic_config": {
            "routes": [
                {"served_model_name": "current", "traffic_percentage": str(current)},
                {"served_model_name": "challenger", "traffic_percentage": str(challenger)},
            ],
        },
    }


def fill(con: duckdb.DuckDBPyConnection) -> int:
    """Put the measurements into DuckDB, each a little different in every copy, as instruments are."""
    frame = load_breast_cancer(as_frame=True).frame.rename(columns={"target": "truth"})
    con.register("frame", frame)
    con.execute(f"""
        CREATE TABLE tumours AS
        SELECT row_number() OVER () AS id, f.* REPLACE ("mean area" * (1 + copy * 1e-6) AS "mean area")
        FROM frame f, range({COPIES}) copies(copy)
    """)
    (rows,) = con.execute("SELECT count(*) FROM tumours").fetchone() or (0,)
    return int(rows)


def ask(con: duckdb.DuckDBPyConnection, workspace: aiquery.Workspace, rows: int, console: Console) -> float:
    """Run the query behind a progress bar and return the seconds it took."""
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("asking multi-model", total=rows)
        stop = workspace.watch(lambda invocation: bar.advance(task, invocation.rows))
        started = time.perf_counter()
        con.execute(QUERY)
        seconds = time.perf_counter() - started
        stop()
        bar.update(task, completed=rows)
    return seconds


def show(con: duckdb.DuckDBPyConnection, console: Console, title: str, rows: int, seconds: float) -> None:
    """Print rows, share and accuracy per served entity."""
    table = Table("served entity", "rows", "share", "accuracy", title=title, title_justify="left")
    for name, count, share, accuracy in con.execute("""
        SELECT served_entity, count(*), count(*) / sum(count(*)) OVER (), avg((prediction = truth)::INT)
        FROM answers GROUP BY ALL ORDER BY count(*) DESC, served_entity DESC
    """).fetchall():
        table.add_row(name, f"{count:,}", f"{share:.2%}", f"{accuracy:.1%}")
    console.print(table)
    console.print(f"{rows:,} rows in {seconds:.1f} s: {rows / seconds:,.0f} rows/s\n")


def main() -> None:
    """Train, serve 90/10, ask, change the split to 50/50, ask again."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder, aiquery.Workspace(Path(folder)) as workspace:
        # MLflow tells on stderr what it registers; what goes wrong is raised all the same.
        with console.status("training two classifiers and registering them"), contextlib.redirect_stderr(io.StringIO()):
            train(workspace)
        workspace.create_endpoint("multi-model", config(90, 10))
        workspace.wait("multi-model")

        con = duckdb.connect()
        aiquery.register(con, workspace=workspace)
        rows = fill(con)
        seconds = ask(con, workspace, rows, console)
        show(con, console, "current 90 %, challenger 10 %", rows, seconds)

        workspace.update_endpoint_config("multi-model", config(50, 50))
        workspace.wait("multi-model")
        seconds = ask(con, workspace, rows, console)
        show(con, console, "after the update: 50 % each", rows, seconds)


if __name__ == "__main__":
    main()
