"""Declarations in files: what is read, and how a bad one is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery.config_files import read_files, read_text
from aiquery_serving.errors import ConfigurationError

GOOD = """\
# The team's language model.
name: gpt
config:
  served_entities:
    - name: small
      external_model: &model
        provider: openai
        name: gpt-4o-mini
        task: llm/v1/chat
        openai_config: {openai_api_key: "{{secrets/openai/key}}"}
    - name: large
      external_model:
        <<: *model
        name: gpt-4o
  traffic_config:
    routes:
      - {served_entity_name: small, traffic_percentage: 90}
      - {served_entity_name: large, traffic_percentage: 10}
rate_limits:
  - {calls: 100, renewal_period: minute}
tags:
  - {key: team, value: yes}
"""


def read(text):
    return read_text(text, "gpt.yaml", secrets_in_clear=False)


def faults(text):
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    return str(caught.value).splitlines()


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def line_of(text, mark):
    return next(number for number, line in enumerate(text.splitlines(), 1) if mark in line)


def test_a_declaration_means_what_the_rest_api_would_make_of_it():
    (one,) = read(GOOD)

    assert (one.name, one.place) == ("gpt", "gpt.yaml:2")
    assert [entity.external_model.name for entity in one.declaration.config.served_entities] == [
        "gpt-4o-mini",
        "gpt-4o",
    ]
    assert one.declaration.rate_limits[0].calls == 100
    assert one.declaration.tags == (("team", "yes"),)


def test_json_and_yaml_say_the_same():
    (one,) = read(GOOD)
    assert read(json.dumps(one.body, indent=2))[0].body == one.body


@pytest.mark.parametrize(
    "text", [f"{GOOD}---\n{GOOD.replace('name: gpt', 'name: other', 1)}", '[{"name": "gpt"}, {"name": "other"}]']
)
def test_a_file_holds_several(text):
    assert [one.name for one in read(text)] == ["gpt", "other"]


@pytest.mark.parametrize(
    ("old", "new", "mark", "told"),
    [
        ("name: gpt\n", "nam: gpt\n", "nam: gpt", "nam: there is no such field; an endpoint has ai_gateway"),
        ("name: gpt\n", "name: g p t\n", "g p t", "endpoint name 'g p t' is not legal"),
        ("task: llm/v1/chat", "task: chat", "task: chat", "external_model.task must be one of"),
        ("provider: openai", "provder: openai", "provder", "external_model.provder: there is no such field"),
        ("        provider: openai\n", "", "external_model: &model", "config.served_entities[0].external_model.provider: is missing"),
        ("traffic_percentage: 90", "traffic_percentage: 80", "traffic_percentage: 80", "must add up to 100 over all routes, got 90"),
        ("traffic_percentage: 90", "traffic_percentage: many", "many", "traffic_config.routes[0].traffic_percentage: should be a valid integer"),
        ("served_entity_name: small", "served_entity_name: smal", "smal,", "a route leads to 'smal', which is no served entity"),
        ("calls: 100", "calls: 0", "calls: 0", "rate limit: calls must be at least 1"),
        ("calls: 100", "cals: 100", "cals: 100", "rate_limits[0].cals: there is no such field; rate_limits[0] has calls, key"),
        ("traffic_config:", "traffic_confg:", "traffic_confg:", "config.traffic_confg: there is no such field"),
        ("  - {key: team", "  - {kee: team", "kee: team", "tags[0].kee: there is no such field"),
        ("name: gpt\n", "name: gpt\nname: gpt\n", "name: gpt", "'name' is given 2 times"),
        ("name: large", "name: [large", "external_model:", "expected"),
        ("name: large", "name: !!python/object:os.system large", "python", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_by_line_field_and_rule(old, new, mark, told):
    text = changed(old, new)
    fault, *_ = faults(text)

    place, _, rule = fault.partition(": ")
    assert told in rule
    if "expected" not in told:
        assert place == f"gpt.yaml:{line_of(text, mark)}"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", "[]"])
def test_a_file_without_an_endpoint_says_what_to_write(text):
    assert faults(text) == ["gpt.yaml: declares no endpoint. Write at least its name and its config."]


@pytest.mark.parametrize(("text", "kind"), [("just words", "a text"), ("- [1, 2]", "a list"), ("- 12", "a number")])
def test_what_is_no_mapping_is_no_endpoint(text, kind):
    assert faults(text) == [f"gpt.yaml:1: an endpoint is a mapping with a name and a config, not {kind}."]


def test_a_recursive_file_is_refused():
    assert faults("&a\nname: gpt\nconfig: *a")
    assert faults("[" * 5000)


def test_every_fault_of_a_body_has_its_own_line():
    text = changed("calls: 100", "calls: many").replace("traffic_percentage: 10", "traffic_percentage: ten")
    places = [fault.split(": ")[0] for fault in faults(text)]
    assert places == [f"gpt.yaml:{line_of(text, mark)}" for mark in ("ten", "many")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('openai_api_key: "{{secrets/openai/key}}"', "openai_api_key_plaintext: sk-very-secret"),
        ('openai_api_key: "{{secrets/openai/key}}"', "openai_api_key: sk-very-secret"),
    ],
)
def test_a_key_in_clear_is_refused_without_being_told(old, new):
    (fault,) = faults(changed(old, new))

    assert fault.startswith("gpt.yaml:5: served entity 'small': openai_api_key is given in clear")
    assert "aiquery secrets put" in fault
    assert "sk-very" not in fault


def test_words_of_yaml_stay_texts():
    text = "name: gpt\ntags: [{key: a, value: on}, {key: b, value: 2024-01-31}, {key: c, value: No}]"
    assert dict(read(text)[0].declaration.tags) == {"a": "on", "b": "2024-01-31", "c": "No"}


def test_a_folder_is_read_whole_and_every_bad_file_is_told(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a")
    (tmp_path / "b.yml").write_text("nam: b")
    (tmp_path / "c.json").write_text('{"name": "c",\n "confg": {}}')
    (tmp_path / "d.json").write_bytes(b'{"name": "\xff"}')
    (tmp_path / "notes.txt").write_text("not a declaration")
    with pytest.raises(ConfigurationError) as caught:
        read_files(tmp_path)

    told = str(caught.value).splitlines()
    assert list(dict.fromkeys(Path(line.split(": ")[0]).name for line in told)) == ["b.yml:1", "c.json:2", "d.json"]


def test_one_name_may_not_be_declared_twice(tmp_path):
    for file in ("a.yaml", "b.yaml"):
        (tmp_path / file).write_text("name: gpt")
    with pytest.raises(ConfigurationError, match=r"b\.yaml:1: name: endpoint 'gpt' is declared in .*a\.yaml:1 already"):
        read_files(tmp_path)


def test_a_folder_with_no_declaration_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match=r"holds no \.yaml, \.yml, \.json file"):
        read_files(tmp_path)


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8)  # fmt: skip
fields = st.sampled_from(["name", "config", "served_entities", "tags", "external_model", "rate_limits", "x"])
bodies = st.dictionaries(fields, values | st.dictionaries(fields, values, max_size=3), max_size=4)


@given(st.text(max_size=60) | bodies.map(json.dumps))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_in_words(text):
    told = ""
    try:
        read(text)
    except ConfigurationError as error:
        told = str(error)
    assert all(line.startswith("gpt.yaml") for line in told.splitlines())


def test_the_documented_file_declares_what_it_says():
    document = Path(__file__).parents[2] / "docs" / "how-to" / "endpoints-as-files.md"
    (text,) = re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    assert [one.name for one in read(text)] == ["reviews", "spam"]
    misspelt = text.replace("task:", "taks:", 1)
    told = re.search(r"```text\nError: (.*?)```", document.read_text(), re.DOTALL)[1]
    assert faults(misspelt) == told.replace("endpoints/reviews.yaml", "gpt.yaml").splitlines()
