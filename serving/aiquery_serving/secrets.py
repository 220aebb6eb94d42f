"""Secrets: sealed in the workspace, or taken from the environment; looked up by reference."""

from __future__ import annotations

import base64
import binascii
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aiquery_serving.errors import SecretError

if TYPE_CHECKING:
    from pathlib import Path

    from aiquery_serving.store import Store

#: The scope whose keys are names of environment variables.
ENVIRONMENT_SCOPE = "env"
KEY_VARIABLE = "AIQUERY_SECRET_KEY"
KEY_BYTES = 32
_NONCE_BYTES = 12
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_REFERENCE = re.compile(r"\{\{\s*secrets/([^{}]*?)\s*\}\}")


def reference(scope: str, key: str) -> str:
    """Return the text that stands for a secret in a configuration.

    Examples:
        >>> reference("prod", "openai")
        '{{secrets/prod/openai}}'
    """
    return f"{{{{secrets/{scope}/{key}}}}}"


def is_reference(text: str) -> bool:
    """Say whether a text holds a reference to a secret.

    Examples:
        >>> is_reference("{{secrets/prod/openai}}"), is_reference("sk-123")
        (True, False)
    """
    return _REFERENCE.search(text) is not None


def references(text: str) -> list[str]:
    """Return the references in a text, all in one spelling.

    Examples:
        >>> references("a {{ secrets/prod/openai }} b")
        ['{{secrets/prod/openai}}']
    """
    return [f"{{{{secrets/{name}}}}}" for name in _REFERENCE.findall(text)]


class Secrets:
    """The secrets of a workspace: no value is ever in a message, a repr or a file in clear.

    A value is sealed with AES-256-GCM and bound to its scope and key, so that a row copied under
    another name does not open.

    Args:
        store: The workspace's store.
        key: The 32 bytes that seal the values. None takes `AIQUERY_SECRET_KEY` (base64 or hex),
            else the workspace's own key file, which the first `put` makes. An in-memory workspace
            without either draws a key that lasts as long as this object.

    Raises:
        SecretError: The key has not 32 bytes.
    """

    def __init__(self, store: Store, *, key: bytes | None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise SecretError(f"The key of the secrets needs {KEY_BYTES} bytes, got {len(key)}.")
        self._store = store
        self._given = key
        self._drawn = os.urandom(KEY_BYTES)

    def __repr__(self) -> str:
        return f"Secrets({self._store!r})"

    def put(self, scope: str, key: str, value: str, *, owner: str = "") -> None:
        """Store a secret, in place of an earlier one of that name.

        Args:
            scope: The group of secrets, for instance a team or a provider.
            key: The name within the scope.
            value: What must stay secret.
            owner: The id of the endpoint that the secret lives and dies with; empty for none.

        Raises:
            SecretError: A name is not allowed, or the key file cannot be used.
            WorkspaceError: The workspace cannot be written.
        """
        _check_name(scope, key)
        if scope == ENVIRONMENT_SCOPE:
            raise SecretError(
                f"Secret '{scope}/{key}': the scope '{ENVIRONMENT_SCOPE}' means the environment."
                " Set the variable, or choose another scope."
            )
        nonce = os.urandom(_NONCE_BYTES)
        cipher = AESGCM(self._key(make=True))
        sealed = nonce + cipher.encrypt(nonce, value.encode(), _bound_to(scope, key))
        with self._store.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO secrets (scope, key, owner, sealed) VALUES (?, ?, ?, ?)",
                (scope, key, owner, sealed),
            )

    def get(self, scope: str, key: str) -> str:
        """Return a secret's value: the workspace's own, else the environment's.

        Scope `env` reads the variable of that name; any other scope falls back to the variable
        `AIQUERY_SECRET_<SCOPE>_<KEY>`.

        Raises:
            SecretError: Nobody knows the secret, or the workspace's key does not open it.
            WorkspaceError: The workspace cannot be read.
        """
        _check_name(scope, key)
        sealed = None if scope == ENVIRONMENT_SCOPE else self._sealed(scope, key)
        if sealed is not None:
            return self._unseal(scope, key, sealed)
        for variable in _variables(scope, key):
            if variable in os.environ:
                return os.environ[variable]
        raise SecretError(_unknown(scope, key))

    def delete(self, scope: str, key: str) -> None:
        """Forget a secret.

        Raises:
            SecretError: The workspace has no such secret.
            WorkspaceError: The workspace cannot be written.
        """
        with self._store.write() as connection:
            done = connection.execute("DELETE FROM secrets WHERE scope = ? AND key = ?", (scope, key))
            if not done.rowcount:
                raise SecretError(f"Secret '{scope}/{key}' is not in this workspace.")

    def delete_owned(self, owner: str) -> None:
        """Forget the secrets that live and die with an endpoint.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        with self._store.write() as connection:
            connection.execute("DELETE FROM secrets WHERE owner = ? AND owner <> ''", (owner,))

    def list(self) -> tuple[tuple[str, str], ...]:
        """Return scope and key of every stored secret, in order; never a value.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as connection:
            rows = connection.execute("SELECT scope, key FROM secrets ORDER BY scope, key")
            return tuple((scope, key) for scope, key in rows)

    def resolve(self, text: str) -> str:
        """Return the text with every `{{secrets/scope/key}}` in it replaced by its value.

        Raises:
            SecretError: A reference is malformed, or its secret cannot be had.
            WorkspaceError: The workspace cannot be read.
        """
        return _REFERENCE.sub(lambda found: self.get(*_split(found[1])), text)

    def _sealed(self, scope: str, key: str) -> bytes | None:
        with self._store.read() as connection:
            row = connection.execute("SELECT sealed FROM secrets WHERE scope = ? AND key = ?", (scope, key)).fetchone()
        return bytes(row[0]) if row else None

    def _unseal(self, scope: str, key: str, sealed: bytes) -> str:
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            value = AESGCM(self._key(make=False)).decrypt(nonce, rest, _bound_to(scope, key))
        except (InvalidTag, ValueError) as error:
            raise SecretError(
                f"Secret '{scope}/{key}' was sealed with another key than the one in"
                f" {self._key_place()}, or its row is damaged. Bring the old key back, or store the"
                " secret again."
            ) from error
        return value.decode()

    def derived_key(self, purpose: bytes) -> bytes:
        """Return 32 bytes that seal something else of this workspace; makes the workspace's key where there is none.

        Raises:
            SecretError: The key file cannot be used.
        """
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"aiquery " + purpose).derive(self._key(make=True))

    @property
    def _key_file(self) -> Path | None:
        return self._store.folder / "secret.key" if self._store.folder else None

    def _key_place(self) -> str:
        if self._given is not None:
            return "this workspace's settings"
        return KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else f"'{self._key_file}'"

    def _key(self, *, make: bool) -> bytes:
        if self._given is not None:
            return self._given
        if text := os.environ.get(KEY_VARIABLE):
            return _read_key(text, KEY_VARIABLE)
        if self._key_file is None:
            return self._drawn
        if make and not self._key_file.exists():
            _create_key_file(self._key_file, self._drawn)
        return _read_key_file(self._key_file)


def _check_name(scope: str, key: str) -> None:
    for part in (scope, key):
        if not _NAME.fullmatch(part):
            raise SecretError(f"Secret '{scope}/{key}': scope and key take 1 to 128 letters, digits and any of '_.@-'.")


def _split(inside: str) -> tuple[str, str]:
    scope, slash, key = inside.partition("/")
    if not slash:
        raise SecretError(f"'{{{{secrets/{inside}}}}}' names no secret. Write {{{{secrets/<scope>/<key>}}}}.")
    return scope, key


def _bound_to(scope: str, key: str) -> bytes:
    # Names hold no slash, so no two pairs of names give the same bytes.
    return f"aiquery/1/{scope}/{key}".encode()


def _variables(scope: str, key: str) -> tuple[str, ...]:
    if scope == ENVIRONMENT_SCOPE:
        return (key, key.upper())
    return (re.sub(r"[^A-Z0-9]", "_", f"AIQUERY_SECRET_{scope}_{key}".upper()),)


def _unknown(scope: str, key: str) -> str:
    if scope == ENVIRONMENT_SCOPE:
        return f"Secret '{scope}/{key}': the environment variable {key} is not set."
    return (
        f"Secret '{scope}/{key}' is not in this workspace. Store it there, or set the environment"
        f" variable {_variables(scope, key)[0]}."
    )


def _read_key(text: str, place: str) -> bytes:
    text = text.strip()
    with suppress(ValueError):
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
    with suppress(binascii.Error, ValueError):
        padded = text + "=" * (-len(text) % 4)
        key = base64.b64decode(padded, altchars=b"-_" if set(text) & {"-", "_"} else None, validate=True)
        if len(key) == KEY_BYTES:
            return key
    raise SecretError(
        f"The key in {place} is not {KEY_BYTES} bytes as base64 or hex. Make one with"
        ' `python -c "import base64, os; print(base64.b64encode(os.urandom(32)).decode())"`.'
    )


def _read_key_file(path: Path) -> bytes:
    try:
        return _read_key(path.read_text(encoding="ascii"), f"'{path}'")
    except FileNotFoundError as error:
        raise SecretError(
            f"The key file '{path}' is missing, so the secrets of this workspace cannot be read."
            f" Put it back, set {KEY_VARIABLE}, or store the secrets again."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"The key file '{path}' cannot be read: {error}.") from error


def _create_key_file(path: Path, key: bytes) -> None:
    """Write the file whole or not at all; when another process was first, its key stays."""
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    except OSError as error:
        raise SecretError(
            f"The key file '{path}' cannot be written: {error}. Make room or make the folder"
            f" writable, or set {KEY_VARIABLE}."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
