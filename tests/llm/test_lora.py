"""Adapters that are merged at load: the model says what peft says."""

from __future__ import annotations

import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: LoRA adapters are NOT tested")
peft = pytest.importorskip("peft", reason="peft is not installed: LoRA adapters are NOT tested")

from torch_engines import Tiny, answers, ask  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from aiquery_serving.errors import ModelError  # noqa: E402
from aiquery_serving.llm import lora  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")

PLANS = {
    "two layers": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 32},
    "all layers, by the root of the rank": {"target_modules": "all-linear", "use_rslora": True},
    "ranks and scales of their own": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"k_proj": 2, r"layers\.0\.mlp\.down_proj": 8},
        "alpha_pattern": {"k_proj": 64, r"layers\.0\.self_attn\.q_proj": 5},
    },
    "the embedding and a whole layer": {"target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
}


def write(base, folder, **plan):
    """Write an adapter of random weights; returns the model with it, merged by peft."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, **plan))
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name:
            weight.data += torch.randn_like(weight) * 0.1
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


def logits(model):
    with torch.inference_mode():
        return model(torch.tensor([[7, 8, 9, 100, 200]])).logits


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_merged_adapter_is_what_peft_makes_of_it(llama, tmp_path, plan):
    wanted = write(llama, tmp_path, **plan)
    model = AutoModelForCausalLM.from_pretrained(llama)
    before = logits(model)
    with torch.inference_mode():
        lora.merge(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(wanted), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, logits(model), atol=0.1)


def test_layers_that_keep_weights_the_other_way_round(made_models, tmp_path):
    from tiny_models import tiny_model

    base = tiny_model(made_models, "gpt2")
    wanted = write(base, tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora.merge(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(wanted), atol=1e-4, rtol=1e-4)


def test_an_engine_answers_with_its_adapter(llama, llama_adapter):
    tiny = Tiny(llama, adapter=str(llama_adapter))
    adapted = peft.PeftModel.from_pretrained(tiny.plain, llama_adapter).merge_and_unload()
    tiny.plain = adapted
    with tiny.engine() as engine:
        [answer] = answers(engine, [ask([7, 8, 9], 12, ignore_eos=True)])
    assert answer.tokens == tiny.greedy([7, 8, 9], 12)


def test_adapters_that_cannot_be_merged_are_refused(llama, llama_adapter, tmp_path):
    config = json.loads((llama_adapter / "adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(llama)

    def refusal(**changes):
        shutil.copytree(llama_adapter, tmp_path, dirs_exist_ok=True)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ModelError) as refused:
            lora.merge(model, tmp_path)
        return str(refused.value)

    assert "no plain LoRA adapter (use_dora)" in refusal(use_dora=True)
    assert "no plain LoRA adapter (IA3)" in refusal(peft_type="IA3")
    shutil.copytree(llama_adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"cannot be read: adapter_model\.safetensors"):
        lora.merge(model, tmp_path)


def test_an_adapter_for_another_model_is_refused(llama_adapter, made_models):
    from tiny_models import tiny_llama, tiny_model

    for base, why in ((tiny_model(made_models, "gpt2"), "there is no"), (tiny_llama(made_models, hidden=32), "shape")):
        model = AutoModelForCausalLM.from_pretrained(base)
        with pytest.raises(ModelError, match=f"is for another model: .*{why}"):
            lora.merge(model, llama_adapter)
