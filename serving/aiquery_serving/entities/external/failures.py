"""What an answer that is not 200 means: one of our errors, with the wait its headers name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from aiquery_serving.errors import (
    ProviderAccessError,
    ProviderError,
    ProviderQuotaError,
    ProviderRateLimitError,
    ProviderRequestError,
    ProviderResponseError,
    ProviderUnavailableError,
    RequestTooLargeError,
)

if TYPE_CHECKING:
    from aiquery_serving.entities.external.transport import Answer

MAX_EXCERPT = 300
#: Bytes of a body that are looked at for an excerpt.
MAX_READ = 4096
_TOO_LARGE_CODES = frozenset({"string_above_max_length", "array_above_max_length", "max_tokens_per_request"})
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"})
#: What Anthropic says, with status 400, when the prepaid credit is used up.
_NO_CREDIT = "credit balance is too low"
#: What Cohere says, with status 429, to those who try it out for too long.
_TRIAL_USED_UP = "calls / month"
#: Google's word, with status 400, for a wrong key.
_KEY_CODES = frozenset({"API_KEY_INVALID"})
_REDIRECT, _BAD, _PAYMENT, _TOO_LARGE, _TOO_MANY, _SERVER, _BEYOND = 300, 400, 402, 413, 429, 500, 600
#: What errors are called that come within an answer, where no status stands beside them.
_STATUS_OF_KIND = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "insufficient_quota": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "requests": 429,
    "tokens": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
#: 424 is Bedrock's word for a model that failed.
_TRANSIENT = frozenset({408, 409, 424})
_ACCESS = frozenset({401, 403})
#: Keys as providers write them, also half masked: `sk-ab***yz`.
_KEYLIKE = re.compile(r"\bsk-[\w*.-]+|\S*\*{3,}\S*")


class ReportedError(Exception):
    """A provider reports an error within an answer that began well.

    Attributes:
        status: The HTTP status that the same error has as a whole answer.
        body: The JSON of the error, as the provider wrote it.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class Complaint:
    """What the body of an error says; `codes` holds its machine-readable words, `wait` the seconds that it names."""

    message: str
    codes: frozenset[str]
    wait: float | None = None


def failure(who: str, answer: Answer, *, now: float, scrub: Callable[[str], str]) -> ProviderError:
    """Return the error that an answer stands for.

    Args:
        who: The provider and the model, for the message.
        answer: An answer whose status is not 200.
        now: Seconds since 1970.
        scrub: Takes secrets out of a text.
    """
    complaint = read_complaint(answer.body, scrub=scrub)
    kind, verb = _kind(answer.status, complaint)
    error = kind(f"{who} {verb} ({answer.status}): {complaint.message or 'no reason given'}")
    if error.retryable:
        error.retry_after = retry_after(answer.headers, now=now)
        if error.retry_after is None:
            error.retry_after = complaint.wait
    return error


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds to wait that an answer names, at least 0; None when it names none.

    Examples:
        >>> retry_after({"retry-after-ms": "1500", "retry-after": "2"}, now=0.0)
        1.5
        >>> retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, now=50.0)
        10.0
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is not None and (wait := _number(text)) is not None:
            return max(wait * unit, 0.0)
    return _seconds_until_date(headers.get("retry-after"), now)


def excerpt(text: str, *, scrub: Callable[[str], str] = str) -> str:
    """Return the beginning of a text, on one line, without keys nor what looks like one."""
    # Scrubbed before it is shortened: half a key is still a leak.
    line = " ".join(_KEYLIKE.sub("***", scrub(text)).split())
    return line if len(line) <= MAX_EXCERPT else f"{line[:MAX_EXCERPT]}…"


def read_complaint(body: bytes, *, scrub: Callable[[str], str] = str) -> Complaint:
    """Read the error bodies of OpenAI, Anthropic and most others; else an excerpt of the text.

    Examples:
        >>> read_complaint(b'{"error": {"message": "no such model", "code": "model_not_found"}}').message
        'no such model'
        >>> read_complaint(b"<html>Bad gateway</html>").message
        '<html>Bad gateway</html>'
    """
    text = body[:MAX_READ].decode(errors="replace")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Complaint(excerpt(text, scrub=scrub), frozenset())
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return Complaint(excerpt(str(error), scrub=scrub), frozenset())
    message = error.get("message") or error.get("detail") or text
    codes = {str(error[name]) for name in ("code", "type", "status") if error.get(name) is not None}
    details = [detail for detail in error.get("details") or () if isinstance(detail, dict)]
    codes |= {str(detail["reason"]) for detail in details if detail.get("reason")}
    waits = [wait for detail in details if (wait := _delay(detail)) is not None]
    return Complaint(excerpt(str(message), scrub=scrub), frozenset(codes), max(waits, default=None))


def _delay(detail: Mapping[str, Any]) -> float | None:
    """Return the seconds that Google's `RetryInfo` names, as in `"20s"`."""
    given = detail.get("retryDelay")
    return _number(given[:-1]) if isinstance(given, str) and given.endswith("s") else None


def status_of(said: Mapping[str, Any]) -> int:
    """Return the HTTP status that an error would have had as a whole answer; 500 when it does not tell.

    Examples:
        >>> status_of({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})
        529
        >>> status_of({"error": {"code": 429, "message": "too many"}})
        429
    """
    error = said.get("error", said)
    if not isinstance(error, dict):
        return _SERVER
    words = [error.get(name) for name in ("code", "status", "type")]
    numbers = (word for word in words if isinstance(word, int) and _BAD <= word < _BEYOND)
    named = (_STATUS_OF_KIND[word] for word in words if isinstance(word, str) and word in _STATUS_OF_KIND)
    return next(chain(numbers, named), _SERVER)


def _kind(status: int, complaint: Complaint) -> tuple[type[ProviderError], str]:
    return next((kind, verb) for holds, kind, verb in _RULES if holds(status, complaint))


def _is_quota(status: int, complaint: Complaint) -> bool:
    return (
        status == _PAYMENT
        or not complaint.codes.isdisjoint(_QUOTA_CODES)
        or (status == _BAD and _NO_CREDIT in complaint.message)
        or (status == _TOO_MANY and _TRIAL_USED_UP in complaint.message)
    )


def _is_access(status: int, complaint: Complaint) -> bool:
    return status in _ACCESS or not complaint.codes.isdisjoint(_KEY_CODES)


def _is_too_large(status: int, complaint: Complaint) -> bool:
    return status == _TOO_LARGE or (status == _BAD and not complaint.codes.isdisjoint(_TOO_LARGE_CODES))


Rule: TypeAlias = tuple[Callable[[int, Complaint], bool], type[ProviderError], str]

#: The first rule that holds decides.
_RULES: tuple[Rule, ...] = (
    (_is_quota, ProviderQuotaError, "has no credit left for this account"),
    (_is_access, ProviderAccessError, "refuses the configured key"),
    (_is_too_large, RequestTooLargeError, "takes no request as large as this"),
    (lambda status, _: status == _TOO_MANY, ProviderRateLimitError, "asks to slow down"),
    (
        lambda status, _: status in _TRANSIENT or status >= _SERVER,
        ProviderUnavailableError,
        "failed",
    ),
    (lambda status, _: status < _REDIRECT, ProviderResponseError, "sent no usable answer"),
    (
        lambda status, _: status < _BAD,
        ProviderResponseError,
        "redirects elsewhere, which is not followed: correct its URL",
    ),
    (lambda _status, _: True, ProviderRequestError, "refuses the request"),
)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _seconds_until_date(text: Any, now: float) -> float | None:
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (TypeError, ValueError):
        return None
