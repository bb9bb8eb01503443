"""Loading, tokens, identity. Models are tiny and local; nothing is fetched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.errors import InputError
from sae_bench.folders import cache_root
from sae_bench.models import LanguageModel
from tests.tiny import FAMILIES, LAYERS, VOCAB, tiny_model, tiny_tokenizer


def save(lm: LanguageModel, folder: Path) -> Path:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def message_of(spec: str | Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        LanguageModel.load(spec, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_object_is_enough(family: str) -> None:
    lm = tiny_model(family)
    assert (lm.n_layers, lm.d_model, lm.name) == (LAYERS, 32, f"tiny-{family}")
    assert (lm.device.type, lm.dtype, lm.spec) == ("cpu", torch.float32, None)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_found_again(family: str, tmp_path: Path) -> None:
    lm = tiny_model(family)
    again = LanguageModel.load(save(lm, tmp_path / "mine"), device="cpu")
    assert again.name == "mine"
    assert again.spec == str((tmp_path / "mine").resolve())
    assert again.fingerprint() == lm.fingerprint()
    ids = torch.tensor([[1, 5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(again.logits(ids, mask), lm.logits(ids, mask))
    assert again.record() == json.loads(json.dumps(again.record()))


def test_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    lm = tiny_model("llama")
    known = {lm.fingerprint()}
    assert tiny_model("llama").fingerprint() in known  # equal seeds, equal models

    def is_new(other: LanguageModel) -> bool:
        before = len(known)
        known.add(other.fingerprint())
        return len(known) > before

    assert is_new(tiny_model("llama", seed=1))
    assert is_new(tiny_model("gpt2"))
    assert is_new(tiny_model("llama", dtype=torch.bfloat16))
    assert is_new(LanguageModel(tiny_model("llama").model, tiny_tokenizer(bos_token=None)))
    nudged = tiny_model("llama")
    nudged.model.lm_head.weight.data[3, 4] += 1e-6
    assert is_new(nudged)
    folder = save(lm, tmp_path / "same-weights")
    edit_config(folder, rms_norm_eps=1e-3)
    assert is_new(LanguageModel.load(folder, device="cpu"))


def test_encoding_and_padding_leave_the_fingerprint_alone() -> None:
    lm, other = tiny_model("gpt2"), tiny_model("gpt2")
    other.encode(["abc"])
    other.tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert lm.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    folder = save(tiny_model("llama"), tmp_path)
    lm = LanguageModel.load(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in lm.model.parameters()} == {getattr(torch, dtype)}
    assert lm.record()["dtype"] == dtype


@pytest.mark.parametrize(
    ("special", "kind", "bos", "pad"),
    [
        ({}, "bos", 1, 0),
        ({"bos_token": None}, "eos", 2, 0),
        ({"bos_token": None, "eos_token": None}, "none", None, 0),
        ({"pad_token": None}, "bos", 1, 2),
        ({"pad_token": None, "bos_token": None, "eos_token": None}, "none", None, 0),
    ],
)
def test_special_tokens(special: dict, kind: str, bos: int | None, pad: int) -> None:
    lm = LanguageModel(tiny_model("llama").model, tiny_tokenizer(**special))
    assert (lm.bos_kind, lm.bos_id, lm.pad_id) == (kind, bos, pad)
    expected = {0, 1, 2, 3} - {
        {"pad_token": 0, "bos_token": 1, "eos_token": 2}[token] for token in special
    }
    assert lm.special_ids == expected


def test_added_special_tokens_count_as_special() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    lm = LanguageModel(tiny_model("llama").model, tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|turn|>") in lm.special_ids


LM = tiny_model("llama")


@given(st.lists(st.text(alphabet="".join(VOCAB[4:]), max_size=40), max_size=4))
def test_text_is_text(texts: list[str]) -> None:
    """No special tokens are added, and none come out of text, whatever it spells."""
    for text, ids in zip(texts, LM.encode(texts), strict=True):
        assert [VOCAB[index] for index in ids] == list(text)


def test_text_that_spells_a_special_token() -> None:
    [ids] = LM.encode(["a<bos>b<eos>"])
    assert "".join(VOCAB[index] for index in ids) == "a<bos>b<eos>"
    assert not LM.special_ids & set(ids)


def test_errors_before_anything_is_loaded(tmp_path: Path) -> None:
    assert "choose one of float32" in message_of("gpt2", dtype="float8")
    assert "does not exist" in message_of(tmp_path / "nowhere")
    assert "does not exist" in message_of("./nowhere")
    assert "does not exist" in message_of("weights/some/model")
    assert "does not exist" in message_of("weights.gguf")
    assert "has no config.json" in message_of(tmp_path)
    (tmp_path / "model.bin").write_text("x")
    assert "neither a folder nor a .gguf" in message_of(tmp_path / "model.bin")


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    assert "cannot be loaded" in message_of(tmp_path / "model.gguf")
    folder = save(tiny_model("llama"), tmp_path / "llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in message_of(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be loaded" in message_of(folder)


def test_unknown_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "'nobody/no-such-model' cannot be loaded" in message_of("nobody/no-such-model")


def test_models_that_are_not_causal_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config

    bert = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertForMaskedLM(bert).save_pretrained(tmp_path / "masked")
    assert "not a causal language model (BertForMaskedLM)" in message_of(tmp_path / "masked")
    T5Config().save_pretrained(tmp_path / "t5")
    assert "not a causal language model" in message_of(tmp_path / "t5")
    BertModel(bert).save_pretrained(tmp_path / "headless")
    tiny_tokenizer().save_pretrained(tmp_path / "headless")
    assert "weights are missing" in message_of(tmp_path / "headless")


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = save(tiny_model("llama"), tmp_path)
    torch.save(tiny_model("llama").model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no safetensors weights" in message_of(folder)


def test_code_of_a_model_runs_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.dynamic_module_utils

    modules = str(tmp_path / "modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder, trace = save(tiny_model("llama"), tmp_path / "theirs"), tmp_path / "code-has-run"
    (folder / "modeling_theirs.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(trace)!r}).touch()\n"
        "class TheirConfig(LlamaConfig):\n    model_type = 'theirs'\n"
        "class TheirModel(LlamaForCausalLM):\n    config_class = TheirConfig\n"
    )
    edit_config(
        folder,
        model_type="theirs",
        auto_map={
            "AutoConfig": "modeling_theirs.TheirConfig",
            "AutoModelForCausalLM": "modeling_theirs.TheirModel",
        },
    )
    assert "trust_remote_code=True" in message_of(folder)
    assert not trace.exists()
    lm = LanguageModel.load(folder, device="cpu", trust_remote_code=True)
    assert type(lm.model).__name__ == "TheirModel"
    assert trace.exists()


def test_loading_is_silent_when_stderr_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save(tiny_model("llama"), tmp_path)
    capfd.readouterr()
    LanguageModel.load(folder, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_import_is_light() -> None:
    code = "import sys, sae_bench.models, sae_bench.sites; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


DEFAULT = cache_root() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
needs_default = pytest.mark.skipif(
    not DEFAULT.is_file(), reason="the default model has not been fetched"
)


@needs_default
def test_the_default_model_is_what_its_gguf_file_holds() -> None:
    """The file is converted once; caches made from either are the same."""
    converted = LanguageModel.load("smollm2", device="cpu")
    assert LanguageModel.load(DEFAULT, device="cpu").fingerprint() == converted.fingerprint()


@needs_default
def test_default_model() -> None:
    lm = LanguageModel.load("smollm2", device="cpu")
    assert (lm.name, lm.spec, lm.n_layers, lm.d_model) == ("smollm2", "smollm2", 30, 576)
    assert (lm.bos_kind, lm.tokenizer.decode([lm.bos_id])) == ("bos", "<|im_start|>")
    text = (
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this "
        "software and associated documentation files, to deal in the Software without restriction."
    )
    [ids] = lm.encode([text])
    assert lm.tokenizer.decode(ids) == text
    context = torch.tensor([[lm.bos_id, *ids]])
    logits = lm.logits(context, torch.ones_like(context, dtype=torch.bool))
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], context[0, 1:])
    assert loss < 4.5  # uniform guessing: 10.8
