"""Every error of the core, its wire code, its HTTP status and whether a retry helps.

    AiQueryError                    INTERNAL_ERROR            500
    ├── ConfigurationError          INVALID_PARAMETER_VALUE   400
    ├── InvalidRequestError         INVALID_PARAMETER_VALUE   400
    │   ├── MalformedRequestError   BAD_REQUEST               400
    │   ├── PayloadTooLargeError    BAD_REQUEST               413
    │   ├── MediaTypeError          BAD_REQUEST               415
    │   ├── SlowRequestError        BAD_REQUEST               408
    │   ├── ContextLengthError      BAD_REQUEST               400
    │   └── GuardrailError          BAD_REQUEST               400
    ├── UnauthenticatedError        UNAUTHENTICATED           401
    ├── PermissionDeniedError       PERMISSION_DENIED         403
    ├── RouteNotFoundError          ENDPOINT_NOT_FOUND        404
    │   └── MethodNotAllowedError   ENDPOINT_NOT_FOUND        405
    ├── EndpointNotFoundError       RESOURCE_DOES_NOT_EXIST   404
    ├── EndpointExistsError         RESOURCE_ALREADY_EXISTS   409
    ├── UpdateConflictError         RESOURCE_CONFLICT         409
    ├── EndpointNotReadyError       TEMPORARILY_UNAVAILABLE   503  retry
    ├── EndpointFailedError         RESOURCE_DOES_NOT_EXIST   404
    ├── TooManyRequestsError        REQUEST_LIMIT_EXCEEDED    429  retry
    │   └── ThroughputError         REQUEST_LIMIT_EXCEEDED    429  retry
    ├── JobStoppedError             CANCELLED                 499
    │   └── BudgetReachedError      RESOURCE_EXHAUSTED        429
    ├── WorkspaceError              INTERNAL_ERROR            500
    │   └── LedgerError             INTERNAL_ERROR            500
    ├── SecretError                 INVALID_PARAMETER_VALUE   400
    └── InvocationError             INTERNAL_ERROR            500
        ├── CancelledCallError      CANCELLED                 499
        ├── ModelError              BAD_REQUEST               400
        │   ├── ModelCrashError     BAD_REQUEST               400
        │   └── EngineError         INTERNAL_ERROR            500  retry
        ├── OverloadedError         TEMPORARILY_UNAVAILABLE   503  retry
        └── ProviderError           INTERNAL_ERROR            502
            ├── ProviderRequestError      BAD_REQUEST              400
            │   └── RequestTooLargeError  BAD_REQUEST              413
            ├── ProviderAccessError       PERMISSION_DENIED        403
            ├── ProviderQuotaError        PERMISSION_DENIED        403
            ├── ProviderRateLimitError    REQUEST_LIMIT_EXCEEDED   429  retry
            ├── ProviderUnavailableError  TEMPORARILY_UNAVAILABLE  503  retry
            ├── ProviderTimeoutError      DEADLINE_EXCEEDED        504  retry
            └── ProviderResponseError     INTERNAL_ERROR           502

Codes are Databricks' own (contract B.0): MLflow rebuilds the HTTP status from the code alone, so every
error carries one from that list. A test compares this drawing with the classes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AiQueryError(Exception):
    """Anything that aiquery itself says went wrong."""

    error_code: ClassVar[str] = "INTERNAL_ERROR"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    #: Seconds after which a retry may succeed, when somebody said so.
    retry_after: float | None = None
    #: How often a served entity was asked for the request that failed, and which was the last.
    attempts: int = 0
    served_entity: str = ""


class ConfigurationError(AiQueryError):
    """A declaration of an endpoint cannot work."""

    error_code = "INVALID_PARAMETER_VALUE"
    http_status = 400


class InvalidRequestError(AiQueryError):
    """A request does not fit what the endpoint takes."""

    error_code = "INVALID_PARAMETER_VALUE"
    http_status = 400


class MalformedRequestError(InvalidRequestError):
    """A request has not one of the shapes that endpoints understand."""

    error_code = "BAD_REQUEST"


class PayloadTooLargeError(InvalidRequestError):
    """A request body is larger than the endpoint takes."""

    error_code = "BAD_REQUEST"
    http_status = 413


class MediaTypeError(InvalidRequestError):
    """A request body is of a kind or an encoding that the server does not read."""

    error_code = "BAD_REQUEST"
    http_status = 415


class SlowRequestError(InvalidRequestError):
    """A client took too long to send its request."""

    error_code = "BAD_REQUEST"
    http_status = 408


class ContextLengthError(InvalidRequestError):
    """A prompt, or what it asks for, is longer than the model's context."""

    error_code = "BAD_REQUEST"


class GuardrailError(InvalidRequestError):
    """A guardrail of the endpoint refuses a request or its answer; `finish_reason` says which."""

    error_code = "BAD_REQUEST"

    def __init__(self, message: str, *, finish_reason: str = "") -> None:
        super().__init__(message)
        self.finish_reason = finish_reason


class UnauthenticatedError(AiQueryError):
    """Nobody is known by the token of a request, or there is no token."""

    error_code = "UNAUTHENTICATED"
    http_status = 401


class PermissionDeniedError(AiQueryError):
    """Whoever asks may not do that."""

    error_code = "PERMISSION_DENIED"
    http_status = 403


class RouteNotFoundError(AiQueryError):
    """The server has no route of that path."""

    error_code = "ENDPOINT_NOT_FOUND"
    http_status = 404


class MethodNotAllowedError(RouteNotFoundError):
    """The route is there, for another method."""

    http_status = 405


class EndpointNotFoundError(AiQueryError):
    """No endpoint, or no served entity, has that name."""

    error_code = "RESOURCE_DOES_NOT_EXIST"
    http_status = 404


class EndpointExistsError(AiQueryError):
    """The name of a new endpoint is taken."""

    error_code = "RESOURCE_ALREADY_EXISTS"
    http_status = 409


class UpdateConflictError(AiQueryError):
    """Another update of the endpoint is in progress."""

    error_code = "RESOURCE_CONFLICT"
    http_status = 409


class EndpointNotReadyError(AiQueryError):
    """The first deployment of the endpoint is still loading; `deployed` says that only this process's is."""

    deployed = False
    #: The endpoint's id and creator: not everybody may know how it is.
    belongs: tuple[str, str] | None = None

    error_code = "TEMPORARILY_UNAVAILABLE"
    http_status = 503
    retryable = True


class EndpointFailedError(AiQueryError):
    """The endpoint has no served entity that could be loaded."""

    #: As `EndpointNotReadyError.belongs`.
    belongs: tuple[str, str] | None = None

    error_code = "RESOURCE_DOES_NOT_EXIST"
    http_status = 404


class TooManyRequestsError(AiQueryError):
    """A rate limit of the endpoint is used up; `retry_after` says for how long."""

    error_code = "REQUEST_LIMIT_EXCEEDED"
    http_status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ThroughputError(TooManyRequestsError):
    """The throughput that is provisioned for a served entity is used up."""


class JobStoppedError(AiQueryError):
    """A job may not send any more: its budget, its deadline, a pause or a cancel ended it."""

    error_code = "CANCELLED"
    http_status = 499


class BudgetReachedError(JobStoppedError):
    """The next request of a job may cost more than is left of its budget."""

    error_code = "RESOURCE_EXHAUSTED"
    http_status = 429


class WorkspaceError(AiQueryError):
    """The workspace folder cannot be read or written."""


class LedgerError(WorkspaceError):
    """The ledger of answers that were paid for cannot be read or written."""


class SecretError(AiQueryError):
    """A secret is missing, unreadable or badly named. The message never holds its value."""

    error_code = "INVALID_PARAMETER_VALUE"
    http_status = 400


class InvocationError(AiQueryError):
    """A served entity did not give an answer."""


class CancelledCallError(InvocationError):
    """The caller stopped waiting before the answer came."""

    error_code = "CANCELLED"
    http_status = 499


class ModelError(InvocationError):
    """A model in this process raised."""

    error_code = "BAD_REQUEST"
    http_status = 400


class ModelCrashError(ModelError):
    """The process of a model ended while it answered this request, twice."""


class EngineError(ModelError):
    """The engine of a foundation model failed over a request; another try may well succeed."""

    error_code = "INTERNAL_ERROR"
    http_status = 500
    retryable = True


class OverloadedError(InvocationError):
    """All replicas of a model are busy or starting, and too many wait already."""

    error_code = "TEMPORARILY_UNAVAILABLE"
    http_status = 503
    retryable = True


class ProviderError(InvocationError):
    """An external provider did not answer as it should."""

    http_status = 502
    #: What the answer's headers taught: a `messages.LimitHint`, which errors must not import.
    hint: Any = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ProviderRequestError(ProviderError):
    """The provider says that the request itself is wrong; sending it again cannot help."""

    error_code = "BAD_REQUEST"
    http_status = 400


class RequestTooLargeError(ProviderRequestError):
    """The request is larger than the provider takes; a packed one may be split."""

    http_status = 413


class ProviderAccessError(ProviderError):
    """The provider refuses our key (401 or 403)."""

    error_code = "PERMISSION_DENIED"
    http_status = 403


class ProviderQuotaError(ProviderError):
    """The account at the provider has no credit left; waiting does not help."""

    error_code = "PERMISSION_DENIED"
    http_status = 403


class ProviderRateLimitError(ProviderError):
    """The provider answered 429: not a failure, only a matter of time."""

    error_code = "REQUEST_LIMIT_EXCEEDED"
    http_status = 429
    retryable = True


class ProviderUnavailableError(ProviderError):
    """The provider failed (408, 409, 5xx) or could not be reached."""

    error_code = "TEMPORARILY_UNAVAILABLE"
    http_status = 503
    retryable = True


class ProviderTimeoutError(ProviderError):
    """The provider did not answer in time."""

    error_code = "DEADLINE_EXCEEDED"
    http_status = 504
    retryable = True


class ProviderResponseError(ProviderError):
    """The provider's answer cannot be used: not JSON, cut off, or without the promised parts."""
