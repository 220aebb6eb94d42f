"""`aiquery models`: names for models, and the endpoints that come with them."""

from __future__ import annotations

import json

import pytest

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "llama"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


def test_a_model_is_named_listed_and_forgotten(cli, ask_json, llama):
    said = cli("models", "alias", "databricks-tiny", llama)
    assert "ask the endpoint 'databricks-tiny'" in " ".join(said.output.split())

    assert ask_json("models", "aliases") == [
        {"name": "system.ai.tiny", "endpoint": "databricks-tiny", "source": str(llama), "version": ""}
    ]
    (endpoint,) = ask_json("endpoints", "list")
    assert (endpoint["name"], endpoint["task"]) == ("databricks-tiny", "llm/v1/chat")
    assert endpoint["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    cli("models", "unalias", "system.ai.tiny")
    assert ask_json("endpoints", "list") == []
    assert "No model has a name" in cli("models", "aliases").stdout


@pytest.mark.usefixtures("torch_is_here")
def test_what_cannot_be_served_is_named_and_told(cli, ask_json, folder):
    said = cli("models", "alias", "databricks-tiny", folder, code=1)
    assert "cannot be served" in said.output
    assert "has no weights as safetensors" in " ".join(said.output.split())
    assert [one["name"] for one in ask_json("models", "aliases")] == ["system.ai.tiny"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("alias", "tiny", "/"), "has to be system.ai.<name> or databricks-<name>"),
        (("alias", "databricks-tiny", "/nowhere"), "There is no folder /nowhere"),
        (("alias", "databricks-tiny", "reviews"), "Which version of the registered model 'reviews'"),
        (("unalias", "databricks-tiny"), "stands for no model"),
    ],
)
def test_what_cannot_be_named_is_refused(cli, arguments, why):
    assert why in " ".join(cli("models", *arguments, code=1).output.split())
