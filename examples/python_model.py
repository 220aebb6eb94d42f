"""Serve a Python class of your own: how hard texts are to read, and how long they are.

    python examples/python_model.py

MLflow reads the model's types from its type hints, and ai_query its SQL type from them: no returnType needed.
"""

from __future__ import annotations

import re

import duckdb
import mlflow
import pydantic

import aiquery


class Verdict(pydantic.BaseModel):
    """What the model says of one text."""

    words: int
    ease: float


class Readability(mlflow.pyfunc.PythonModel):
    """Flesch's reading ease: 100 is very easy, 0 very hard."""

    def predict(self, model_input: list[str]) -> list[Verdict]:
        """Judge a batch of texts."""
        return [self.judge(text) for text in model_input]

    def judge(self, text: str) -> Verdict:
        """Judge one text."""
        words = re.findall(r"[a-z']+", text.lower())
        sentences = len(re.findall(r"[.!?]+", text)) or 1
        syllables = sum(len(re.findall(r"[aeiouy]+", word)) or 1 for word in words)
        ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / max(len(words), 1)
        return Verdict(words=len(words), ease=round(ease, 1))


# What MLflow takes from this file when it loads the model: the code itself is what is logged.
mlflow.models.set_model(Readability())

TEXTS = """
CREATE TABLE texts AS FROM (VALUES
    ('The cat sat on the mat.'),
    ('Ask me no more. I told you all I know.'),
    ('Notwithstanding considerable organizational difficulties, implementation continued.')
) texts(text)
"""
VERDICTS = """
SELECT text, verdict.*
FROM (SELECT text, ai_query('readability', text) AS verdict FROM texts)
ORDER BY verdict.ease DESC
"""


def main() -> None:
    """Log this file as a model, serve it, and ask it about a table."""
    with aiquery.Workspace(":memory:") as workspace:
        mlflow.set_tracking_uri(workspace.tracking_uri)
        mlflow.pyfunc.log_model(
            name="model",
            python_model=__file__,
            registered_model_name="lab.texts.readability",
            pip_requirements=["pydantic"],
        )
        entity = {"entity_name": "lab.texts.readability", "entity_version": "1"}
        workspace.create_endpoint("readability", {"served_entities": [entity]})

        con = duckdb.connect()
        aiquery.register(con, workspace=workspace)
        con.execute(TEXTS)
        con.sql(VERDICTS).show()


if __name__ == "__main__":
    main()
