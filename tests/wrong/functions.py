"""Wrong arguments of public functions, and the words that refuse each."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sae_bench as sb
from architectures import JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench import ActivationCache, Arm, Recipe, Released, grid
from sae_bench.activations import JumpReLU, LogThreshold, TopK
from sae_bench.contexts import Packed, PerDocument
from sae_bench.estimators import WindowKDE
from sae_bench.kernels import Rectangle
from sae_bench.noise import gradient_noise, standard
from sae_bench.penalties import L0, L1
from sae_bench.synthetic import SyntheticFeatures
from tests.corpus import Letters
from tests.tiny import tiny_model
from tests.wrong.desk import SITE, kept

NAN, INF, HUGE = math.nan, math.inf, 2**70
X = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
LM = tiny_model("llama")
RECIPE = Recipe(tokens=640, batch_size=64, lr=1e-3, lr_warmup=1, penalty_warmup=1)
FEATURES = SyntheticFeatures(4, 8, 2.0)


def arms(cls: type = ReLUSAE, **changes: Any) -> list[Arm]:
    return grid(cls, **{"d_sae": 8, "recipe": RECIPE, **changes})


def topk(**changes: Any) -> list[Arm]:
    return arms(TopKSAE, activation=TopK(2), **changes)


def cache(d_in: int = 4, rows: int = 256, **options: Any) -> ActivationCache:
    generator = torch.Generator().manual_seed(0)
    return ActivationCache.from_tensor(torch.randn(rows, d_in, generator=generator), **options)


def stored() -> ActivationCache:
    """A cache on disk, whose model is there, too."""
    return ActivationCache.open(kept(), device="cpu")


def tensor(x: Any = X, **options: Any) -> Any:
    return ActivationCache.from_tensor(x, **options)


def build(**changes: Any) -> Any:
    given = {"model": LM, "sites": [SITE], "text": Letters(), "tokens": 100, "context": Packed(24)}
    return ActivationCache.build(**{**given, **changes})  # type: ignore[arg-type]


def stream(**changes: Any) -> Any:
    given = {"model": LM, "site": SITE, "text": Letters(), "tokens_in_buffer": 64}
    return sb.ActivationStream(**{**given, **changes})  # type: ignore[arg-type]


def run(*given: Any, **options: Any) -> Any:
    return sb.run(*(given or (arms(), cache())), **{"out": "new", "device": "cpu", **options})


def calibrate(*given: Any, **options: Any) -> Any:
    return sb.calibrate(*(given or (arms(), cache(), [4])), **{"device": "cpu", **options})


def evaluate(*given: Any, **options: Any) -> Any:
    return sb.evaluate(*(given or (ReLUSAE(4, 8), cache())), **options)


def noise(**changes: Any) -> Any:
    given: dict[str, Any] = {"batch_size": 8, "block": 4, "device": "cpu", **changes}
    return gradient_noise(JumpReLUSAE(4, 8), cache(), standard(Rectangle(0.1), 2), **given)


def not_finite() -> ReLUSAE:
    sae = ReLUSAE(4, 8)
    sae.W_dec.data[0, 0] = NAN
    return sae


Row = tuple[str, Callable[[], object]]
FUNCTIONS: list[Row] = [
    # words of the line that refuses it, and the call
    ("needs a subclass of SparseAutoencoder, got 'ReLU'", lambda: arms("ReLU")),  # type: ignore[arg-type]
    ("needs a subclass of SparseAutoencoder", lambda: arms(ReLUSAE(4, 8))),  # type: ignore[arg-type]
    ("recipe: expected a Recipe, got None", lambda: arms(recipe=None)),
    ("d_sae is missing", lambda: grid(ReLUSAE, recipe=RECIPE)),
    ("d_sae: expected an integer, got True", lambda: arms(d_sae=True)),
    ("d_sae: expected an integer, got 8.0", lambda: arms(d_sae=8.0)),
    ("d_sae: expected an integer, got '8'", lambda: arms(d_sae="8")),
    ("d_sae must be a positive integer, got -1", lambda: arms(d_sae=-1)),
    ("seed: expected an integer, got True", lambda: arms(seed=True)),
    ("seed: expected an integer, got None", lambda: arms(seed=None)),
    ("seed: expected an integer, got nan", lambda: arms(seed=NAN)),
    ("seed: expected an integer, got {0, 1}", lambda: arms(seed={0, 1})),
    ("seed is an integer of 64 bits", lambda: arms(seed=HUGE)),
    ("no value given for seed", lambda: arms(seed=[])),
    ("unknown argument 'penalti'", lambda: arms(penalti=L1(0.1))),
    ("penalty: expected a Penalty, got 0.1", lambda: arms(penalty=0.1)),
    ("got the class L1 (write L1(...))", lambda: arms(penalty=L1)),
    ("penalty: expected a Penalty, got [L1", lambda: arms(penalty=[[L1(0.1)]])),
    ("slots: expected a Mapping, got [1]", lambda: Arm(ReLUSAE, 8, RECIPE, slots=[1])),  # type: ignore[arg-type]
    ("k = 2 is larger than d_sae = 1", lambda: topk(d_sae=1)),
    ("Recipe.tokens: expected an integer, got '640'", lambda: Recipe("640")),  # type: ignore[arg-type]
    ("Recipe.tokens: expected an integer, got 640.0", lambda: Recipe(640.0)),  # type: ignore[arg-type]
    ("is fewer than one batch", lambda: Recipe(0)),
    ("batch_size must be positive", lambda: RECIPE.replace(batch_size=0)),
    ("lr must be a positive number, got nan", lambda: RECIPE.replace(lr=NAN)),
    ("Recipe.lr: expected a number, got True", lambda: RECIPE.replace(lr=True)),
    ("betas must be two numbers in [0, 1)", lambda: RECIPE.replace(betas=(NAN, 0.9))),
    ("betas: expected a tuple", lambda: RECIPE.replace(betas=0.9)),
    ("lr_warmup: expected an integer", lambda: RECIPE.replace(lr_warmup=0.5)),
    ("data_seed must be an integer >= 0", lambda: RECIPE.replace(data_seed=-1)),
    ("data_seed must be an integer >= 0", lambda: RECIPE.replace(data_seed=HUGE)),
    ("coefficient must be a number >= 0, got nan", lambda: L1(NAN)),
    ("bandwidth must be positive, got inf", lambda: Rectangle(INF)),
    ("start must be a positive number", lambda: LogThreshold(0.0)),
    ("k must be positive", lambda: TopK(0)),
    ("steps must be at least 1", lambda: WindowKDE(Rectangle(0.1), steps=0)),
    ("d_in and d_sae must be positive", lambda: ReLUSAE(0, 8)),
    ("seed is an integer of 64 bits", lambda: ReLUSAE(4, 8, seed=-HUGE)),
    ("of shape (batch, 4), a tensor of floats", lambda: ReLUSAE(4, 8).encode(torch.ones(3, 5))),
    ("got (3, 4) of torch.int64", lambda: ReLUSAE(4, 8).encode(torch.ones(3, 4).long())),
    ("got a ndarray", lambda: ReLUSAE(4, 8).encode(np.ones((3, 4)))),  # type: ignore[arg-type]
    ("s: expected a number, got 'a'", lambda: ReLUSAE(4, 8).fold_("a")),  # type: ignore[arg-type]
    ("must be a torch.Tensor, got list", lambda: tensor([[1.0]])),
    ("must be a torch.Tensor, got ndarray", lambda: tensor(np.ones((4, 4)))),
    ("must be floats (tokens, d_in), got (8,)", lambda: tensor(torch.ones(8))),
    ("got (8, 2) of torch.int64", lambda: tensor(torch.ones(8, 2).long())),
    ("got (8, 2) of torch.complex64", lambda: tensor(torch.ones(8, 2).to(torch.complex64))),
    ("must be a dense tensor with values", lambda: tensor(X.to_sparse())),
    ("must be a dense tensor with values", lambda: tensor(X.to("meta"))),
    ("leaves a side without rows", lambda: tensor(X[:0])),
    ("leaves a side without rows", lambda: tensor(X[:1])),
    ("must be finite and not all zero", lambda: tensor(torch.ones(8, 0))),
    ("must be finite and not all zero", lambda: tensor(torch.full((8, 2), NAN))),
    ("must be finite and not all zero", lambda: tensor(torch.full((8, 2), -INF))),
    ("must be finite and not all zero", lambda: tensor(torch.zeros(8, 2))),
    ("must be finite and not all zero", lambda: tensor(torch.cat([X, NAN * X[:30]]))),
    ("held_out = nan", lambda: tensor(held_out=NAN)),
    ("held_out = 50", lambda: tensor(held_out=50)),
    ("held_out: expected a number, got '0.1'", lambda: tensor(held_out="0.1")),
    ("held_out: expected a number, got None", lambda: tensor(held_out=None)),
    ("name: expected text, got 3", lambda: tensor(name=3)),
    ("nowhere/train: no activation cache here", lambda: ActivationCache.open("nowhere")),
    ("folder: expected text or a Path, got 3", lambda: ActivationCache.open(3)),  # type: ignore[arg-type]
    ("is one side of a cache", lambda: ActivationCache.open(kept() / "train")),
    ("placement: expected a type or None", lambda: cache().placed("cpu", "disk")),  # type: ignore[arg-type]
    ("seed of the order must not be negative", lambda: cache().batches(4, -1)),
    ("tokens, shard_tokens and batch_tokens must be positive", lambda: build(tokens=0)),
    ("tokens: expected an integer, got '100'", lambda: build(tokens="100")),
    ("tokens: expected an integer, got nan", lambda: build(tokens=NAN)),
    ("tokens: expected an integer, got True", lambda: build(tokens=True)),
    ("GB are free on that disk", lambda: build(tokens=10**18)),
    ("held_out_tokens: expected an integer or None", lambda: build(held_out_tokens="1")),
    ("sites must be a list of one or more names", lambda: build(sites=SITE)),
    ("sites must be a list of one or more names, got [3]", lambda: build(sites=[3])),
    ("unknown site ''", lambda: build(sites=[""])),
    ("the model has layers 0..2", lambda: build(sites=["layers.-1.resid_post"])),
    ("text: expected text or a Path or a Text, got None", lambda: build(text=None)),
    ("got ['a', 'b']", lambda: build(text=["a", "b"])),
    ("got the class Letters (write Letters(...))", lambda: build(text=Letters)),
    ("model: expected text or a Path or a LanguageModel", lambda: build(model=None)),
    ("got LlamaForCausalLM(", lambda: build(model=LM.model)),
    ("context: expected a ContextPolicy, got 24", lambda: build(context=24)),
    ("got the class Packed (write Packed(...))", lambda: build(context=Packed)),
    ("dtype 'int8' is unknown", lambda: build(dtype="int8")),
    ("dtype: expected text, got torch.float32", lambda: build(dtype=torch.float32)),
    ("batch_tokens: expected an integer, got 16.5", lambda: build(batch_tokens=16.5)),
    ("Not a directory; set SAE_BENCH_CACHE", lambda: build(root=Path("text.jsonl"))),
    ("device: expected text or a device or None, got 5", lambda: build(device=5)),
    ("tokens_in_buffer must be at least 2", lambda: stream(tokens_in_buffer=1)),
    ("tokens_in_buffer: expected an integer", lambda: stream(tokens_in_buffer=1e3)),
    ("batch_tokens: expected an integer", lambda: stream(batch_tokens=8.5)),
    ("site: expected text, got ['layers", lambda: stream(site=[SITE])),
    ("context: expected a ContextPolicy", lambda: stream(context=3)),
    ("held_out: expected an ActivationCache or None", lambda: stream(held_out=X)),
    ("held_out has activations of width 4", lambda: stream(held_out=cache())),
    ("no arms were given", lambda: run([], cache())),
    ("must be Arm objects, got a str", lambda: run("arms", cache())),
    ("must be Arm objects, got a Recipe", lambda: run([RECIPE], cache())),
    ("the same arm is given twice", lambda: run(arms() * 2, cache())),
    ("must be one source of activations, got Tensor", lambda: run(arms(), X)),
    ("fewer tokens than one batch of 64", lambda: run(arms(), cache(rows=32))),
    ("no held-out split", lambda: run(arms(), cache(held_out=0.0))),
    ("has width 5, the training activations have 4", lambda: run(arms(), cache(), cache(5))),
    ("or caches by name, got a list", lambda: run(arms(), cache(), [cache()])),
    ("sets are named by text, got 3", lambda: run(arms(), cache(), {3: cache()})),
    ("sets are named by text, got ''", lambda: run(arms(), cache(), {"": cache()})),
    ("got an ActivationStream", lambda: run(arms(), cache(), stream())),
    ("reads activations of width 32", lambda: run([Released("relu")], cache())),
    ("exists and is not a run folder", lambda: run(out="text.jsonl")),
    ("cannot be written (Not a directory)", lambda: run(out="text.jsonl/x")),
    ("exists and is not a run folder", lambda: run(out=kept())),
    ("out: expected text or a Path, got None", lambda: run(out=None)),
    ("cannot be used (embedded null byte)", lambda: run(out="a\0b")),
    ("cannot be used (File name too long)", lambda: run(out="a" * 300)),
    ("device 'nonsense' cannot be used here", lambda: run(device="nonsense")),
    ("lm_tokens must not be negative", lambda: run(lm_tokens=-1)),
    ("lm_tokens: expected an integer, got 1.5", lambda: run(lm_tokens=1.5)),
    ("checkpoints must not be negative, got nan", lambda: run(checkpoint_every=NAN)),
    ("checkpoint_every: expected a number", lambda: run(checkpoint_every="10")),
    ("checkpoint_every: expected a number", lambda: run(checkpoint_every=None)),
    ("language_model: expected a LanguageModel", lambda: run(language_model="smollm2")),
    (
        "is not the model that evaluation set 'held-out' comes from",
        lambda: run(arms(), stored(), language_model=tiny_model("gpt2")),
    ),
    ("data: expected a Component or None", lambda: run(data={"a": 1})),
    ("no arms were given", lambda: calibrate([], cache(), [4])),
    ("must be a list of arms, got an Arm", lambda: calibrate(arms()[0], cache(), [4])),
    ("must be Arm objects, got a Released", lambda: calibrate([Released("relu")], cache(), [4])),
    ("at most d_sae = 8", lambda: calibrate(arms(), cache(), [0])),
    ("at most d_sae = 8", lambda: calibrate(arms(), cache(), [NAN])),
    ("at most d_sae = 8", lambda: calibrate(arms(), cache(), [4, 9])),
    ("at most d_sae = 8", lambda: calibrate(topk(), cache(), [INF])),
    ("must be a list of positive numbers, got 4", lambda: calibrate(arms(), cache(), 4)),
    ("must be a list of positive numbers, got '4'", lambda: calibrate(arms(), cache(), "4")),
    ("share must be in (0, 1]", lambda: calibrate(share=0)),
    ("share must be in (0, 1]", lambda: calibrate(share=NAN)),
    ("share: expected a number", lambda: calibrate(share="a")),
    ("rounds not negative", lambda: calibrate(rounds=-1)),
    ("rounds: expected an integer", lambda: calibrate(rounds=1.5)),
    ("tolerance a number of at least 1", lambda: calibrate(tolerance=0.5)),
    ("must be a source of activations, got a Tensor", lambda: calibrate(arms(), X, [4])),
    ("fewer tokens than one batch", lambda: calibrate(arms(), cache(rows=32), [4])),
    ("must be above 0", lambda: calibrate(arms(penalty=L1(0.0)), cache(), [4])),
    ("a penalty on L0 needs", lambda: calibrate(arms(penalty=L0(0.1)), cache(), [4])),
    ("no SAEs were given", lambda: evaluate([], cache())),
    ("takes SAEs, got a NoneType", lambda: evaluate(None, cache())),
    ("takes SAEs, got a str", lambda: evaluate("relu", cache())),
    ("takes SAEs, got a Released", lambda: evaluate([Released("relu")], cache(32))),
    ("or caches by name, got a Tensor", lambda: evaluate(ReLUSAE(4, 8), X)),
    (
        "set 'b' holds width 5",
        lambda: evaluate(ReLUSAE(4, 8), {"a": cache(), "b": cache(5)}),
    ),
    ("lm_tokens: expected an integer, got nan", lambda: evaluate(lm_tokens=NAN)),
    ("nowhere: no such file or folder", lambda: sb.load_sae("./nowhere")),
    ("path: expected text or a Path, got None", lambda: sb.load_sae(None)),  # type: ignore[arg-type]
    ("no SAE in a known format", lambda: sb.load_sae("text.jsonl")),
    ("no SAE in a known format", lambda: sb.load_sae(kept())),
    ("device 'nonsense' cannot be used", lambda: sb.load_sae("relu", "nonsense")),
    ("unknown format 'onnx'", lambda: sb.save_sae(ReLUSAE(4, 8), "new", "onnx")),
    ("format: expected text", lambda: sb.save_sae(ReLUSAE(4, 8), "new", None)),  # type: ignore[arg-type]
    ("sae: expected a SparseAutoencoder", lambda: sb.save_sae("relu", "new", "saelens")),  # type: ignore[arg-type]
    ("its W_dec is not finite", lambda: sb.save_sae(not_finite(), "new", "saelens")),
    ("cannot be written", lambda: sb.save_sae(ReLUSAE(4, 8), "text.jsonl", "sae-ablations")),
    ("cannot be written", lambda: ReLUSAE(4, 8).save("text.jsonl")),
    ("a name in .pt means a file", lambda: sb.save_sae(ReLUSAE(4, 8), "new.pt", "saelens")),
    ("sparsify has TopK SAEs only", lambda: sb.save_sae(ReLUSAE(4, 8), "new", "sparsify")),
    ("has no equal JumpReLU SAE", lambda: sb.to_gated(topk()[0].build(4))),
    ("sae: expected a SparseAutoencoder, got 'relu'", lambda: sb.to_gated("relu")),  # type: ignore[arg-type]
    ("sae: expected a SparseAutoencoder", lambda: sb.to_jumprelu(Path("relu"))),  # type: ignore[arg-type]
    ("nowhere: no such file or folder", lambda: Released("./nowhere")),
    ("path: expected text or a Path", lambda: Released(ReLUSAE(4, 8))),  # type: ignore[arg-type]
    ("name must be text, got ''", lambda: Released("relu", "")),
    ("SyntheticFeatures.d_in: expected an integer", lambda: SyntheticFeatures("4", 8, 2.0)),  # type: ignore[arg-type]
    ("mean_l0 must be above 0", lambda: SyntheticFeatures(4, 8, NAN)),
    ("decay and noise numbers", lambda: SyntheticFeatures(4, 8, 2.0, noise=INF)),
    ("decay and noise numbers", lambda: SyntheticFeatures(4, 8, 2.0, decay=NAN)),
    ("never fires; choose a smaller one", lambda: SyntheticFeatures(4, 8, 2.0, decay=1e5)),
    ("seed is an integer of 64 bits", lambda: SyntheticFeatures(4, 8, 2.0, seed=HUGE)),
    ("rows: expected an integer, got True", lambda: FEATURES.cache(True, 0)),
    ("seed: expected an integer, got 'a'", lambda: FEATURES.cache(100, "a")),  # type: ignore[arg-type]
    ("held_out a share in [0, 1)", lambda: FEATURES.cache(100, 0, held_out=NAN)),
    ("number of tokens must be positive", lambda: FEATURES.sample(-1, 0)),
    ("is no subclass of SparseAutoencoder", lambda: sb.check_architecture(ReLUSAE(4, 8))),  # type: ignore[arg-type]
    ("the class L1 (write L1(...)) is no Penalty", lambda: sb.check_penalty(L1)),
    ("3 is no Kernel object", lambda: sb.check_kernel(3)),
    ("is no Activation object", lambda: sb.check_activation(JumpReLU)),
    ("is no Estimator object", lambda: sb.check_estimator(Rectangle(0.1))),
    ("'unit' is no Decoder object", lambda: sb.check_decoder("unit")),
    ("batch_size: expected an integer", lambda: noise(batch_size="8")),
    ("half_width: expected a number or None", lambda: noise(half_width="a")),
    ("must be a whole number, at least 2", lambda: Packed(1)),
    ("must be a whole number, at least 3", lambda: PerDocument(2)),
    ("sae: expected a SparseAutoencoder or text", lambda: sb.push_to_hub(3, "a/b")),  # type: ignore[arg-type]
    ("is no repository's name", lambda: sb.push_to_hub("relu", "no name")),
    ("is no folder's name", lambda: sb.push_to_hub("relu", "a/b", path_in_repo="../x")),
    ("unknown format 'onnx'", lambda: sb.push_to_hub("relu", "a/b", format="onnx")),
]
