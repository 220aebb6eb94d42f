"""Keys that came in clear with a declaration, on their way into the workspace's secrets."""

from __future__ import annotations

import re

from aiquery_serving.secrets import ENVIRONMENT_SCOPE, Secrets, reference


class Stash:
    """Secrets that came in clear, kept until the declaration is stored.

    Args:
        endpoint: The endpoint's name, which is the secrets' scope.
        version: The version of the config that they came with: the config that still serves keeps its own.
    """

    def __init__(self, endpoint: str, version: int) -> None:
        # A dot, which no endpoint's name has, keeps off the scope `env`.
        self._scope = f"{endpoint}.endpoint" if endpoint == ENVIRONMENT_SCOPE else endpoint
        self._version = version
        self._values: dict[str, str] = {}

    def __call__(self, name: str, value: str) -> str:
        """Keep a value, and return the reference that takes its place."""
        key = re.sub(r"[^A-Za-z0-9_-]+", ".", name) + f".v{self._version}"
        self._values[key] = value
        return reference(self._scope, key)

    def put_into(self, secrets: Secrets, *, owner: str) -> None:
        """Store what was kept, to live and die with an endpoint.

        Raises:
            SecretError: The workspace's key cannot be used.
            WorkspaceError: The workspace cannot be written.
        """
        for key, value in self._values.items():
            secrets.put(self._scope, key, value, owner=owner)
