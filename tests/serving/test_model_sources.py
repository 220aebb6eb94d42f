"""Where models come from: other names, folders, a hub, the registry; and who may say so."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from control_world import World
from loopback import LoopbackServer, Reply

from aiquery.testing import ManualClock
from aiquery_serving import hub
from aiquery_serving.chunk_sizes import ChunkSizes
from aiquery_serving.entities.loading import EntityLoader
from aiquery_serving.errors import ConfigurationError, PermissionDeniedError
from aiquery_serving.model_sources import ModelAlias, ModelSources
from aiquery_serving.models import Models
from aiquery_serving.secrets import Secrets
from aiquery_serving.store import Store
from aiquery_serving.throughput import Speed
from aiquery_serving.wire import parse_config

COMMIT = "a" * 40
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 512,
}  # fmt: skip
ON_HUB = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"code",
}


class Registered:
    """A registry that knows every model."""

    def path(self, name, version, *, weights=True):
        return f"{name}/{version}/{'all' if weights else 'small'}"


@pytest.fixture
def store():
    kept = Store(None)
    yield kept
    kept.close()


@pytest.fixture
def sources(store):
    return ModelSources(Registered(), store)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "llama-3.1-tiny"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


@pytest.fixture
def declared(store, sources):
    """Resolve a served entity as a declaration would."""
    chunks = ChunkSizes(store, ManualClock(), measure=lambda device: Speed(1e12, 1e10, 1e-5, 4))
    loader = EntityLoader(sources, Secrets(store, key=None), None, chunks, isolated=False)

    def resolve(**entity):
        (parsed,) = parse_config({"served_entities": [entity]}, config_version=1, stash=None).served_entities
        return loader.resolve(parsed)

    resolve.loader = loader
    return resolve


# What names mean.


def test_a_name_means_an_alias_a_folder_or_a_registered_model(sources, folder):
    sources.alias("databricks-tiny", str(folder))

    assert sources.path("system.ai.tiny", "7") == sources.path("databricks-tiny", "") == folder
    assert sources.path(str(folder), "") == folder
    assert sources.path("c.s.model", "3") == "c.s.model/3/all"
    assert sources.path("c.s.model", "3", weights=False) == "c.s.model/3/small"
    assert sources.path("system.ai.other", "2") == "system.ai.other/2/all"


def test_a_relative_folder_stays_where_it_was_named(sources, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    sources.alias("system.ai.tiny", f"./{folder.name}")
    monkeypatch.chdir("/")

    assert sources.path("system.ai.tiny", "") == folder


@pytest.mark.parametrize(
    ("source", "version", "kept"),
    [
        ("models:/c.s.model/3", "", ("c.s.model", "3")),
        ("models:/c.s.model@champion", "", ("c.s.model", "champion")),
        ("c.s.model", "3", ("c.s.model", "3")),
        ("system.ai.first", "", ("c.s.first", "1")),
    ],
)
def test_an_alias_remembers_what_is_behind_it(sources, source, version, kept):
    sources.alias("system.ai.first", "models:/c.s.first/1")

    assert sources.alias("databricks-x", source, version) == ModelAlias("system.ai.x", *kept)
    assert sources.aliases()[-1] == ModelAlias("system.ai.x", *kept)
    assert sources.unalias("system.ai.x").endpoint == "databricks-x"
    assert [alias.name for alias in sources.aliases()] == ["system.ai.first"]


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("tiny", "c.s.model", "has to be system.ai.<name> or databricks-<name>"),
        ("databricks-a.b", "c.s.model", "has to be"),
        ("databricks-" + "a" * 53, "c.s.model", "52 at most"),
        ("databricks-x", "/nowhere/at/all", "There is no folder /nowhere/at/all"),
        ("databricks-x", "", "names no model"),
        ("databricks-x", "a/b/c", "names no model"),
        ("databricks-x", "https://example.org/x", "names no model"),
        ("databricks-x", "models:/m-123", "names no model"),
        ("databricks-x", "c.s.model", "Which version of the registered model 'c.s.model'"),
        ("databricks-x", "system.ai.none", "stands for no model here"),
    ],
)
def test_what_cannot_be_an_alias_is_refused_and_not_kept(sources, name, source, why):
    with pytest.raises(ConfigurationError) as refused:
        sources.alias(name, source)

    assert why in str(refused.value)
    assert sources.aliases() == []


def test_an_unknown_name_cannot_be_forgotten(sources):
    with pytest.raises(ConfigurationError, match="stands for no model"):
        sources.unalias("databricks-x")


# Declarations.


@pytest.mark.parametrize(
    ("entity", "name"),
    [
        ({"entity_name": "/models/llama-3.1-8B"}, "llama-3-1-8B"),
        ({"entity_name": "~/models/tiny/"}, "tiny"),
        ({"entity_name": "org/Model-1.5"}, "Model-1-5"),
        ({"entity_name": "org/model", "entity_version": "v2.0"}, "model-v2-0"),
        ({"entity_name": "system.ai.mixtral_8x7b", "entity_version": 3}, "mixtral_8x7b-3"),
        ({"entity_name": "main.ml.my_model", "entity_version": "1"}, "my_model-1"),
    ],
)
def test_a_served_entity_is_named_after_its_model(entity, name):
    config = parse_config({"served_entities": [entity]}, config_version=1, stash=None)

    assert config.served_entities[0].name == name
    assert config.routes[0].served_entity_name == name


def test_a_registered_model_needs_its_version():
    with pytest.raises(ConfigurationError, match="entity_version is missing"):
        parse_config({"served_entities": [{"entity_name": "main.ml.model"}]}, config_version=1, stash=None)


def test_a_declaration_learns_from_the_files_what_its_model_does(declared, folder):
    entity = declared(entity_name=str(folder), environment_vars={"AIQUERY_MAX_SEQUENCES": "8"})

    assert (entity.task, entity.foundation_model.model_type) == ("llm/v1/completions", "llama")


def test_throughput_is_declared_in_the_models_own_steps(declared, folder):
    (chunk,) = {declared.loader.foundation(str(folder), "").throughput_chunk_size for _ in range(2)}

    entity = declared(entity_name=str(folder), max_provisioned_throughput=2 * chunk)
    assert entity.foundation_model.throughput_chunk_size == chunk
    assert declared(entity_name=str(folder)).foundation_model.throughput_chunk_size is None
    with pytest.raises(ConfigurationError, match=f"multiple of {chunk} tokens per second"):
        declared(entity_name=str(folder), max_provisioned_throughput=2 * chunk + 1)


def test_throughput_is_not_provisioned_for_custom_models(declared, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {}}")

    with pytest.raises(ConfigurationError, match="is not optimizable"):
        declared(entity_name=str(tmp_path), max_provisioned_throughput=100)


def test_a_custom_model_in_a_folder_stays_one(declared, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {}}")

    assert declared(entity_name=str(tmp_path)).foundation_model is None


@pytest.mark.parametrize(
    ("entity", "why"),
    [
        ({"environment_vars": {"AIQUERY_DEVICE": "tpu"}}, "AIQUERY_DEVICE must be auto, cpu, cuda"),
        ({"environment_vars": {"AIQUERY_SPEED": "high"}}, "no setting AIQUERY_SPEED"),
        ({"entity_name": "/"}, "holds no model"),
    ],
)
def test_a_declaration_that_could_not_be_loaded_is_refused(declared, folder, entity, why):
    with pytest.raises(ConfigurationError, match=why):
        declared(**{"name": "m", "entity_name": str(folder)} | entity)


# A hub.


def _hub(request):
    path, content = request.path, None
    if path.startswith("/api/models/org/tiny/tree/"):
        content = json.dumps([{"type": "file", "oid": "b" * 40, "size": 1, "path": name} for name in ON_HUB]).encode()
    elif path.startswith("/api/models/org/tiny/"):
        siblings = [{"rfilename": name} for name in ON_HUB]
        content = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
    elif f"/resolve/{COMMIT}/" in path:
        content = ON_HUB[path.rpartition("/")[2]]
    if content is None:
        return Reply(status=404, body=b"{}")
    headers = {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
    return Reply(body=b"" if request.method == "HEAD" else content, headers=headers)


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: NOT tested")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackServer(_hub) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.origin)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.origin + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield SimpleNamespace(server=server, constants=constants)


def test_a_model_on_a_hub_is_fetched_without_anything_that_runs(hub_server, sources):
    described = sources.path("org/tiny", "", weights=False)
    assert [path.name for path in described.iterdir()] == ["config.json"]

    assert sorted(path.name for path in sources.path("org/tiny", "").iterdir()) == ["config.json", "model.safetensors"]


def test_what_was_fetched_once_is_there_without_a_network(hub_server, monkeypatch):
    folder = hub.fetch("org/tiny")

    monkeypatch.setattr(hub_server.constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("org/tiny") == folder
    with pytest.raises(ConfigurationError, match=r"'org/other' cannot be fetched .* HF_HUB_OFFLINE"):
        hub.fetch("org/other")


def test_a_hub_that_hangs_up_is_named(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed: NOT tested")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with LoopbackServer(lambda _: Reply(dropped=True)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.origin)
        with pytest.raises(ConfigurationError, match="'org/tiny' cannot be fetched from the hub"):
            hub.fetch("org/tiny")


def test_a_model_that_the_hub_has_not_is_named(hub_server, declared):
    with pytest.raises(ConfigurationError, match="'org/none' at revision 'v2' cannot be fetched from the hub"):
        declared(entity_name="org/none", entity_version="v2")
    assert declared(entity_name="org/tiny").foundation_model.model_type == "llama"


# A registry elsewhere.


def test_of_a_model_elsewhere_a_description_is_fetched_first(tmp_path, monkeypatch):
    remote = tmp_path / "remote"
    (remote / "model").mkdir(parents=True)
    for name in ("MLmodel", "model/config.json", "model/model.safetensors"):
        (remote / name).write_text("{}")
    models = Models("sqlite://", "sqlite://")
    monkeypatch.setattr(models, "_version", lambda name, version: version)
    monkeypatch.setattr(models, "_source", lambda name, number: str(remote))
    monkeypatch.setattr("aiquery_serving.models._local_folder", lambda uri: None)

    small = models.path("m", "1", weights=False)
    assert sorted(path.name for path in small.rglob("*") if path.is_file()) == ["MLmodel", "config.json"]
    whole = models.path("m", "1")
    assert (whole / "model" / "model.safetensors").is_file()
    assert models.path("m", "1", weights=False) == whole


# Endpoints that nobody has to create, and who may name models.


@pytest.fixture
def world():
    return World()


@pytest.fixture
def aliases(world):
    from aiquery_serving.control import ModelAliases

    return ModelAliases(world.control, ModelSources(Registered(), world._store))


def served(world, name="databricks-tiny"):
    (entity,) = world.registry.wait_until_settled(name, 20)["config"]["served_entities"]
    return entity


def test_an_alias_is_an_endpoint_that_everybody_known_may_query(world, aliases):
    world.give({"id": "0"}, None, "bob")
    aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/1")

    entity = served(world)
    assert (entity["name"], entity["entity_name"], entity["scale_to_zero_enabled"]) == ("tiny", "system.ai.tiny", True)
    endpoint = world.registry.get("databricks-tiny")
    assert world.access.level(endpoint["id"], endpoint["creator"], "bob") == "CAN_QUERY"
    assert world.access.level(endpoint["id"], endpoint["creator"], "nobody") is None


def test_an_alias_ends_nobodys_freedom_and_is_everybodys_once_it_has_ended(world, aliases):
    aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/1")
    assert not world.access.configured

    world.access.create_token("bob", by="ada")
    endpoint = world.registry.get("databricks-tiny")
    assert world.access.level(endpoint["id"], endpoint["creator"], "bob") == "CAN_QUERY"
    assert world.access.principal("ada").is_admin


def test_another_model_of_the_same_name_is_loaded_anew(world, aliases):
    aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/1")
    first = served(world)
    aliases.alias(world.who("ada"), "system.ai.tiny", "models:/c.s.model/2")

    assert (first["entity_version"], served(world)["entity_version"]) == ("1", "2")
    aliases.unalias(world.who("ada"), "databricks-tiny")
    assert world.registry.list() == {"endpoints": []}


def test_an_alias_takes_over_nobodys_endpoint(world, aliases):
    world.made(name="databricks-tiny")

    with pytest.raises(ConfigurationError, match=r"does not serve system\.ai\.tiny"):
        aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/1")
    assert aliases._sources.aliases() == []


def test_an_alias_whose_endpoint_is_refused_is_what_it_was(world, aliases):
    aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/1")
    served(world)
    world.gate.clear()
    aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/2")
    with pytest.raises(Exception, match="updat"):
        aliases.alias(world.who("ada"), "databricks-tiny", "models:/c.s.model/3")
    world.gate.set()

    assert [alias.version for alias in aliases._sources.aliases()] == ["2"]


def test_only_admins_name_models(world, aliases):
    world.give({"id": "0"}, None, "bob")

    with pytest.raises(PermissionDeniedError, match="name models"):
        aliases.alias(world.who("bob"), "databricks-tiny", "models:/c.s.model/1")
    with pytest.raises(PermissionDeniedError, match="name models"):
        aliases.unalias(world.who("bob"), "databricks-tiny")


@pytest.mark.parametrize(
    "entity",
    [
        {"entity_name": "/etc", "entity_version": "1"},
        {"entity_name": "org/model", "entity_version": "1"},
        {"model_name": "./model", "model_version": "1"},
        {"entity_name": "c.s.model", "entity_version": "1", "environment_vars": {"AIQUERY_ADAPTER": "lora"}},
    ],
)
def test_only_admins_serve_folders_and_models_of_a_hub(world, entity):
    world.give({"id": "0"}, None, "bob")
    word = "served_models" if "model_name" in entity else "served_entities"

    with pytest.raises(PermissionDeniedError, match="folders and models on a hub are for members"):
        world.control.create(world.who("bob"), {"name": "e", "config": {word: [entity]}})
    world.control.create(world.who("ada"), {"name": "e", "config": {word: [entity]}})
    assert world.registry.wait_until_settled("e", 20)["state"]["ready"] == "READY"


def test_who_manages_an_endpoint_may_keep_the_folder_that_it_serves(world):
    config = {"served_entities": [{"name": "m", "entity_name": "/models/a"}]}
    endpoint = world.made(config)
    bob = world.give(endpoint, "CAN_MANAGE")

    larger = [{**config["served_entities"][0], "workload_size": "Large"}]
    world.control.update_config(bob, "e", {"served_entities": larger})
    world.registry.wait_until_settled("e", 20)
    with pytest.raises(PermissionDeniedError, match="'/models/b'"):
        world.control.update_config(bob, "e", {"served_entities": [{"name": "m", "entity_name": "/models/b"}]})
