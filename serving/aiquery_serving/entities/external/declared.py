"""What an external model declares: its task, the members of its provider's block, its key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.external.entity import PrivateHeaders
from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel

JSON_HEADERS = {"content-type": "application/json", "accept": "application/json"}


def require_task(model: ExternalModel, tasks: Collection[str], *, by: str) -> None:
    """Let pass a model whose task its provider offers.

    Raises:
        ConfigurationError: It does not; the message says what it offers.
    """
    if model.task not in tasks:
        raise ConfigurationError(
            f"External model '{model.name}' has the task '{model.task}'; {by} offers {' and '.join(tasks)}."
        )


def member(config: Mapping[str, Any], name: str, *, of: str, hint: str = "") -> str:
    """Return a member that a provider's block must have.

    Args:
        config: The block.
        name: The member's name.
        of: The block's name, for the message.
        hint: The end of the message: what for, or an example.

    Raises:
        ConfigurationError: It is missing.
    """
    value = config.get(name)
    if not value:
        raise ConfigurationError(f"{of} needs '{name}'{hint}.")
    return str(value)


def secret(config: Mapping[str, Any], name: str, *, of: str) -> str:
    """Return the reference to a secret that a provider's block must have.

    Raises:
        ConfigurationError: It is missing.
    """
    return member(config, name, of=of, hint=f" (or '{name}_plaintext'), such as '{{{{secrets/scope/key}}}}'")


def bearer(
    reference: str, resolve: Callable[[str], str], *, public: Mapping[str, str] = JSON_HEADERS
) -> Callable[[], PrivateHeaders]:
    """Return what makes the headers of a key that is sent as `Authorization: Bearer …`."""
    return lambda: PrivateHeaders(public=public, secret={"authorization": f"Bearer {resolve(reference)}"})
