"""What a served entity reserves: whole chunks between bounds, or model units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.endpoint import FoundationModel, ServedEntity
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.throughput import Provision, check_bounds, provision

LLAMA = FoundationModel(task="llm/v1/chat", model_type="llama", throughput_chunk_size=980)


def served(model=LLAMA, **declared):
    return ServedEntity(name="llama", foundation_model=model, **declared)


@pytest.mark.parametrize(
    ("minimum", "maximum", "chunk"),
    [
        (0, 1940, 970),
        (0, 970, 970),
        (970, 1940, 970),
        (1960, 2940, 980),
        (0, 1240, 620),
        (None, 44_000, 1000),
        (7, 7, 7),
    ],
)
def test_whole_chunks_are_legal_and_no_minimum_means_none(minimum, maximum, chunk):
    check_bounds(minimum, maximum, chunk)


@pytest.mark.parametrize(
    ("minimum", "maximum", "said"),
    [
        (1000, 1960, "min_provisioned_throughput must be a multiple of 980 .*, got 1000: give 980 or 1960$"),
        (500, 1960, "min_provisioned_throughput .* got 500: give 0 or 980$"),
        (0, 2000, "max_provisioned_throughput must be a multiple of 980 .*, got 2000: give 1960 or 2940$"),
        (0, 500, "max_provisioned_throughput .* got 500: give 980$"),
        (0, 0, "max_provisioned_throughput .* got 0: give 980$"),
        (0, -1, "max_provisioned_throughput .* got -1: give 980$"),
        (-980, 980, "min_provisioned_throughput .* got -980: give 0$"),
        (1960, 980, r"min_provisioned_throughput must be between 0 and max_provisioned_throughput \(980\), got 1960$"),
    ],
)
def test_other_bounds_are_refused_and_the_multiples_next_to_them_named(minimum, maximum, said):
    with pytest.raises(ConfigurationError, match=said):
        check_bounds(minimum, maximum, 980)


@given(given=st.integers(-10_000, 100_000), chunk=st.integers(1, 5000))
def test_what_an_error_says_to_give_is_legal(given, chunk):
    try:
        check_bounds(0, given, chunk)
    except ConfigurationError as error:
        for named in str(error).partition("give ")[2].split(" or "):
            check_bounds(0, int(named), chunk)
    else:
        assert given > 0
        assert given % chunk == 0


def test_the_error_begins_with_whose_bounds_they_are():
    with pytest.raises(ConfigurationError, match=r"^served entity 'a': max_provisioned"):
        check_bounds(0, 1, 980, who="served entity 'a': ")


@pytest.mark.parametrize(
    ("declared", "reserved"),
    [
        ({}, None),
        ({"max_provisioned_throughput": 1960}, (0, 1960)),
        ({"min_provisioned_throughput": 980, "max_provisioned_throughput": 1960}, (980, 1960)),
        (
            {"min_provisioned_throughput": 980, "max_provisioned_throughput": 1960, "scale_to_zero_enabled": True},
            (0, 1960),
        ),
        ({"provisioned_model_units": 50}, (980, 980)),
        ({"provisioned_model_units": 75}, (1470, 1470)),
        ({"provisioned_model_units": 1}, (19, 19)),
        ({"provisioned_model_units": 100, "scale_to_zero_enabled": True}, (1960, 1960)),
    ],
)
def test_bounds_are_in_tokens_per_second_and_model_units_are_fixed(declared, reserved):
    assert provision(served(**declared)) == (reserved and Provision(*reserved, chunk=980, burst=True))


def test_bursts_are_on_unless_turned_off():
    assert provision(served(max_provisioned_throughput=980, burst_scaling_enabled=False)).burst is False


def test_nothing_is_reserved_for_a_model_that_has_no_chunks():
    assert provision(served(None, max_provisioned_throughput=980)) is None
    assert provision(served(FoundationModel(task="llm/v1/chat"), max_provisioned_throughput=980)) is None
