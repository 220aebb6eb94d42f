"""Every model has one throughput chunk per device: measured or modelled once, then told the same for ever."""

import sys

import pytest

from aiquery.testing import ManualClock
from aiquery_serving.chunk_sizes import ChunkSizes, measured, provisioned
from aiquery_serving.clock import SystemClock
from aiquery_serving.endpoint import FoundationModel, ServedEntity
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.store import Store
from aiquery_serving.throughput import Speed, modelled, provision

CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 512}
LAPTOP = Speed(operations=2e11, bytes=2e10, begin=5e-6, width=4)


class Devices:
    """Measures devices: each time half as fast as before."""

    def __init__(self):
        self.asked = []

    def __call__(self, device):
        self.asked.append(device)
        return LAPTOP._replace(operations=LAPTOP.operations / 2 ** len(self.asked))


@pytest.fixture
def store():
    store = Store(None)
    yield store
    store.close()


def sizes_of(store, devices=None):
    return ChunkSizes(store, ManualClock(), measure=devices or Devices())


def test_what_was_told_once_stays(store):
    devices = Devices()
    first = sizes_of(store, devices).of("c.s.llama/3", CONFIG, "cpu")
    assert first == modelled(CONFIG, LAPTOP._replace(operations=LAPTOP.operations / 2))
    assert sizes_of(store, devices).of("c.s.llama/3", CONFIG, "cpu") == first
    assert devices.asked == ["cpu"]


def test_models_and_devices_are_told_apart(store):
    devices = Devices()
    sizes = sizes_of(store, devices)
    found = {sizes.of(model, CONFIG, device) for model in ("a/1", "a/2") for device in ("cpu", "somewhere")}
    assert len(found) == len(devices.asked) == 4


def test_what_an_engine_measured_counts_if_nothing_was_told_before(store):
    sizes = sizes_of(store)
    assert sizes.told("a/1", "cpu") is None
    assert sizes.learn("a/1", 980, "cpu") == sizes.of("a/1", CONFIG, "cpu") == 980
    assert sizes.learn("a/1", 5000, "cpu") == 980


def test_two_processes_tell_the_same(tmp_path):
    one, other = Store(tmp_path / "w"), Store(tmp_path / "w")
    assert sizes_of(one).learn("a/1", 980, "cpu") == sizes_of(other).learn("a/1", 970, "cpu") == 980
    one.close()
    other.close()


def test_a_device_is_measured_in_a_moment():
    pytest.importorskip("torch", reason="PyTorch is not installed: measuring with it is NOT tested")
    speed = measured("cpu", SystemClock())
    assert 1e7 < speed.operations < 1e15
    assert 1e7 < speed.bytes < 1e14
    assert 0 < speed.begin < 0.01
    assert speed.width == 4


def test_numpy_measures_where_pytorch_is_missing(monkeypatch, store):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert measured("cpu", SystemClock()).operations > 1e7
    assert ChunkSizes(store, SystemClock()).of("a/1", CONFIG) >= 10


# What the sizes of a model and of a device come to


def bigger(**changed):
    return CONFIG | changed


@pytest.mark.parametrize(
    "slower",
    [
        bigger(num_hidden_layers=20),
        bigger(intermediate_size=4096),
        bigger(vocab_size=200_000),
        bigger(num_attention_heads=12, head_dim=256),
        bigger(num_local_experts=8, num_experts_per_tok=2, intermediate_size=4096),
        bigger(hidden_act="silu", intermediate_size=1024),
        {"text_config": bigger(hidden_size=512)},
    ],
    ids=str,
)
def test_a_larger_model_has_a_smaller_chunk(slower):
    assert modelled(slower, LAPTOP) < modelled(CONFIG, LAPTOP)


@pytest.mark.parametrize(
    ("bound_by", "faster"),
    [
        ({"operations": 1e12}, {"operations": 1e13}),
        ({"bytes": 1e11}, {"bytes": 4e11}),
        ({"bytes": 1e11}, {"width": 2}),
        ({"begin": 1e-4}, {"begin": 1e-5}),
    ],
)
def test_a_faster_device_has_a_larger_chunk_of_a_large_model(bound_by, faster):
    large = bigger(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336)
    device = Speed(operations=1e15, bytes=1e13, begin=1e-6, width=4)._replace(**bound_by)
    assert modelled(large, device._replace(**faster)) > modelled(large, device)


def test_a_chunk_is_in_tens_of_tokens_and_never_nothing():
    huge = bigger(hidden_size=16384, num_hidden_layers=200, intermediate_size=65536)
    assert modelled(huge, LAPTOP) == 10
    assert modelled(CONFIG, LAPTOP) % 10 == 0


@pytest.mark.parametrize("config", [{}, {"hidden_size": None, "vocab_size": "many"}, {"text_config": None}])
def test_sizes_that_a_model_leaves_out_are_guessed(config):
    assert modelled(config, LAPTOP) >= 10


def test_names_of_sizes_differ_between_architectures():
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_inner": 128, "vocab_size": 512, "n_head": 12}
    assert modelled(gpt2, LAPTOP) == modelled(CONFIG, LAPTOP)


def test_texts_to_embed_go_faster_than_answers():
    assert modelled(CONFIG, LAPTOP, embeds=True) > modelled(CONFIG, LAPTOP)


# Declared throughput


def declared(task="llm/v1/chat", **more):
    model = FoundationModel(task=task, model_type="llama") if task else None
    return ServedEntity(name="llama", entity_name="c.s.llama", entity_version="3", foundation_model=model, **more)


def test_a_declared_entity_gets_its_model_s_chunk(store):
    sizes = sizes_of(store)
    chunk = sizes.of("c.s.llama/3", CONFIG)
    entity = provisioned(declared(max_provisioned_throughput=3 * chunk), sizes, CONFIG)
    assert entity.foundation_model == FoundationModel(
        task="llm/v1/chat", model_type="llama", throughput_chunk_size=chunk
    )
    assert provision(entity) == (0, 3 * chunk, chunk, True)
    units = provisioned(declared(provisioned_model_units=100), sizes, CONFIG)
    assert provision(units) == (2 * chunk, 2 * chunk, chunk, True)


def test_an_entity_without_throughput_stays_as_it_is(store):
    devices = Devices()
    entity = declared(workload_size="Small")
    assert provisioned(entity, sizes_of(store, devices), CONFIG) is entity
    assert devices.asked == []


def test_bounds_that_are_no_multiples_are_refused_by_the_entity_s_name(store):
    sizes = sizes_of(store)
    sizes.learn("c.s.llama/3", 980)
    with pytest.raises(ConfigurationError, match=r"^served entity 'llama': max_prov.*980.*: give 980 or 1960$"):
        provisioned(declared(max_provisioned_throughput=1000), sizes, CONFIG)


@pytest.mark.parametrize("size", [{"max_provisioned_throughput": 980}, {"provisioned_model_units": 50}])
def test_throughput_of_a_custom_model_is_refused(store, size):
    with pytest.raises(ConfigurationError, match=r"'llama': throughput cannot be provisioned .* 'c.s.llama'"):
        provisioned(declared(task=None, **size), sizes_of(store), {})
