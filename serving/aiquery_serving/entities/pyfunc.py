"""Custom models: any MLflow pyfunc, whole Arrow batches in and Arrow arrays out."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from aiquery_serving.entities.answers import answers
from aiquery_serving.entities.merging import is_mergeable
from aiquery_serving.entities.microbatch import Microbatcher
from aiquery_serving.entities.scorers import Scorer, scorer, streamer, untraced
from aiquery_serving.entities.scoring import ScoringInput, parse, response
from aiquery_serving.errors import AiQueryError, InvalidRequestError, ModelError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from aiquery_serving.messages import Json

# Loading changes what the whole process shares: os.environ, sys.path, imported modules.
_loading = threading.Lock()

#: How MLflow says that an input does not fit, where its error code does not.
_MISFITS = ("Failed to enforce schema", "Failed to validate")


class PyfuncEntity:
    """A custom model in this process (`messages.BatchEntity`, `messages.StreamingModel`).

    Attributes:
        can_stream: Whether the model can answer piece by piece.
        mergeable: Whether requests that come together may be answered together: every input is a named column.
        aquery: `query` for callers on an event loop, in batches where that pays (`microbatch.Microbatcher.ask`).
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self._model = model
        self._scorer: Scorer = scorer(model)
        self._stream = streamer(model)
        self.input_schema = self._scorer.input_schema
        self.output_type = self._scorer.output_type
        self.can_stream = self._stream is not None
        self.mergeable = is_mergeable(model.metadata)
        self.aquery = Microbatcher(self.query, merges=self.mergeable).ask

    def predict(self, rows: pa.RecordBatch, params: Mapping[str, Any] | None = None) -> pa.Array:
        """Return one answer per row; a batch without rows does not reach the model.

        Raises:
            InvalidRequestError: The rows do not fit the model's signature.
            ModelError: The model raised, or gave another number of answers than rows.
        """
        if rows.num_rows == 0:
            return pa.array([], self.output_type or pa.null())
        try:
            output = self._scorer.score(rows, params)
        except AiQueryError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 a model may raise anything
            self._translate(error)
        return answers(output, rows.num_rows, self.output_type)

    def query(self, payload: Mapping[str, Any]) -> Json:
        """Answer one REST request body of contract D.1.

        Raises:
            MalformedRequestError: The body has not exactly one of the four input forms.
            InvalidRequestError: The input does not fit the model's signature.
            ModelError: The model raised.
        """
        asked = parse(payload, self._model.metadata)
        try:
            output = untraced(self._model)(asked.data, params=asked.params)
        except (Exception, SystemExit) as error:  # noqa: BLE001 a model may raise anything
            self._translate(error, _failed_on(asked))
        return response(output, is_unified=asked.is_unified)

    def stream(self, payload: Mapping[str, Any]) -> Generator[Json, None, None]:
        """Yield the pieces of one answer as the model gives them; what is not an object comes under `predictions`.

        Raises:
            MalformedRequestError: The body has not exactly one of the four input forms.
            InvalidRequestError: The input does not fit the model's signature, or the model cannot stream.
            ModelError: The model raised.
        """
        if self._stream is None:
            raise InvalidRequestError(
                f"Model {self.name!r} cannot answer piece by piece: it has no predict_stream(). "
                "Ask without `stream`, or log a model that has one."
            )
        asked = parse(payload, self._model.metadata)
        try:
            for piece in self._stream(asked.data, params=asked.params):
                yield response(piece, is_unified=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 a model may raise anything
            self._translate(error, _failed_on(asked))

    def _translate(self, error: BaseException, prefix: str = "") -> NoReturn:
        if _is_misfit(error):
            raise InvalidRequestError(f"{prefix}{error}") from error
        raise ModelError(
            "Encountered an unexpected error while evaluating the model. Verify that the input is "
            f"compatible with the model for inference. Model {self.name!r} raised {_reason(error)}"
        ) from error


def load_pyfunc(path: Path, *, name: str, environment: Mapping[str, str]) -> PyfuncEntity:
    """Load the model in a folder that `mlflow.pyfunc` wrote.

    The environment variables are set before the model's code runs and stay set, because models read
    them while they predict as well. They are the process's own: two models that want different values
    under one name cannot both have theirs.

    Raises:
        ModelError: The folder holds no pyfunc model, or the model's own code raised.
    """
    with _loading:
        try:
            with _environment(environment):
                return PyfuncEntity(name, _load(path))
        except (Exception, SystemExit) as error:
            raise ModelError(f"Model {name!r} could not be loaded: {_reason(error)}") from error


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        # MLflow warns about its own types while it imports itself, and hides that only by half.
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

    # What MLflow would warn of (versions of packages that differ) is for whoever logs the model.
    return mlflow.pyfunc.load_model(str(path), suppress_warnings=True)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and take them back if what follows fails."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    except BaseException:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        raise


def _failed_on(asked: ScoringInput) -> str:
    return f"Failed to predict data '{asked.data}'. \nError: "


def _is_misfit(error: BaseException) -> bool:
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    return error.error_code == "INVALID_PARAMETER_VALUE" or any(text in error.message for text in _MISFITS)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
