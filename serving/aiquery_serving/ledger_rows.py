"""An entry of the ledger, and the sealed row that it is in the ledger's file."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aiquery_serving.errors import LedgerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY_BYTES = 16
CIPHER_KEY_BYTES = 32
_DIGEST_BYTES, _NONCE_BYTES = 8, 12


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer: the name of the error's class, and its text."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer that was paid for, or the failure that was.

    `key` is the caller's content address, 16 bytes. `answer` is a text, a vector of shape `(n,)`, or None for a NULL
    or a failure. `written_ms` is the wall clock in milliseconds since 1970; 0 is replaced when the entry is written.
    """

    key: bytes
    endpoint: str
    served_entity: str
    answer: str | NDArray[np.float32] | None
    failure: Failure | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    written_ms: int = 0


class Checksum:
    """Leaves bodies in clear, with a checksum over all fields of the row behind."""

    def close(self, body: bytes, header: bytes) -> bytes:
        """Return what is stored for the body of a row with that header."""
        return body + xxhash.xxh3_64_digest(header + body)

    def open(self, sealed: bytes, header: bytes) -> bytes:
        """Return the body; raise ValueError when it or the header is another."""
        body = sealed[:-_DIGEST_BYTES]
        if sealed != self.close(body, header):
            raise ValueError("The checksum is another.")
        return body


class Cipher:
    """Encrypts bodies with AES-256-GCM, bound to the other fields of their rows."""

    def __init__(self, key: bytes) -> None:
        if len(key) != CIPHER_KEY_BYTES:
            raise LedgerError(f"The key of the ledger needs {CIPHER_KEY_BYTES} bytes, got {len(key)}.")
        self._cipher = AESGCM(key)

    def close(self, body: bytes, header: bytes) -> bytes:
        """Return what is stored for the body of a row with that header."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, body, header)

    def open(self, sealed: bytes, header: bytes) -> bytes:
        """Return the body; raise InvalidTag or ValueError when it, the header or the key is another."""
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], header)


#: What makes a row show that it was changed.
Seal: TypeAlias = Checksum | Cipher

_NOTHING, _TEXT, _VECTOR, _FAILURE = range(4)
_FIXED = struct.Struct("<16sqBqqq")


def to_row(entry: Entry, seal: Seal, *, now_ms: int) -> tuple[Any, ...]:
    """Return an entry as a row; `now_ms` (since 1970) dates an entry without a time.

    Raises:
        LedgerError: The entry holds what no ledger can hold; the message says what.
    """
    if len(entry.key) != KEY_BYTES:
        raise LedgerError(f"The key of a ledger entry has {KEY_BYTES} bytes, not {len(entry.key)}.")
    if entry.failure and entry.answer is not None:
        raise LedgerError("A ledger entry holds an answer or a failure, not both.")
    form, body = _body(entry)
    failure = entry.failure.kind if entry.failure else None
    start = (entry.key, entry.written_ms or now_ms)
    numbers = (form, entry.prompt_tokens, entry.completion_tokens, entry.attempts)
    try:
        names = [name.encode() for name in (entry.endpoint, entry.served_entity, failure or "")]
        sealed = seal.close(body, _header(start, names, numbers))
    except (UnicodeEncodeError, struct.error) as error:
        raise LedgerError(f"The ledger cannot hold an entry of the endpoint {entry.endpoint!a}: {error}.") from error
    return (*start, entry.endpoint, entry.served_entity, failure, *numbers, sealed)


def to_entry(row: tuple[Any, ...], seal: Seal) -> Entry | None:
    """Return the entry of a row whose texts are bytes, or None for a damaged row."""
    try:
        key, written_ms, endpoint, served_entity, kind, form, prompt_tokens, completion_tokens, attempts, sealed = row
        numbers = (form, prompt_tokens, completion_tokens, attempts)
        body = seal.open(sealed, _header((key, written_ms), [endpoint, served_entity, kind or b""], numbers))
        text = "" if form == _VECTOR else body.decode("utf-8", "surrogatepass")
        return Entry(
            key=key,
            endpoint=endpoint.decode(),
            served_entity=served_entity.decode(),
            answer=np.frombuffer(body, "<f4") if form == _VECTOR else text if form == _TEXT else None,
            failure=Failure(kind.decode(), text) if form == _FAILURE else None,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            attempts=attempts,
            written_ms=written_ms,
        )
    except (InvalidTag, ValueError, TypeError, AttributeError, struct.error):
        return None


def _header(start: tuple[bytes, int], names: list[bytes], numbers: tuple[int, int, int, int]) -> bytes:
    return _FIXED.pack(*start, *numbers) + b"\0".join(names)


def _body(entry: Entry) -> tuple[int, bytes]:
    if entry.failure:
        return _FAILURE, entry.failure.message.encode("utf-8", "surrogatepass")
    if entry.answer is None:
        return _NOTHING, b""
    if isinstance(entry.answer, str):
        return _TEXT, entry.answer.encode("utf-8", "surrogatepass")
    if entry.answer.dtype != "float32" or entry.answer.ndim != 1:
        raise LedgerError("The vector of a ledger entry has one dimension of float32.")
    return _VECTOR, entry.answer.astype("<f4", copy=False).tobytes()
