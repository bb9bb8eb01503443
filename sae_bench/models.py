"""Language models: any Hugging Face causal language model with its tokenizer."""

import contextlib
import inspect
import io
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_bench.default_model import default_model_folder
from sae_bench.devices import default_device
from sae_bench.errors import InputError

DEFAULT_MODEL = "smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Fields of a configuration that say where it came from, not what the model computes.
_PROVENANCE = {"architectures", "dtype", "transformers_version", "use_cache"}
# What transformers raises for unknown names, damaged files and missing libraries.
_LOAD_ERRORS = (OSError, ValueError, LookupError, ImportError, struct.error)


class LanguageModel:
    """A Hugging Face causal language model with its tokenizer, in evaluation mode, gradients off.

    Args:
        model: the causal language model; it is put into evaluation mode and its parameters stop
            requiring gradients.
        tokenizer: its Hugging Face tokenizer.
        name: what tables and cache folders call it (default: the name it was loaded from).

    Attributes:
        d_model: width of the residual stream.
        n_layers, layers, layers_path: the decoder layers, and where `model` keeps them.
        eos_id: end-of-text token, None where there is none.
        bos_id: token put before every context: the model's BOS, else its EOS, else None.
        bos_kind: which of the three it is.
        pad_id: fills the positions that a mask hides (pad, else EOS, else 0).
        special_ids: every token that stands for no text; these positions are left out of training
            and of all metrics.
        spec: what `load` was given, made absolute; None for a module object.

    Raises:
        InputError: the decoder layers cannot be found.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, name: str | None = None) -> None:
        self.model = cast(Any, model.eval().requires_grad_(False))
        self.tokenizer = tokenizer
        config = self.model.config.get_text_config(decoder=True)
        self.name: str = name or self.model.config.name_or_path or type(model).__name__
        self.spec: str | None = None
        self.d_model: int = config.hidden_size
        self.layers_path, self.layers = _decoder_layers(model, config.num_hidden_layers)
        self.n_layers: int = len(self.layers)

        self.eos_id: int | None = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.bos_kind: Literal["bos", "eos", "none"] = "bos"
        if self.bos_id is None:
            self.bos_id, self.bos_kind = self.eos_id, "none" if self.eos_id is None else "eos"
        choices = (tokenizer.pad_token_id, self.eos_id, 0)
        self.pad_id: int = next(choice for choice in choices if choice is not None)
        added = tokenizer.added_tokens_decoder.items()
        self.special_ids: frozenset[int] = frozenset(tokenizer.all_special_ids).union(
            index for index, token in added if token.special
        )

    @classmethod
    def load(
        cls,
        spec: str | Path,
        *,
        dtype: str = "float32",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> "LanguageModel":
        """The model and tokenizer that `spec` names. Nothing is unpickled: weights are safetensors
        or GGUF.

        Args:
            spec: "smollm2" (the default model), a name on the Hugging Face hub, a local folder, or
                a `.gguf` file.
            dtype: "float32", "bfloat16" or "float16".
            device: default: the accelerator of this machine, else the CPU.
            trust_remote_code: whether Python code that comes with the model may run.

        Raises:
            InputError: the dtype, device or model does not exist, the model is not a causal
                language model, has no weights in a safe format, or needs code that is not trusted.
        """
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        target = default_device(device)
        spec, name, where = _locate(spec)
        options = {**where, "trust_remote_code": trust_remote_code}
        with _quiet():
            from safetensors import SafetensorError
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

            # Dense weights of the dtype asked for, never kernels that compute on packed ones.
            dense = {"quantization_config": GgufConfig(dequantize=True)}
            try:
                config = AutoConfig.from_pretrained(**options)
                _require_causal(config, spec)
                tokenizer = AutoTokenizer.from_pretrained(**options)
                model, loaded = AutoModelForCausalLM.from_pretrained(
                    **options,
                    **(dense if "gguf_file" in where else {}),
                    config=config,
                    dtype=DTYPES[dtype],
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except InputError:
                raise
            except (*_LOAD_ERRORS, SafetensorError) as error:
                raise InputError(_explain(spec, error)) from error
        if missing := sorted(loaded["missing_keys"]):
            raise InputError(
                f"model {spec!r}: not a complete causal language model: "
                f"{len(missing)} weights are missing, among them {missing[0]}"
            )
        self = cls(model.to(target), tokenizer, name=name)
        self.spec = spec
        return self

    @property
    def device(self) -> torch.device:
        """Where the model takes its tokens."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of the activations."""
        return self.model.get_input_embeddings().weight.dtype

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as plain text: no special token is added, and a text that spells
        one (such as "<|im_end|>") gives the tokens of these characters, not the special token."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        return encoded["input_ids"]

    def logits(
        self, ids: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """One forward pass. Positions are counted over the True entries of `mask`, so that padding
        on either side leaves the values at real positions as they are without padding; values at
        padded positions mean nothing."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return self.model(**inputs).logits

    @cached_property
    def _takes_positions(self) -> bool:
        """Models without learned or rotary positions (ALiBi) have no such argument."""
        return "position_ids" in inspect.signature(self.model.forward).parameters

    def fingerprint(self) -> str:
        """Hash (xxh3, 128 bits) of all that decides activations: weights and their dtype,
        configuration, tokenizer. The same model under another path has the same fingerprint."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        state = xxhash.xxh3_128()
        for part in (_computing(self.model.config.to_dict()), self._tokenizer_definition()):
            state.update(json.dumps(part, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            state.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return state.hexdigest()

    def _tokenizer_definition(self) -> list[Any]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        definition = json.loads(backend.to_str()) if backend else self.tokenizer.get_vocab()
        for setting in ("truncation", "padding"):  # of the last call, not of the tokenizer
            definition.pop(setting, None)
        return [definition, self.bos_id, self.eos_id, sorted(self.special_ids)]

    def record(self) -> dict[str, Any]:
        """JSON-ready description for the records of caches and runs."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "spec": self.spec,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "bos_kind": self.bos_kind,
            "fingerprint": self.fingerprint(),
        }


def _decoder_layers(model: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """The outermost list of `n_layers` modules, which are the decoder layers in every causal
    language model of the library (a list of experts of that length lies deeper)."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of {n_layers} decoder layers")
    return min(lists, key=lambda item: item[0].count("."))


def _locate(spec: str | Path) -> tuple[str, str, dict[str, str]]:
    """Canonical form of `spec`, the model's name, and where the library finds it."""
    path = Path(spec).expanduser()
    if spec == DEFAULT_MODEL:
        folder = default_model_folder(_convert)
        return DEFAULT_MODEL, DEFAULT_MODEL, {"pretrained_model_name_or_path": str(folder)}
    if path.is_file() and path.suffix == ".gguf":
        return str(path.resolve()), path.stem, _gguf(path.resolve())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model folder {str(path)!r} has no config.json")
        folder = path.resolve()
        return str(folder), folder.name, {"pretrained_model_name_or_path": str(folder)}
    is_name = isinstance(spec, str) and spec.count("/") <= 1 and spec[:1] not in ("", ".", "/", "~")
    if path.is_file() or path.suffix == ".gguf" or not is_name:
        state = "is neither a folder nor a .gguf file" if path.is_file() else "does not exist"
        raise InputError(f"model path {str(spec)!r} {state}")
    return str(spec), str(spec), {"pretrained_model_name_or_path": str(spec)}


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the model of a GGUF file as safetensors, in float32."""
    lm = LanguageModel.load(gguf, device="cpu")
    with _quiet():
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)


def _gguf(file: Path) -> dict[str, str]:
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def _require_causal(config: Any, spec: str) -> None:
    """A masked or encoder-decoder model also loads as a causal one, and gives nonsense."""
    names = config.architectures or []
    if config.is_encoder_decoder or any(name.endswith("ForMaskedLM") for name in names):
        kind = ", ".join(names) or config.model_type
        raise InputError(f"model {spec!r} is not a causal language model ({kind})")


def _explain(spec: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            f"model {spec!r} comes with Python code of its own; "
            "read it, then allow it with trust_remote_code=True"
        )
    if "Unrecognized configuration class" in text:
        return f"model {spec!r} is not a causal language model that transformers knows"
    if "model.safetensors" in text:
        return f"model {spec!r} has no safetensors weights; other formats are not loaded"
    return f"model {spec!r} cannot be loaded: {text[:300]}"


def _computing(config: Any) -> Any:
    """`config` without the fields that say where it came from."""
    if not isinstance(config, dict):
        return config
    return {
        key: _computing(value)
        for key, value in config.items()
        if key not in _PROVENANCE and not str(key).startswith("_")
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and remarks of the libraries go to terminals only."""
    if sys.stderr.isatty():
        yield
        return
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
