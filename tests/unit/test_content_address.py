from dataclasses import replace

import pytest

from aiquery_serving.content_address import content_address, fingerprint
from aiquery_serving.endpoint import ExternalModel, ServedEntity


def external(name="gpt-4o", served="one", **settings):
    model = ExternalModel(provider="openai", name=name, task="llm/v1/chat", config=settings)
    return ServedEntity(name=served, external_model=model)


SECRET = "{{secrets/team/openai}}"
PLAIN = external(openai_api_base="https://a.example/v1", openai_api_key=SECRET)


@pytest.mark.parametrize(
    "other",
    [
        external(openai_api_base="https://a.example/v1", openai_api_key="{{secrets/other/key}}"),
        external(openai_api_base="https://a.example/v1", openai_api_key=SECRET, openai_organization="org-2"),
        external(served="two", openai_api_base="https://a.example/v1", openai_api_key=SECRET),
        replace(PLAIN, max_provisioned_concurrency=7),
    ],
    ids=["another key", "another account", "another name", "another size"],
)
def test_what_does_not_change_an_answer_keeps_its_address(other):
    assert fingerprint(other) == fingerprint(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        external(name="gpt-4o-mini", openai_api_base="https://a.example/v1", openai_api_key=SECRET),
        external(openai_api_base="https://b.example/v1", openai_api_key=SECRET),
        external(openai_api_base="https://a.example/v1", openai_api_key=SECRET, openai_api_version="2"),
        ServedEntity(name="one", entity_name="demo.spam", entity_version="1"),
    ],
    ids=["another model", "another place", "another setting", "a model of our own"],
)
def test_what_may_change_an_answer_changes_its_address(other):
    assert fingerprint(other) != fingerprint(PLAIN)


def test_a_new_version_of_a_model_is_another_one():
    one, two = (ServedEntity(name="m", entity_name="demo.spam", entity_version=version) for version in "12")
    assert fingerprint(one) != fingerprint(two)


def test_an_address_is_of_the_model_and_of_the_request():
    assert len(content_address(b"a" * 16, b"b" * 16)) == 16
    assert content_address(b"a" * 16, b"b" * 16) != content_address(b"b" * 16, b"a" * 16)
