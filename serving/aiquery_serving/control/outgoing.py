"""Requests of any method over the transport that external models use: the same certificates, proxies and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from wreq import Method

from aiquery_serving.entities.external import HttpTransport
from aiquery_serving.entities.external.transport import _FOREIGN

#: The methods of contract B.1, row 22.
METHODS: Final = {
    "DELETE": Method.DELETE,
    "GET": Method.GET,
    "PATCH": Method.PATCH,
    "POST": Method.POST,
    "PUT": Method.PUT,
}
TOTAL_SECONDS: Final = 55.0
MAX_ANSWER_BYTES: Final = 16 * 2**20
#: Names the session of a client of the Model Context Protocol.
SESSION_HEADER: Final = "mcp-session-id"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back: `session` is the `mcp-session-id`, if any."""

    status: int
    session: str | None
    body: bytes


class Outgoing(HttpTransport):
    """Sends requests of any method. Answers have 55 s: the Databricks SDK sends again after 60."""

    def __init__(self) -> None:
        super().__init__(total_seconds=TOTAL_SECONDS, max_answer_bytes=MAX_ANSWER_BYTES)

    async def send(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None) -> Outcome:
        """Send a request and return the whole answer, whatever its status; never follow a redirect.

        Raises:
            ConfigurationError: The URL or a header cannot be used, or leads to a link-local address.
            ProviderUnavailableError: No connection, or it broke.
            ProviderTimeoutError: No answer in time.
            ProviderResponseError: The answer is larger than is sensible.
        """
        place = urlsplit(url)
        root = f"{place.scheme}://{place.netloc}/"
        # By host: the verdict is kept, and there is no end to paths.
        client = self._judged.get(root) or await self._judge(root)
        try:
            response = await client.request(METHODS[method], url, headers=dict(headers), body=body)
            content = await self._read(response, root)
        except _FOREIGN as error:
            raise self._translated(error, place.netloc, timedelta(seconds=TOTAL_SECONDS)) from None
        session = response.headers.get(SESSION_HEADER)
        return Outcome(response.status.as_int(), bytes(session).decode("latin-1") if session else None, content)
