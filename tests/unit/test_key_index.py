"""The index of the ledger's keys knows what a dict would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.key_index import KeyIndex

#: Few keys, some of which end in the bytes that fixed-width text would strip.
KEYS = [bytes([first]) * 15 + bytes([last]) for first in (0, 1, 255) for last in (0, 1, 255)]


@given(st.lists(st.lists(st.sampled_from(KEYS), max_size=7), max_size=12), st.integers(1, 4))
def test_the_index_knows_what_a_dict_knows(batches, fresh):
    index, known, row = KeyIndex(fresh), {}, 0
    for batch in batches:
        rows = [(key, row + place) for place, key in enumerate(batch, 1)]
        row += len(batch)
        index.add(rows)
        known.update(rows)
        assert index.find(KEYS) == known


def test_an_empty_index_knows_nothing():
    assert KeyIndex().find(KEYS) == {}


def test_arrays_stay_few():
    index = KeyIndex(16)
    index.add((number.to_bytes(16, "big"), number) for number in range(1, 20_000))

    assert len(index._runs) < 12
    assert index.find([(7).to_bytes(16, "big")]) == {(7).to_bytes(16, "big"): 7}
