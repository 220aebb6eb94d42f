"""Server-sent events come out whole, wherever the network cut them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.entities.external.sse import Event, Events
from aiquery_serving.errors import ProviderResponseError


def events_of(*packets, **options):
    events = Events(**options)
    return [event for packet in packets for event in events.feed(packet)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", [("", b"a")]),
        (b"data:a\n\n", [("", b"a")]),
        (b"data:  a\n\n", [("", b" a")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
        (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
        (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
        (b"data\n\n", [("", b"")]),
        (b"event: ping\ndata: {}\n\ndata: a\n\n", [("ping", b"{}"), ("", b"a")]),
        (b"event: ping\n\ndata: a\n\n", [("", b"a")]),
        (b": a comment\n\n:\ndata: a\n\n", [("", b"a")]),
        (b"id: 7\nretry: 3\ndata: a\nstrange: b\n\n", [("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"data: \xef\xbb\xbfa\n\n", [("", b"\xef\xbb\xbfa")]),
        (b"\n\n\ndata: a\n\n\n\n", [("", b"a")]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"", []),
    ],
)
def test_an_event_is_what_its_lines_say(text, events):
    assert events_of(text) == [Event(*event) for event in events]


LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
TEXTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]))


@given(
    said=st.lists(st.tuples(st.sampled_from(["", "delta", "é"]), st.lists(TEXTS, min_size=1, max_size=3)), max_size=5),
    end=LINE_ENDS,
    comment=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_where_packets_were_cut_makes_no_difference(said, end, comment, cuts):
    text = ""
    for kind, lines in said:
        parts = [": hm"] * comment + [f"event: {kind}"] * bool(kind) + [f"data: {line}" for line in lines]
        text += end.join([*parts, "", ""])
    whole = text.encode()
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    packets = [whole[start:stop] for start, stop in pairwise(places)]
    assert events_of(*packets) == [Event(kind, "\n".join(lines).encode()) for kind, lines in said]


def test_a_byte_at_a_time_is_enough():
    text = "event: x\r\ndata: Größe 🚀\r\n\r\n".encode()
    assert events_of(*(bytes([byte]) for byte in text)) == [Event("x", "Größe 🚀".encode())]


@pytest.mark.parametrize(
    "packets",
    [
        [b"data: " + b"x" * 200],
        [b"data: ", *[b"x" * 20] * 10],
        [b"data: x\n" * 30],
        [b":" + b"x" * 200],
        [b"event: x\n" * 30],
    ],
)
def test_an_event_that_never_ends_is_not_kept(packets):
    with pytest.raises(ProviderResponseError, match="more than 100 bytes"):
        events_of(*packets, max_bytes=100)


def test_many_small_events_are_no_large_one():
    assert len(events_of(b"data: x\n\n" * 1000, max_bytes=100)) == 1000


def test_events_before_a_too_large_one_have_come_out():
    events = Events(max_bytes=100).feed(b"data: a\n\ndata: " + b"x" * 200)
    assert next(events) == Event("", b"a")
    with pytest.raises(ProviderResponseError):
        next(events)
