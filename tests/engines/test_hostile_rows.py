"""Custom models that raise on some rows: the others keep their answers, whatever the returnType."""

from __future__ import annotations

import mlflow
import pytest
from custom_models import logging_into

import aiquery


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    class Grumpy(mlflow.pyfunc.PythonModel):
        """Raises for multiples of 20; says numbers, JSON text or objects by turns, as `x` decides."""

        def predict(self, context, model_input, params=None):
            x = model_input["x"].tolist()
            if any(value % 20 == 0 for value in x):
                raise ValueError("twenties bring bad luck")
            return [value if value % 2 else f'{{"a": {value}}}' for value in x]

    with aiquery.Workspace(tmp_path_factory.mktemp("rows") / "workspace") as opened:
        with logging_into(opened):
            mlflow.pyfunc.log_model(
                name="m", python_model=Grumpy(), registered_model_name="h.grumpy", pip_requirements=[]
            )
        opened.create_endpoint("grumpy", {"served_entities": [{"entity_name": "h.grumpy", "entity_version": "1"}]})
        yield opened


@pytest.mark.parametrize("kind", ["STRUCT<a: INT>", "MAP<STRING, INT>", "JSON", "VARIANT", "INT", "STRING"])
def test_rows_beside_a_bad_one_keep_their_answers_whatever_the_type(con, kind):
    """Halves of a batch come back as text, numbers and objects, and are one column in the end."""
    query = f"""
    SELECT x, r.result IS NOT NULL, r.errorMessage FROM (
        SELECT x, ai_query('grumpy', {{x: x}}, '{kind}', failOnError => false) AS r FROM range(2048) t(x))
    """
    found = con.execute(query).fetchall()

    fits = {"INT": lambda x: x % 2, "STRING": lambda x: True, "JSON": lambda x: True, "VARIANT": lambda x: True}
    wanted = fits.get(kind, lambda x: x % 2 == 0)
    assert [x for x, answered, _ in found if answered] == [x for x in range(2048) if x % 20 and wanted(x)]
    # More bad rows than any search would give up at, and every one of them says so itself.
    raised = [x for x, _, message in found if message and "bad luck" in message]
    assert raised == [x for x in range(2048) if x % 20 == 0]
