"""Queries to endpoints: from a path and a body to an answer, whole or piece by piece (contract B.4, D)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import EndpointNotReadyError, ModelError
from aiquery_serving.messages import EMBEDDINGS, Json
from aiquery_serving.rest import openai_routes, task_fields
from aiquery_serving.rest.bodies import CAP, CUSTOM_CAP, refuse_larger
from aiquery_serving.rest.departures import Attended
from aiquery_serving.rest.events import Begun, begun
from aiquery_serving.rest.messages import Headers, Reply

if TYPE_CHECKING:
    from aiquery_serving.gateway import Gateway
    from aiquery_serving.messages import Response
    from aiquery_serving.registry import Serving
    from aiquery_serving.rest.arrivals import Arrival
    from aiquery_serving.rest.serves import Serves

#: How long a query waits for a model that loads in this process: clients give up after a minute.
COLD_SECONDS: Final = 45.0
_NAP_SECONDS: Final = 0.05

#: What a query comes to.
Answer: TypeAlias = Reply | Begun


@dataclass(frozen=True, slots=True)
class Target:
    """What a path asks: an endpoint, one of its served entities, or whatever `model` the body names."""

    endpoint: str = ""
    served_entity: str | None = None
    openai: str = ""


def target(path: str) -> Target | None:
    """Return what a path asks; None when it is no query.

    Examples:
        >>> target("/serving-endpoints/chat/invocations")
        Target(endpoint='chat', served_entity=None, openai='')
        >>> target("/serving-endpoints/chat/completions")
        Target(endpoint='', served_entity=None, openai='chat/completions')
    """
    match path.split("/"):
        case ["", "serving-endpoints", name, "invocations"] if name:
            return Target(name)
        case ["", "serving-endpoints", name, "served-models", served, "invocations"] if name and served:
            return Target(name, served)
    route = openai_routes.ROUTES.get(path)
    return Target(openai=route) if route else None


async def answer(asked: Target, arrival: Arrival, serves: Serves) -> Answer:
    """Answer a query. What comes piece by piece has begun when this returns; to send it is to close it.

    Raises:
        AiQueryError: The query is wrong, or was not answered.
    """
    gateway = serves.gateway
    if asked.openai:
        serving, body = await _named_in_body(asked.openai, arrival, gateway)
    else:
        serving = await _serving(gateway, asked.endpoint, arrival.who.name)
        body = await arrival.document(_cap(serving))
    arrival.exchange.endpoint = serving.name
    for observer in serves.observers:
        observer.asked(arrival.exchange)
    as_base64 = _prepare(serving.config.task, body)
    who, request_id = arrival.who.name, arrival.exchange.id
    with Attended(arrival.receive, arrival.patience):
        if body.get("stream") is True and serving.config.task != EMBEDDINGS:
            streamed = await gateway.stream(
                serving.name, body, served_entity=asked.served_entity, caller=who, patient=False, request_id=request_id
            )
            return await begun(streamed)
        body.pop("stream", None)
        response = await gateway.invoke(
            serving.name, body, served_entity=asked.served_entity, caller=who, patient=False, request_id=request_id
        )
    return _whole(response, arrival, as_base64=as_base64)


async def _serving(gateway: Gateway, endpoint: str, who: str) -> Serving:
    """Return what an endpoint serves; one that is in service, and loads in this process only now, is waited for."""
    until = monotonic() + COLD_SECONDS
    while True:
        try:
            return gateway.serving(endpoint, caller=who)
        except EndpointNotReadyError as error:
            if not error.deployed or monotonic() >= until:
                raise
        await asyncio.sleep(_NAP_SECONDS)


async def _named_in_body(path: str, arrival: Arrival, gateway: Gateway) -> tuple[Serving, Json]:
    body = await arrival.document(CUSTOM_CAP)
    serving = await _serving(gateway, openai_routes.model_of(body), arrival.who.name)
    refuse_larger(arrival.exchange.bytes_in, _cap(serving))
    openai_routes.require_task(serving.name, serving.config.task, path)
    del body["model"]
    if path == "responses":
        openai_routes.with_messages(body)
    return serving, body


def _prepare(task: str | None, body: Json) -> bool:
    """Check a body, and leave in it what models understand; say whether embeddings are wanted in base64.

    Raises:
        InvalidRequestError: A field is missing or wrong.
    """
    if task is None:
        return False
    task_fields.check(task, body)
    return task == EMBEDDINGS and body.pop("encoding_format", None) == "base64"


def _cap(serving: Serving) -> int:
    return CUSTOM_CAP if serving.config.kind is Kind.CUSTOM else CAP


def served_by(served_entity: str) -> Headers:
    """Return the header that tells who answers."""
    return ((b"served-model-name", served_entity.encode()),)


def _whole(response: Response, arrival: Arrival, *, as_base64: bool) -> Reply:
    arrival.exchange.served_entity = response.served_entity
    body: Any = openai_routes.with_base64(response.body) if as_base64 else response.body
    try:
        return Reply.json(body, 200, served_by(response.served_entity))
    except TypeError as error:
        raise ModelError(
            f"Served entity '{response.served_entity}' gave an answer that JSON has no form for: {error}."
        ) from error
