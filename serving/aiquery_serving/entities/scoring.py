"""The JSON of custom models (contract D.1): request body to model input, model output to JSON."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from aiquery_serving.errors import InvalidRequestError, MalformedRequestError

INPUT_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
#: Parts of the envelope that are no input of the model.
ENVELOPE = frozenset({"client_request_id", "usage_context", "databricks_options"})
_UNIFIED = ("messages", "prompt", "input")


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringInput:
    """What a request body asks of a model.

    `is_unified` marks the LLM shortcut, whose answer is not wrapped in `predictions`.
    """

    data: Any
    params: dict[str, Any] | None
    is_unified: bool = False


def parse(payload: Mapping[str, Any], metadata: Any) -> ScoringInput:
    """Read a request body for the model that an MLflow `Model` describes.

    Raises:
        MalformedRequestError: The body has not exactly one of the four input forms.
        InvalidRequestError: The form's value is not what the form, or the signature, says.
    """
    if not isinstance(payload, Mapping):
        kind = "a list" if isinstance(payload, list) else f"a {type(payload).__name__}"
        raise MalformedRequestError(f"{_required_forms()}. Received {kind}.")
    body = {key: value for key, value in payload.items() if key not in ENVELOPE}
    if any(key in body for key in _UNIFIED):
        return _unified(body, metadata)
    form = _only_form(body)
    if metadata._is_signature_from_type_hint():  # noqa: SLF001 MLflow's own scorer asks the same
        return ScoringInput(_raw(body, form), body.get("params"))
    data = _frame(form, body[form], metadata.get_input_schema())
    return ScoringInput(data, body.get("params"))


def _required_forms() -> str:
    return f"The input must be a JSON dictionary with exactly one of the input fields {', '.join(INPUT_FORMS)}"


def _unified(body: dict[str, Any], metadata: Any) -> ScoringInput:
    schema = metadata.get_params_schema()
    names = {param.name for param in schema.params} if schema is not None else set()
    data = {key: value for key, value in body.items() if key not in names}
    params = {key: value for key, value in body.items() if key in names}
    return ScoringInput(data, params, is_unified=True)


def _only_form(body: Mapping[str, Any]) -> str:
    forms = [form for form in INPUT_FORMS if form in body]
    if len(forms) != 1:
        raise MalformedRequestError(f"{_required_forms()}. Received dictionary with input fields: {list(body)}.")
    return forms[0]


def _raw(body: Mapping[str, Any], form: str) -> Any:
    if form != "inputs":
        raise InvalidRequestError(
            "Request payload must be a dictionary with 'inputs' key when the model contains a valid "
            f"type hint. Found keys in payload: {list(body)}."
        )
    return body[form]


def _frame(form: str, value: Any, schema: Any) -> Any:
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    try:
        return infer_and_parse_data({form: value}, schema)
    except MlflowException as error:
        raise InvalidRequestError(error.message) from error


def response(output: Any, *, is_unified: bool) -> dict[str, Any]:
    """Return the response body: the answer under `predictions`, or an LLM's answer as it is."""
    answer = jsonable(output)
    if is_unified and isinstance(answer, dict):
        return answer
    return {"predictions": answer}


def jsonable(value: Any) -> Any:  # noqa: PLR0911 one line per kind of value
    """Return a value with nothing in it but JSON's own types.

    Data frames become lists of records, arrays nested lists, datetimes ISO text, bytes base64; NaN,
    infinity and everything that pandas calls missing become null.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [jsonable(item) for item in value]
    if isinstance(value, pd.DataFrame | pd.Series):
        return _records(pd.DataFrame(value))
    if isinstance(value, np.ndarray):
        return _nested(value)
    return _scalar(value)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    columns = [jsonable(frame.iloc[:, at].tolist()) for at in range(len(names))]
    if not columns:
        return [{} for _ in range(len(frame))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _nested(values: np.ndarray[Any, Any]) -> Any:
    if values.dtype.kind == "M":
        return jsonable(np.datetime_as_string(values).tolist())
    is_plain = values.dtype.kind in "iubU"
    is_plain = is_plain or (values.dtype.kind == "f" and bool(np.isfinite(values).all()))
    return values.tolist() if is_plain else jsonable(values.tolist())


def _scalar(value: Any) -> Any:  # noqa: PLR0911 one line per kind of value
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, decimal.Decimal):
        return jsonable(float(value))
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.generic):
        return jsonable(value.item())
    return _object(value)


def _object(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value))
    if hasattr(value, "toarray"):  # a scipy sparse matrix
        return jsonable(value.toarray())
    if hasattr(value, "detach"):  # a torch tensor may hang on a graph or live on a GPU
        value = value.detach().cpu()
    if hasattr(value, "__array__"):
        return jsonable(np.asarray(value))
    return str(value)
