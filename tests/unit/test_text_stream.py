"""Text from tokens: however it is cut into tokens, what is shown is whole, right and without stop strings."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiquery_serving.llm.text_stream import TextStream


def stream_of(pieces, stops=()):
    """A stream over tokens of these bytes; any other token has no text."""
    return TextStream(
        lambda ids: b"".join(pieces[one] for one in ids if one < len(pieces)).decode(errors="replace"), stops
    )


def run(stream, ids):
    """Everything that was shown, and whether a stop string ended it."""
    shown = []
    for token_id in ids:
        text, ended = stream.feed(token_id)
        shown.append(text)
        if ended:
            break
    return [*shown, stream.finish()], stream.feed(0)[1]


def cut(content, places):
    """Cut bytes into tokens at these places."""
    ends = sorted({place % (len(content) + 1) for place in places} | {0, len(content)})
    return [content[begin:end] for begin, end in pairwise(ends)]


def ended_at(text, stops):
    """What is left of a text that comes character by character."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


texts = st.text("ab\n ßé你🙂", max_size=30)
places = st.lists(st.integers(0, 200), max_size=40)


@given(texts, places, st.lists(st.text("ab\nß你", max_size=4), max_size=3))
@example("aab", [1, 2], ["ab"])
@example("abababa", [2, 4], ["ababb", "bababa"])
def test_what_is_shown_is_the_text_up_to_the_stop_string_however_it_is_cut(text, places, stops):
    pieces = cut(text.encode(), places)
    shown, ended = run(stream_of(pieces, stops), range(len(pieces)))
    assert "".join(shown) == ended_at(text, stops)
    assert ended == (ended_at(text, stops) != text)


@given(st.binary(max_size=40), places)
@example(b"\xf0\x9f\x98" * 4, range(12))
@example(b"\x80" * 20 + b"\xe4\xbd\xa0", range(23))
def test_bytes_that_are_no_characters_do_not_hold_the_rest_back(content, places):
    pieces = cut(content, places)
    shown, _ = run(stream_of(pieces), range(len(pieces)))
    assert "".join(shown) == content.decode(errors="replace")


def test_bytes_that_never_become_a_character_are_shown_soon():
    stream = stream_of([b"\x80"])
    assert len("".join(stream.feed(0)[0] for _ in range(20))) == 13
    assert len(stream.finish()) == 7


@given(texts, places)
def test_all_is_shown_whenever_it_ends_with_a_whole_character(text, places):
    pieces = cut(text.encode(), places)
    stream, shown = stream_of(pieces), ""
    for number in range(len(pieces)):
        known = b"".join(pieces[: number + 1]).decode(errors="replace")
        shown += stream.feed(number)[0]
        assert known.startswith(shown)
        assert known.endswith("\ufffd") or shown == known


def test_what_may_become_a_stop_string_waits_until_it_does_not():
    pieces = [b"one ", b"STO", b"OP ", b"ST", b"OP", b"no"]
    stream = stream_of(pieces, ["STOP"])
    assert [stream.feed(number) for number in range(5)] == [
        ("one ", False),
        ("", False),
        ("STOOP ", False),
        ("", False),
        ("", True),
    ]
    assert (stream.feed(5), stream.finish()) == (("", True), "")


def test_of_several_stop_strings_the_one_that_is_complete_first_counts():
    assert run(stream_of([b"xabcd"], ["abcd", "bc"]), [0])[0] == ["xa", ""]
    assert run(stream_of([b"xabcd"], ["bc", "abc"]), [0])[0] == ["x", ""]


def test_an_unfinished_character_is_shown_at_the_end_as_what_it_is():
    stream = stream_of(["a🙂".encode()[:3]])
    assert (stream.feed(0), stream.finish()) == (("", False), "a\ufffd")
    assert stream.finish() == ""


@pytest.mark.parametrize("unknown", [0, 3, 7, 8, 9, 50])
def test_tokens_without_a_text_do_no_harm(unknown):
    pieces = ["你".encode()[:1], "你".encode()[1:], b"!"]
    ids = [*[99] * unknown, 0, 99, 1, *[99] * unknown, 2]
    assert "".join(run(stream_of(pieces), ids)[0]) == "你!"


def test_empty_stop_strings_stop_nothing():
    assert run(stream_of([b"a", b"b"], [""]), [0, 1]) == (["a", "b", ""], False)


def tokenizer_of(kind):
    """A tokenizer of byte-level pieces, or of words with bytes for what is in none."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: real decoders are NOT tested")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if kind == "words":
        byte_tokens = {f"<0x{byte:02X}>": byte for byte in range(256)}
        words = {word: 256 + number for number, word in enumerate(["▁", "a", "▁a", "b", "▁b", "ß", "."])}
        made = tokenizers.Tokenizer(models.BPE({**byte_tokens, **words}, [("▁", "a"), ("▁", "b")], byte_fallback=True))
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(parts)
        return made
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["a ab ß 你好"], trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    return made


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_real_tokenizers_say_the_same_token_by_token(kind):
    tokenizer = tokenizer_of(kind)

    @given(st.text("ab ß你🙂.", max_size=12))
    def check(text):
        ids = tokenizer.encode(text if kind == "bytes" else text.replace(" ", "▁")).ids
        spread = [each for one in ids for each in (one, 100_000)]
        for given_ids in (ids, spread):
            shown, _ = run(TextStream(tokenizer.decode), given_ids)
            assert "".join(shown) == tokenizer.decode(ids)

    check()


def test_random_tokens_of_a_real_tokenizer_say_the_same_one_by_one():
    tokenizer = tokenizer_of("bytes")

    @given(st.lists(st.integers(0, 300), max_size=30))
    def check(ids):
        shown, _ = run(TextStream(tokenizer.decode), ids)
        assert "".join(shown) == tokenizer.decode(ids)

    check()
