"""The control plane of a workspace in memory, whose models load as a test says."""

from __future__ import annotations

import threading

from aiquery_serving.access import Access, Grant
from aiquery_serving.clock import SystemClock
from aiquery_serving.connections import Connections
from aiquery_serving.control import ControlPlane, ExternalFunctions
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.gateway import Gateway
from aiquery_serving.registry import Registry
from aiquery_serving.secrets import Secrets
from aiquery_serving.served_log import ServedLog
from aiquery_serving.store import Store

SECRET = "sk-very-secret"
CUSTOM = {"served_entities": [{"name": "current", "entity_name": "c.s.model-A", "entity_version": "1"}]}
EXTERNAL = {
    "served_entities": [
        {
            "name": "gpt",
            "external_model": {
                "provider": "openai",
                "name": "gpt-4",
                "task": "llm/v1/chat",
                "openai_config": {"openai_api_key_plaintext": SECRET},
            },
        }
    ]
}


class Model:
    input_schema = output_type = None

    def predict(self, rows, params=None):
        raise NotImplementedError

    def query(self, payload):
        return {}


class Models:
    def path(self, name, version):
        raise ConfigurationError(f"Registered model '{name}' has no files any more.")

    def check(self, name, version):
        if version == "404":
            raise ConfigurationError(f"There is no registered model '{name}'.")


class World:
    """A workspace; `control` and `gateway` are what a server needs of it."""

    user = "ada"

    def __init__(self):
        clock = SystemClock()
        self._store = store = Store(None)
        self.secrets = Secrets(store, key=None)
        self.access = Access(store, clock)
        self.log = ServedLog(store, clock.epoch_ms)
        self.gate = threading.Event()
        self.gate.set()
        self.failure = None
        self.forgotten = []
        self.registry = Registry(
            store, self.secrets, load=self.load, resolve=lambda entity: Models().check("", entity.entity_version) or entity,
            clock=clock,
        )  # fmt: skip
        self.control = ControlPlane(
            registry=self.registry, access=self.access, models=Models(), served_log=self.log,
            external=ExternalFunctions(Connections(store), self.access, self.secrets), forget=self.forgotten.append,
        )  # fmt: skip
        self.gateway = Gateway(self.registry, clock=clock, access=self.access)

    def load(self, entity, say):
        assert self.gate.wait(20)
        if self.failure:
            raise self.failure
        return Model()

    def who(self, name):
        return self.access.principal(name)

    def give(self, endpoint, level, name="bob"):
        """Give somebody a level; None gives them a token alone, so that they are known."""
        if level is None:
            self.access.create_token(name, by="ada")
        else:
            self.access.merge_acl(endpoint["id"], [Grant("user", name, level)], by="ada")
        return self.who(name)

    def made(self, config=CUSTOM, name="e", who="ada", **more):
        self.control.create(self.who(who), {"name": name, "config": config, **more})
        return self.registry.wait_until_settled(name, 20)
