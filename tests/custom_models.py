"""Small MLflow models that the engine tests register in a workspace's own registry."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema


class Spam(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["text"].str.contains("win").fillna(False).to_numpy(dtype=bool)


class Forecast(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["a"].to_numpy() + 10 * model_input["b"].to_numpy()


class Challenger(Forecast):
    def predict(self, context, model_input, params=None):
        return -super().predict(context, model_input, params)


class Chat(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [{"candidates": [f"re: {messages[-1]['content']}"]} for messages in model_input["messages"]]


class Twins(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"half": model_input["x"] / 2, "name": "n" + model_input["x"].astype(int).astype(str)})


class Upper(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["text"].str.upper()


#: Set when `Slow` may go on loading.
LOADED = threading.Event()
LOADED.set()


class Slow(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        LOADED.wait(30)

    def predict(self, context, model_input, params=None):
        return model_input["x"].to_numpy()


class Grumpy(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        if (model_input["x"] == 13).any():
            raise ValueError("thirteen brings bad luck")
        return model_input["x"].to_numpy() * 2


def _schema(**columns) -> Schema:
    return Schema([ColSpec(kind, name) for name, kind in columns.items()])


D, S = DataType.double, DataType.string
MODELS = {
    "demo.mail.spam": (
        Spam(),
        ModelSignature(
            _schema(timestamp=S, sender=S, text=S),
            Schema([ColSpec(DataType.boolean)]),
        ),
    ),
    "demo.shop.forecast_a": (Forecast(), ModelSignature(_schema(a=D, b=D), Schema([ColSpec(D)]))),
    "demo.shop.forecast-b": (Challenger(), ModelSignature(_schema(a=D, b=D), Schema([ColSpec(D)]))),
    "demo.chat.llama": (Chat(), None),
    "demo.twins": (Twins(), ModelSignature(_schema(x=D), Schema([ColSpec(D, "half"), ColSpec(S, "name")]))),
    "demo.upper": (Upper(), ModelSignature(_schema(text=S), Schema([ColSpec(S)]))),
    "demo.slow": (Slow(), ModelSignature(_schema(x=D), Schema([ColSpec(D)]))),
    "demo.grumpy": (Grumpy(), ModelSignature(_schema(x=D), Schema([ColSpec(D)]))),
}


@contextmanager
def logging_into(workspace):
    """Let MLflow log into a workspace's registry, and forget it again."""
    mlflow.set_tracking_uri(workspace.tracking_uri)
    mlflow.set_registry_uri(workspace.registry_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # else MLflow leaves it in the environment, for the tests that follow
        mlflow.set_registry_uri(None)


def register_all(workspace) -> None:
    with logging_into(workspace):
        for name, (model, signature) in MODELS.items():
            mlflow.pyfunc.log_model(name="model", python_model=model, signature=signature, registered_model_name=name)


def entity(name: str, model: str, **more) -> dict:
    return {"name": name, "entity_name": model, "entity_version": "1", "workload_size": "Small", **more}


def split(current: int, challenger: int) -> dict:
    return {
        "served_entities": [entity("current", "demo.shop.forecast_a"), entity("challenger", "demo.shop.forecast-b")],
        "traffic_config": {
            "routes": [
                {"served_model_name": "current", "traffic_percentage": str(current)},
                {"served_model_name": "challenger", "traffic_percentage": str(challenger)},
            ]
        },
    }


def close_to(found, expected) -> bool:
    return np.allclose(found, expected)
