"""How rows reach a model: as one frame, as a list of type-hinted values, or one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Protocol, cast, get_args

import orjson
import pyarrow as pa

from aiquery_serving.entities.columns import python_values
from aiquery_serving.entities.frames import Plan, plan
from aiquery_serving.entities.scoring import jsonable
from aiquery_serving.entities.signature import inputs_of, output_type, properties_of
from aiquery_serving.errors import InvalidRequestError

#: Checked plans that an entity keeps: a query has one Arrow schema, a process a few queries.
KEPT_PLANS = 8

#: MLflow's loaders of chat-like models, and the key that holds a conversation.
_AGENTS = {
    "mlflow.pyfunc.loaders.chat_agent": "messages",
    "mlflow.pyfunc.loaders.chat_model": "messages",
    "mlflow.pyfunc.loaders.responses_agent": "input",
}
_END = object()


class Scorer(Protocol):
    """One way from rows to a model."""

    input_schema: pa.Schema | None
    output_type: pa.DataType | None

    def score(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None) -> Any:
        """Return what the model returns for these rows, of whatever type that is."""
        ...


def scorer(model: Any) -> Scorer:
    """Return the way that fits an MLflow `PyFuncModel`."""
    if model.loader_module in _AGENTS:
        return AgentScorer(model)
    if model.metadata._is_signature_from_type_hint():  # noqa: SLF001 no public way to ask
        return HintScorer(model)
    return FrameScorer(model)


class FrameScorer:
    """Hands over a data frame or arrays, and goes below MLflow's own check where ours is enough.

    MLflow's check of a call's schema takes milliseconds, more than many models take for a batch.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inputs = inputs_of(model.metadata.get_input_schema())
        self._direct = _direct(model) if _needs_columns_only(model) else None
        # Replaced as a whole, never changed: threads share it without a lock.
        self._plans: tuple[tuple[pa.Schema, Plan], ...] = ()
        self.input_schema = self._inputs.schema() if self._inputs else None
        self.output_type = output_type(model.metadata.get_output_schema())

    def score(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None) -> Any:
        """Call the model once for the batch."""
        frame = self._plan(rows.schema)(rows)
        if self._direct is None or params:
            return self._model.predict(frame, params=dict(params) if params else None)
        return self._direct(frame)

    def _plan(self, schema: pa.Schema) -> Plan:
        for known, made in self._plans:
            if known.equals(schema):
                return made
        made = plan(self._inputs, schema)
        self._plans = ((schema, made), *self._plans[: KEPT_PLANS - 1])
        return made


def _needs_columns_only(model: Any) -> bool:
    """Whether MLflow's own call would do no more than check the columns."""
    metadata = model.metadata
    inputs = inputs_of(metadata.get_input_schema())
    return (
        (inputs is None or inputs.is_flat)
        and metadata.get_params_schema() is None
        and not metadata._is_type_hint_from_example()  # noqa: SLF001 no public way to ask
        and not (metadata.metadata or {}).get("dependencies_schemas")
    )


def _direct(model: Any) -> Any:
    name = model.metadata.flavors["python_function"].get("predict_fn", "predict")
    predict = getattr(model._model_impl, name)  # noqa: SLF001 MLflow calls it a stable API
    params = inspect.signature(predict).parameters.get("params")
    takes_params = params is not None and params.kind is not inspect.Parameter.VAR_KEYWORD
    return partial(predict, params=None) if takes_params else predict


class HintScorer:
    """Hands over a list of values, one per row, to a model whose type hints say what they are."""

    def __init__(self, model: Any) -> None:
        self._model = model
        schema = model.metadata.get_input_schema()
        record = properties_of(schema)
        inputs = inputs_of(schema)
        self._is_record = record is not None
        self.input_schema = _with_defaults(model, record) if record is not None else inputs.schema() if inputs else None
        self._value_type = pa.struct(list(record)) if record is not None else inputs.columns[0].type if inputs else None
        self.output_type = output_type(model.metadata.get_output_schema())

    def score(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None) -> Any:
        """Call the model once for the batch; MLflow checks the values against the hints."""
        return self._model.predict(self._values(rows), params=dict(params) if params else None)

    def _values(self, rows: pa.RecordBatch) -> list[Any]:
        if rows.num_columns != 1 or (self._is_record and not _holds_records(rows)):
            return python_values(rows.to_struct_array(), self._value_type)
        return python_values(rows.column(0), self._value_type)


def _with_defaults(model: Any, record: pa.Schema) -> pa.Schema:
    """Make the fields optional that have a default; MLflow's signature knows only of those that may be None."""
    hints = getattr(model.unwrap_python_model(), "predict_type_hints", None)
    (element,) = get_args(getattr(hints, "input", None))[:1] or (None,)
    known = getattr(element, "model_fields", {})
    defaults = {name for name, field in known.items() if not field.is_required()}
    return pa.schema([field.with_nullable(field.nullable or field.name in defaults) for field in record])


def _holds_records(rows: pa.RecordBatch) -> bool:
    kind = rows.column(0).type
    return bool(pa.types.is_struct(kind) or pa.types.is_map(kind))


def untraced(model: Any) -> Callable[..., Any]:
    """Return a model's predict(); an agent's without MLflow's tracing of every call.

    That is on by default for agents, and leaves a database in whatever folder the process happens to be in.
    """
    if model.loader_module not in _AGENTS:
        return cast("Callable[..., Any]", model.predict)
    from mlflow.tracing.provider import trace_disabled

    return cast("Callable[..., Any]", trace_disabled(model.predict))


def streamer(model: Any) -> Callable[..., Iterator[Any]] | None:
    """Return a model's predict_stream(), for agents as `untraced` has it; None if the model has none of its own."""
    if model._predict_stream_fn is None or not _streams_itself(model._model_impl):  # noqa: SLF001 no public way to ask
        return None
    if model.loader_module not in _AGENTS:
        return cast("Callable[..., Iterator[Any]]", model.predict_stream)
    from mlflow.tracing.provider import trace_disabled

    def stream(data: Any, params: Mapping[str, Any] | None = None) -> Iterator[Any]:
        with closing(model.predict_stream(data, params=params)) as pieces:
            # Every step by itself: what runs between two of them is not the agent's.
            yield from iter(trace_disabled(partial(next, pieces, _END)), _END)

    return stream


def _streams_itself(implementation: Any) -> bool:
    """Whether predict_stream() is not just the one that MLflow's classes inherit, which only raises."""
    raw = getattr(implementation, "python_model", implementation)
    if hasattr(raw, "get_raw_model"):
        raw = raw.get_raw_model()
    owner = next((kind for kind in type(raw).__mro__ if "predict_stream" in vars(kind)), None)
    return owner is None or owner.__module__ != "mlflow.pyfunc.model"


class AgentScorer:
    """Hands conversations to a ChatAgent, ChatModel or ResponsesAgent one row at a time.

    A row's fields are the request's keys (`messages`, or `input`; NULL leaves a key out); one text
    column is taken as the user's message. Each answer is the JSON text of the agent's response.
    """

    def __init__(self, model: Any) -> None:
        self._predict = untraced(model)
        self._key = _AGENTS[model.loader_module]
        # Of any type: a text is as good as a list of messages, and the agent checks the rest.
        self.input_schema = pa.schema([pa.field(self._key, pa.null())])
        self.output_type = pa.string()

    def score(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None) -> list[str]:
        """Call the agent once per row."""
        own = dict(params) if params else None
        return [self._answer(request, own) for request in self._requests(rows)]

    def _answer(self, request: dict[str, Any], params: dict[str, Any] | None) -> str:
        output = self._predict(request, params=params)
        return orjson.dumps(jsonable(output)).decode()

    def _requests(self, rows: pa.RecordBatch) -> list[dict[str, Any]]:
        if rows.num_columns == 1 and pa.types.is_string(rows.column(0).type):
            texts = rows.column(0).to_pylist()
            return [{self._key: [{"role": "user", "content": text}]} for text in texts]
        if self._key not in rows.schema.names:
            raise InvalidRequestError(
                f"The request has the fields {rows.schema.names}, and the agent takes a STRUCT with the field "
                f"{self._key!r}, or a text as the user's message."
            )
        records = python_values(rows.to_struct_array(), None)
        return [{key: value for key, value in row.items() if value is not None} for row in records]
