"""The server asked all that its own OpenAPI documents allow, and much that they do not: every answer is as they say."""

from __future__ import annotations

import json
import warnings
import zlib
from dataclasses import replace

import mlflow.pyfunc
import pandas as pd
import pytest
import requests
import schemathesis
from control_world import CUSTOM, World
from hypothesis import HealthCheck, Phase, settings
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from rest_entities import Embedder, Speaker
from rest_server import serving
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from aiquery_serving.control.interfaces import Interface
from aiquery_serving.entities.pyfunc import load_pyfunc
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Response, Usage
from aiquery_serving.rest.metrics import Metrics
from aiquery_serving.rest.openapi import endpoint_document, server_document
from aiquery_udfs.engine_thread import engine_thread

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
bounded = settings(
    max_examples=12, deadline=None, database=None, derandomize=True,
    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
TASKS = {"chat": CHAT, "completions": COMPLETIONS, "embeddings": EMBEDDINGS}
ENDPOINTS = (*TASKS, "custom")


SIGNATURE = ModelSignature(
    Schema([ColSpec("double", "n"), ColSpec("string", "s", required=False)]), Schema([ColSpec("double")])
)


class Double(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        return model_input["n"].to_numpy() * 2


class Completer(Speaker):
    task = COMPLETIONS
    stream = None

    async def send(self, body):
        choices = [{"index": 0, "text": "hello there", "finish_reason": "stop"}]
        return Response(body={"object": "text_completion", "choices": choices}, usage=Usage(4, 3))


class Vectors(Embedder):
    async def send(self, body):
        answer = await super().send(body)
        return replace(answer, body={**answer.body, "usage": {"prompt_tokens": 1, "total_tokens": 1}})


class Fuzzed(World):
    """A workspace with an endpoint of every kind, which come back when they were deleted."""

    def load(self, entity, say):
        if entity.external_model is None:
            return self.model
        return {CHAT: Speaker, COMPLETIONS: Completer, EMBEDDINGS: Vectors}[entity.external_model.task]()

    def restore(self):
        present = self.registry.records()
        for name in ENDPOINTS:
            if name not in present:
                self.made(_config(name), name)
        for name in present:
            if name not in ENDPOINTS and len(present) > 40:
                self.control.delete(self.who("ada"), name)


def _config(name):
    if name not in TASKS:
        return CUSTOM
    model = {
        "provider": "openai",
        "name": "gpt-4",
        "task": TASKS[name],
        "openai_config": {"openai_api_key": "{{secrets/a/b}}"},
    }
    return {"served_entities": [{"name": "current", "external_model": model}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "double"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would like type hints
        mlflow.pyfunc.save_model(folder, python_model=Double(), signature=SIGNATURE, pip_requirements=[])
    return load_pyfunc(folder, name="current", environment={})


@pytest.fixture(scope="module")
def world(model):
    made = Fuzzed()
    made.model = model
    made.secrets.put("a", "b", "sk-very-secret")
    yield made
    engine_thread.run(made.control.external.close())
    made.registry.close()


@pytest.fixture(scope="module")
def ask(world):
    """Send what schemathesis thought of, as an admin, and check the answer."""
    text, _ = world.access.create_token("ada", by="ada")
    headers = {"authorization": f"Bearer {text}"}
    with serving(world, metrics=Metrics(), local_user=None) as server, requests.Session() as session:

        def sent(case, more=()):
            world.restore()
            _aim(world, case)
            return case.call_and_validate(
                server.url, session, headers=headers, checks=CHECKS, additional_checks=[coded, *more], timeout=20
            )

        yield sent


def _aim(world, case):
    """Ask mostly for what is there: of names that are drawn, next to none is."""
    records = world.registry.records()
    known = {"name": ENDPOINTS, "served_model": ["current"], "id": [record.id for record in records.values()]}
    for place, names in known.items():
        drawn = str(case.path_parameters.get(place, ""))
        if place in case.path_parameters and zlib.crc32(drawn.encode(errors="replace")) % 5:
            case.path_parameters[place] = names[len(drawn) % len(names)]
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = ENDPOINTS[len(case.body["model"]) % len(ENDPOINTS)]


def coded(ctx, response, case):
    """Let pass answers that, if they are refusals, say what and why."""
    if response.status_code >= 400 and case.method != "HEAD":
        error = json.loads(response.content)
        assert error.keys() == {"error_code", "message"}
        assert error["error_code"]
        assert error["message"]


schema = schemathesis.openapi.from_dict(server_document())


@schema.parametrize()
@bounded
def test_the_server_answers_as_its_document_says(case, ask):
    ask(case)


def _together(*interfaces):
    """Return one document of all that the endpoints' own say."""
    documents = [endpoint_document(interface) for interface in interfaces]
    paths = {each["servers"][0]["url"] + path: said for each in documents for path, said in each["paths"].items()}
    schemas = {name: said for each in documents for name, said in each["components"]["schemas"].items()}
    components = {**documents[0]["components"], "schemas": schemas}
    return {**documents[0], "paths": paths, "components": components, "servers": []}


#: What each endpoint says of itself.
INTERFACES = [Interface(name, task, {"current": None}) for name, task in TASKS.items()]
INTERFACES += [Interface("custom", None, {"current": SIGNATURE})]
endpoints = schemathesis.openapi.from_dict(_together(*INTERFACES))


@endpoints.parametrize()
@bounded
def test_every_endpoint_answers_as_its_document_says(case, ask):
    # Models of our own take numbers for text, and null for what is optional, as MLflow does.
    ask(case, [] if "custom" in case.path else [negative_data_rejection])
