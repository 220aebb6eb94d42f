"""The user's price comes before the list price, the endpoint's own before the model's; a bad file is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.endpoint import ExternalModel, FoundationModel, ServedEntity
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.prices import Price, Prices

counts = st.integers(0, 10**9)


def external(model="gpt-4o-mini", provider="openai", name="served"):
    return ServedEntity(name=name, external_model=ExternalModel(provider=provider, name=model, task="llm/v1/chat"))


CUSTOM = ServedEntity(name="forest-1", entity_name="main.models.forest", entity_version="1")


@pytest.mark.parametrize(
    ("model", "provider", "price"),
    [
        ("gpt-4o-mini", "openai", (0.15, 0.6)),
        ("gpt-4o-mini-2024-07-18", "openai", (0.15, 0.6)),
        ("gpt-4o-2024-05-13", "openai", (5, 15)),
        ("gpt-4o-2024-11-20", "openai", (2.5, 10)),
        ("claude-haiku-4-5-20251001", "anthropic", (1, 5)),
        ("claude-opus-5-5", "anthropic", (4, 20)),
    ],
)
def test_list_prices_are_shipped(model, provider, price):
    assert Prices.load(None).of(external(model, provider)) == Price(input=price[0], output=price[1])


@pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "gpt-4o-mini-realtime", "gpt-5-pro", "llama", ""])
def test_what_nobody_priced_has_no_price(model):
    assert Prices.load(None).of(external(model or "x", "openai")) is None
    assert Prices.load(None).of(external("gpt-4o-mini", "custom")) is None
    assert Prices.load(None).of(CUSTOM, "forest") is None


def test_a_model_of_ones_own_costs_nothing_unless_somebody_says_so(tmp_path):
    own = ServedEntity(name="llama-1", entity_name="./llama", foundation_model=FoundationModel(task="llm/v1/chat"))
    assert Prices.load(tmp_path).of(own, "local").cost(10**6, 10**6) == 0
    (tmp_path / "prices.toml").write_text("[endpoint]\nlocal = { input = 1, output = 2 }\n")
    assert Prices.load(tmp_path).of(own, "local") == Price(input=1, output=2)


def test_the_users_price_wins_and_the_list_stays_below_it(tmp_path):
    (tmp_path / "prices.toml").write_text('[openai]\n"gpt-4o-*" = { input = 1, output = 2 }\n')
    prices = Prices.load(tmp_path)
    assert prices.of(external("gpt-4o-mini")) == Price(input=1, output=2)
    assert prices.of(external("gpt-4o")) == Price(input=2.5, output=10)


def test_a_folder_without_a_file_has_the_list_prices(tmp_path):
    assert Prices.load(tmp_path).of(external()) == Prices.load(None).of(external())


@pytest.mark.parametrize(
    ("table", "call"),
    [
        ({"endpoint": {"my-*": {"call": 1}}, "entity": {"forest-1": {"call": 2}}}, 1),
        ({"entity": {"forest-1": {"call": 2}, "main.models.forest": {"call": 3}}}, 2),
        ({"entity": {"main.models.*": {"call": 3}, "main.*": {"call": 4}}}, 3),
        ({"entity": {"*": {"call": 4}, "main.models.forest": {"call": 5}}}, 4),
    ],
)
def test_the_nearest_name_counts_and_among_patterns_the_longest(table, call):
    assert Prices(table).of(CUSTOM, "my-forest") == Price(call=call)


@given(counts, counts, st.integers(0, 10))
def test_more_never_costs_less(prompt, completion, calls):
    price = Price(input=0.15, output=0.6, call=0.001)
    cost = price.cost(prompt, completion, calls)
    assert cost <= price.cost(prompt + 1, completion, calls)
    assert cost <= price.cost(prompt, completion + 1, calls)
    assert cost < price.cost(prompt, completion, calls + 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[openai]\nx = = 1\n", r"prices\.toml is not TOML: .*line 2.*Mend that line"),
        ("[opneai]\n", r"nothing is called \[opneai\]; the sections are endpoint, entity, openai"),
        ("openai = 3\n", r"\[openai\] must be a section .*not 3"),
        ("[openai]\ngpt-4.1 = { input = 1, output = 2 }\n", r'\[openai\] "gpt-4" must be .*quotes'),
        ('[openai]\n"x" = 3\n', r'\[openai\] "x" must be a price such as'),
        ('[openai]\n"x" = {}\n', r'"x" must be a price such as'),
        ('[openai]\n"x" = { inputs = 1, output = 2 }\n', r'"x" must be a price such as'),
        ('[openai]\n"x" = { input = -1, output = 2 }\n', r'"x": input must be .* from 0 on, not -1'),
        ('[openai]\n"x" = { input = nan, output = 2 }\n', r'"x": input must be .* not nan'),
        ('[openai]\n"x" = { input = true, output = 2 }\n', r'"x": input must be .* not True'),
        ('[openai]\n"x" = { input = "1", output = 2 }\n', r'"x": input must be .* not \'1\''),
        ('[openai]\n"x" = { input = 1 }\n', r'"x": output is missing'),
        ('[openai]\n"x" = { output = 1, call = 2 }\n', r'"x": input is missing'),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_place(tmp_path, text, says):
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=f"(?s){tmp_path}.*{says}"):
        Prices.load(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "prices.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Prices.load(tmp_path)
    (tmp_path / "prices.toml").unlink()
    (tmp_path / "prices.toml").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Prices.load(tmp_path)


@pytest.mark.parametrize(
    ("served", "endpoint"),
    [(external('odd "model"'), "e"), (external("claude-9", "anthropic"), "e"), (CUSTOM, "e"), (CUSTOM, "")],
)
def test_the_line_that_is_advised_gives_the_price(tmp_path, served, endpoint):
    advice = Prices.load(tmp_path).how_to_add(served, endpoint)
    assert str(tmp_path / "prices.toml") in advice
    line, section = advice.removeprefix("add ").split(" to ")[0].split(" under ")
    (tmp_path / "prices.toml").write_text(f"{section}\n{line}\n")
    assert Prices.load(tmp_path).of(served, endpoint) is not None
