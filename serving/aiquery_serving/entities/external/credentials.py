"""What a cloud's requests are authorised with: fetched on a thread, kept until shortly before its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar

from aiquery_serving.clock import Clock, SystemClock
from aiquery_serving.entities.external.addresses import checked, is_loopback
from aiquery_serving.entities.external.declared import JSON_HEADERS
from aiquery_serving.entities.external.entity import PrivateHeaders
from aiquery_serving.errors import ConfigurationError

T = TypeVar("T")

#: Seconds before its end at which something is fetched anew: as long as an answer may take.
EARLY_SECONDS = 360.0
#: Seconds that a cloud's sign-in service may take to answer.
TIMEOUT_SECONDS = 30.0


class Kept(Generic[T]):
    """A value that is fetched when it is first needed, and again before it ends.

    Callers that need it at once share one fetch. Belongs to one event loop.

    Args:
        fetch: Returns the value and the seconds it is good for. Called on a thread.
        clock: Measures them.
    """

    def __init__(self, fetch: Callable[[], tuple[T, float]], clock: Clock | None = None) -> None:
        self._fetch = fetch
        self._clock = clock or SystemClock()
        self._found: tuple[T, float] | None = None
        self._fetching: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the value.

        Raises:
            AiQueryError: What `fetch` raises.
        """
        if self._found is not None and self._clock.now() < self._found[1]:
            return self._found[0]
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._renew())
            self._fetching.add_done_callback(self._finished)
        # Whoever gives up waiting must not take it from the others.
        return await asyncio.shield(self._fetching)

    def forget(self) -> None:
        """Fetch anew next time: the value was refused."""
        self._found = None

    async def _renew(self) -> T:
        began = self._clock.now()
        value, good_for = await asyncio.to_thread(self._fetch)
        # What lives shortly is used for half of its life.
        self._found = value, began + max(good_for - EARLY_SECONDS, good_for / 2)
        return value

    def _finished(self, done: asyncio.Task[T]) -> None:
        self._fetching = None
        if not done.cancelled():
            done.exception()  # told to whoever waits; nobody may


class TokenBearer:
    """Lets requests in with an access token (implements `entity.Authorizer`).

    Args:
        fetch: Returns the token and the seconds it is good for. Called on a thread.
        clock: Measures them.
    """

    def __init__(self, fetch: Callable[[], tuple[str, float]], clock: Clock | None = None) -> None:
        self._token = Kept(fetch, clock)

    async def authorize(self, _url: str, _body: bytes) -> PrivateHeaders:
        """Return the headers of a request.

        Raises:
            AiQueryError: What `fetch` raises.
        """
        return PrivateHeaders(public=JSON_HEADERS, secret={"authorization": f"Bearer {await self._token.get()}"})

    def refused(self) -> None:
        """Ask for another token next time."""
        self._token.forget()


def library(name: str, *, extra: str) -> Any:
    """Return a library that only some providers need.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        needed = name.split(".", maxsplit=1)[0]
        raise ConfigurationError(
            f"This provider needs the library '{needed}', which is not installed: pip install 'aiquery[{extra}]'."
        ) from None


def checked_sign_in(url: str) -> str:
    """Return the URL of a sign-in service, to which keys may be shown.

    Raises:
        ConfigurationError: It may not be used, or is not encrypted.
    """
    host = checked(url)
    if not url.startswith("https://") and not is_loopback(host):
        raise ConfigurationError(f"Keys are shown to {host} only over https://.")
    return url


def patience() -> dict[str, Any]:
    """Return what `requests` is told with every request: when to give up, and whose certificates count.

    A company's own authorities are named by `SSL_CERT_FILE`, as for all that is asked.
    """
    return {"timeout": TIMEOUT_SECONDS, "verify": os.environ.get("SSL_CERT_FILE") or True}
