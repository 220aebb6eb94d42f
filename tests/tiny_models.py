"""Language models small enough to be made in a test, in the form in which Hugging Face's are kept."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import tiny_lessons

#: Change it whenever what is built here changes: kept ones are built anew.
VERSION = "2"
WORDS = (
    "The quick brown fox jumps over the lazy dog while reviews of good and bad products wait in a table. "
    "Is this review positive or negative? Answer in one word. Straße, naïve café, 你好世界, Привет мир, 🙂🚀. "
    '{"sentiment": "positive", "stars": 5, "tags": ["fast", "cheap"], "ok": true, "none": null} 0123456789\n'
)
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.get('tool_calls') %}<tool_call>{{ m['tool_calls'] | tojson }}</tool_call>{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
PAD, BEGIN, END = 0, 1, 4
#: What differs between architectures of one size: attention over a window, capped scores, learned positions, experts.
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 24},
    "phi3": {},
    "gemma2": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {},
    "gpt_neox": {},
}


def tiny_llama(kept: Path, *, vocabulary: int = 512, hidden: int = 64, layers: int = 2, context: int = 512) -> Path:
    """Return the folder of a Llama of random weights with a byte-level tokenizer and a chat template."""
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers}
    return tiny_model(kept, "llama", **sizes, intermediate_size=2 * hidden, max_position_embeddings=context)


def tiny_model(kept: Path, kind: str, **sizes: int) -> Path:
    """Return the folder of a random language model of another architecture (of `ARCHITECTURES`)."""
    name = "-".join(map(str, (kind, VERSION, *sizes.values())))
    return _once(kept / name, lambda folder: _write(folder, _random_model(kind, sizes)))


def sized_llama(kept: Path, *, hidden: int, layers: int, vocabulary: int, context: int = 4096) -> Path:
    """Return the folder of a random Llama for measurements, with a tokenizer that has learned that many tokens."""
    heads = max(hidden // 64, 4)
    sizes = {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 8 * hidden // 3 // 32 * 32,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": max(heads // 4, 2),
        "max_position_embeddings": context, "initializer_range": 0.05,
    }  # fmt: skip
    folder = kept / f"sized-llama-{VERSION}-{hidden}-{layers}-{vocabulary}"
    return _once(folder, lambda draft: _write(draft, _random_model("llama", sizes), _tokenizer(vocabulary, _sources())))


def trained_llama(kept: Path) -> Path:
    """Return the folder of a small Llama that has learned what `tiny_lessons` teaches; made in a quarter of a minute."""
    return _once(kept / f"trained-llama-{VERSION}", _train)


def lora_adapter(kept: Path, base: Path) -> Path:
    """Return the folder of a LoRA adapter, of random weights, for the model in `base`."""
    return _once(kept / f"lora-{VERSION}-{base.name}", lambda folder: _write_adapter(folder, base))


def tiny_embedder(kept: Path, *, pooling: str = "mean", normalized: bool = True) -> Path:
    """Return the folder of a random embedding model with sentence-transformers' files beside Hugging Face's.

    `pooling` is mean, cls or lasttoken; the last is of a decoder's tokens, the others of an encoder's.
    """
    name = f"embedder-{VERSION}-{pooling}-{normalized}"
    return _once(kept / name, lambda folder: _write_embedder(folder, pooling, normalized))


def _once(folder: Path, build: Callable[[Path], object]) -> Path:
    """Build a folder that is not there yet; several processes may try at once."""
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        build(draft)
        try:
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft)
    return folder


def _random_model(kind: str, sizes: dict[str, int]):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD,
        "initializer_range": 0.2, "tie_word_embeddings": False,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **(shape | ARCHITECTURES[kind] | sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def _write(folder: Path, model, tokenizer=None) -> None:
    (tokenizer or _tokenizer(model.config.vocab_size, [WORDS] * 4)).save_pretrained(folder)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    model.save_pretrained(folder)


def _tokenizer(vocabulary: int, texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _sources() -> list[str]:
    """Return texts of many words: the standard library."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:150]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _train(folder: Path) -> None:
    """Teach the lessons until hardly anything is left to learn."""
    import torch

    lessons = tiny_lessons.lessons()
    said = [message["content"] for messages, _ in lessons for message in messages]
    tokenizer = _tokenizer(1024, [*said, *(answer for _, answer in lessons), WORDS])
    model = _random_model("llama", {"vocab_size": 1024, "hidden_size": 96, "initializer_range": 0.05})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _learn(model, *_rows(tokenizer, lessons))
    finally:
        torch.set_num_threads(threads)
    _write(folder, model, tokenizer)


def _rows(tokenizer, lessons):
    """Return prompts with their answers, and which of their tokens are to be learned."""
    import torch

    rows, wanted = [], []
    for messages, answer in lessons:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        given = [*tokenizer(answer, add_special_tokens=False).input_ids, END]
        rows.append(torch.tensor(prompt + given))
        wanted.append(torch.tensor([-100] * len(prompt) + given))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True, padding_value=PAD), pad(wanted, batch_first=True, padding_value=-100)


def _learn(model, rows, wanted, steps: int = 320, batch: int = 32) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
        pace = torch.optim.lr_scheduler.OneCycleLR(learner, max_lr=3e-3, total_steps=steps)
        for chosen in _draws(len(rows), steps, batch):
            learner.zero_grad()
            model(input_ids=rows[chosen], labels=wanted[chosen]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            learner.step()
            pace.step()
    model.eval()


def _draws(rows: int, steps: int, batch: int) -> Iterator:
    import torch

    for _ in range(steps):
        yield torch.randint(0, rows, (batch,))


def _write_adapter(folder: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=FutureWarning):
        torch.manual_seed(1)
        plan = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), plan).save_pretrained(folder)


def _write_embedder(folder: Path, pooling: str, normalized: bool) -> None:
    _embedding_tokenizer(pooling).save_pretrained(folder)
    _encoder(pooling).save_pretrained(folder)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalized else [])]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(parts)
    ]
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    chosen = {f"pooling_mode_{known}": pooling == mode for mode, known in modes.items()}
    _keep(folder / "modules.json", listed)
    _keep(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **chosen})
    _keep(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})


def _keep(file: Path, what: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(what))


def _encoder(pooling: str):
    import torch
    from transformers import AutoConfig, AutoModel

    kind = "qwen3" if pooling == "lasttoken" else "bert"
    shape = {
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": PAD,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.for_model(kind, **shape)).eval()


def _embedding_tokenizer(pooling: str):
    """Return a tokenizer that marks where a text begins and ends, as the model's pooling needs it."""
    from tokenizers.processors import TemplateProcessing

    made = _tokenizer(512, [WORDS] * 4)
    single = "$A <|im_end|>" if pooling == "lasttoken" else "<s> $A </s>"
    marks = [(mark, SPECIAL.index(mark)) for mark in ("<s>", "</s>", "<|im_end|>")]
    made.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=marks)
    return made
