"""JSON that nobody means: any values, under names that mean something, and right documents that were spoilt."""

from __future__ import annotations

import json

from hypothesis import strategies as st

texts = st.text(max_size=8) | st.sampled_from(
    ["NaN", "inf", "-0", "2020-02-30", "1e400", "\x00", "\u202e", "{{secrets/a/b}}", "../.."]
)
numbers = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 1e308])
)
scalars = st.none() | st.booleans() | numbers | texts
FIELDS = (
    "dataframe_split", "dataframe_records", "instances", "inputs", "params", "columns", "data", "index", "n", "s",
    "messages", "role", "content", "prompt", "input", "model", "stream", "max_tokens", "temperature", "stop", "tools",
    "stream_options", "response_format", "extra_params", "usage_context", "client_request_id", "type", "encoding_format",
)  # fmt: skip
keys = st.sampled_from(FIELDS) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)
anything = st.dictionaries(keys, values, max_size=5)


@st.composite
def spoilt(draw, document):
    """Draw a copy of a document with one part of it, wherever it stands, replaced, taken out, or added to."""
    copy = json.loads(json.dumps(document))
    places = list(_places(copy))
    container, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "remove", "add", "double"])):
        case "replace":
            container[key] = draw(values)
        case "remove":
            del container[key]
        case "add":
            container[key] = (
                {**container[key], draw(keys): draw(values)} if isinstance(container[key], dict) else [container[key]]
            )
        case "double":
            container[key] = [container[key], container[key]]
    return copy


def _places(part):
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        yield part, key
        yield from _places(value)
