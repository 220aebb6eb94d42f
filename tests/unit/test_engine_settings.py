"""What a served entity may say of how its model is run."""

from __future__ import annotations

import pytest

from aiquery_serving.errors import ConfigurationError
from aiquery_serving.llm.settings import EngineSettings


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, EngineSettings()),
        ({"HF_TOKEN": "x", "OMP_NUM_THREADS": "1"}, EngineSettings()),
        ({"AIQUERY_ENGINE": "vLLM"}, EngineSettings(engine="vllm")),
        ({"AIQUERY_DEVICE": "cuda:1"}, EngineSettings(device="cuda:1")),
        ({"AIQUERY_DTYPE": " bfloat16 "}, EngineSettings(dtype="bfloat16")),
        ({"AIQUERY_MAX_BATCH_TOKENS": "0512"}, EngineSettings(max_batch_tokens=512)),
        ({"AIQUERY_MAX_SEQUENCES": "1"}, EngineSettings(max_sequences=1)),
        ({"AIQUERY_KV_MEMORY_FRACTION": "0.5"}, EngineSettings(kv_memory_fraction=0.5)),
        ({"AIQUERY_CONTEXT_LENGTH": "4096"}, EngineSettings(context_length=4096)),
        ({"AIQUERY_SYSTEM_PROMPT": ""}, EngineSettings(system_prompt="")),
    ],
)
def test_settings_are_read_from_the_environment_of_a_served_entity(environment, settings):
    assert EngineSettings.parse(environment) == settings


@pytest.mark.parametrize(
    ("workload_type", "declared", "device"),
    [
        ("CPU", None, "auto"),
        ("GPU_LARGE", None, "auto"),
        ("CPU_LARGE", None, "cpu"),
        ("CPU_LARGE", "cuda", "cuda"),
        ("GPU_SMALL", "cpu", "cpu"),
    ],
)
def test_the_device_is_what_is_declared_or_a_gpu_where_there_is_one(workload_type, declared, device):
    environment = {"AIQUERY_DEVICE": declared} if declared else {}

    assert EngineSettings.parse(environment, workload_type).device == device


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("ENGINE", "llama.cpp", "one of auto, torch, vllm; got 'llama.cpp'"),
        ("DEVICE", "tpu", "auto, cpu, cuda or cuda:<number>"),
        ("DTYPE", "int8", "one of auto, float32, bfloat16, float16"),
        ("MAX_BATCH_TOKENS", "0", "a whole number of at least 1"),
        ("MAX_SEQUENCES", "-1", "a whole number of at least 1"),
        ("MAX_SEQUENCES", "1e3", "a whole number of at least 1"),
        ("CONTEXT_LENGTH", "9" * 30, "a whole number of at least 1"),
        ("CONTEXT_LENGTH", "{{secrets/a/b}}", "a whole number of at least 1"),
        ("KV_MEMORY_FRACTION", "90", "above 0 and at most 1"),
        ("KV_MEMORY_FRACTION", "nan", "above 0 and at most 1"),
        ("KV_MEMORY_FRACTION", "half", "above 0 and at most 1"),
        ("ADAPTER", "/nowhere", "the folder of a LoRA adapter"),
        ("BATCH_SIZE", "1", "Those there are: AIQUERY_ENGINE, AIQUERY_DEVICE"),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(name, value, why):
    with pytest.raises(ConfigurationError, match=f"AIQUERY_{name}") as refused:
        EngineSettings.parse({f"AIQUERY_{name}": value})

    assert why in str(refused.value)


def test_an_adapter_is_a_folder_with_its_config(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")

    assert EngineSettings.parse({"AIQUERY_ADAPTER": str(tmp_path)}).adapter == str(tmp_path)
