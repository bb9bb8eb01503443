"""Tiny randomly initialised language models, made from their configurations: no files, no hub."""

import string

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from sae_bench.models import LanguageModel

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
VOCAB = [*SPECIAL.values(), *string.ascii_lowercase, *string.digits, *" .,;:!?'\"()<>|_-+=*/\n"]
LAYERS = 3
FAMILIES = ("llama", "gpt2", "neox", "gemma2")


def tiny_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """One token a character; `special` overrides entries of SPECIAL (None: the model has none)."""
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(VOCAB)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(SPECIAL | special))


def tiny_config(family: str) -> PreTrainedConfig:
    """Large initial weights, so that layers differ; Gemma 2 has heads * head_dim != d_model."""
    common = {
        "vocab_size": len(VOCAB),
        "max_position_embeddings": 128,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    match family:
        case "llama":
            return LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2)
        case "gpt2":
            return GPT2Config(**common, n_inner=48)
        case "neox":
            return GPTNeoXConfig(**common, intermediate_size=48)
        case "gemma2":
            return Gemma2Config(
                **common,
                intermediate_size=48,
                num_key_value_heads=2,
                head_dim=12,
                query_pre_attn_scalar=12,
                sliding_window=4,
            )
    raise ValueError(f"unknown family {family!r}; known: {FAMILIES}")


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model of `family` with three layers, d_model 32; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases: away from ones and zeros
                torch.nn.init.normal_(parameter, 1.0 if parameter.mean() == 1 else 0.0, 0.2)
    return LanguageModel(model.to(dtype), tiny_tokenizer(), name=f"tiny-{family}")
