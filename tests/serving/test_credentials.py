"""Tokens are fetched once for all who wait, kept, renewed before they end, and fetched anew when refused."""

import asyncio
import threading

import pytest

from aiquery_serving.entities.external.credentials import Kept, TokenBearer, checked_sign_in, library
from aiquery_serving.errors import ConfigurationError, ProviderAccessError


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def epoch_ms(self):
        return int(self.time * 1000)

    async def sleep(self, seconds):
        self.time += seconds


def numbered(good_for):
    calls = []

    def fetch():
        calls.append(threading.current_thread())
        return f"token-{len(calls)}", good_for

    return fetch, calls


def test_many_who_wait_share_one_fetch_on_a_thread():
    fetch, calls = numbered(3600.0)

    async def together():
        kept = Kept(fetch, Clock())
        return await asyncio.gather(*(kept.get() for _ in range(50)))

    assert asyncio.run(together()) == ["token-1"] * 50
    assert len(calls) == 1
    assert calls[0] is not threading.main_thread()


@pytest.mark.parametrize(("good_for", "kept_for"), [(3600.0, 3240.0), (400.0, 200.0), (0.0, 0.0)])
def test_a_token_is_renewed_before_it_ends(good_for, kept_for):
    fetch, calls = numbered(good_for)

    async def wait():
        clock = Clock()
        kept = Kept(fetch, clock)
        await kept.get()
        clock.time = kept_for - 0.5
        await kept.get()
        before = len(calls)
        clock.time = kept_for
        await kept.get()
        return before, len(calls)

    assert asyncio.run(wait()) == (1, 2)


def test_a_refused_token_is_fetched_anew():
    fetch, _ = numbered(3600.0)

    async def twice():
        bearer = TokenBearer(fetch, Clock())
        first = await bearer.authorize("https://a", b"")
        bearer.refused()
        return first, await bearer.authorize("https://a", b"")

    first, second = asyncio.run(twice())
    assert [headers["authorization"] for headers in (first, second)] == ["Bearer token-1", "Bearer token-2"]
    assert "token-1" not in repr(first)


def test_a_failed_fetch_is_tried_again_by_the_next_caller():
    answers = [ProviderAccessError("no"), ("token", 3600.0)]

    def fetch():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def twice():
        kept = Kept(fetch, Clock())
        with pytest.raises(ProviderAccessError):
            await kept.get()
        return await kept.get()

    assert asyncio.run(twice()) == "token"


def test_who_gives_up_waiting_takes_it_from_nobody():
    may_go = threading.Event()

    def fetch():
        may_go.wait(10)
        return "token", 3600.0

    async def one_gives_up():
        kept = Kept(fetch, Clock())
        first, second = asyncio.ensure_future(kept.get()), asyncio.ensure_future(kept.get())
        await asyncio.sleep(0)
        first.cancel()
        may_go.set()
        return await second

    assert asyncio.run(one_gives_up()) == "token"


def test_a_library_that_is_missing_is_named_with_the_way_to_get_it():
    with pytest.raises(ConfigurationError, match=r"'nosuchlibrary'.*pip install 'aiquery\[azure\]'"):
        library("nosuchlibrary.part", extra="azure")


@pytest.mark.parametrize("url", ["http://login.example.org/t", "https://169.254.169.254/t", "ftp://a/b"])
def test_keys_are_shown_to_no_sign_in_service_in_clear_or_of_the_cloud_metadata(url):
    with pytest.raises(ConfigurationError):
        checked_sign_in(url)
    assert checked_sign_in("http://127.0.0.1:1/t") == "http://127.0.0.1:1/t"
