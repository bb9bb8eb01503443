"""The contract of `SparseAutoencoder`, for every architecture of the registry."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.activations import BatchTopK, JumpReLU, LogThreshold, RawThreshold, TopK
from sae_bench.decoders import FreeRows, UnitRows
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE, ExactJump, PersistentBandwidth, WindowKDE
from sae_bench.kernels import Gaussian, Rectangle, Triangle
from sae_bench.loading import load_sae
from sae_bench.penalties import L0, L1, RIL1, NoPenalty, QuadraticFrequency, Tanh, TargetL0
from sae_bench.sae import SparseAutoencoder, squared_error
from tests.small import ARCHITECTURES, BATCH, D_IN, D_SAE, small_batch, small_sae, small_slots

each = pytest.mark.parametrize("cls", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


def bits(sae: SparseAutoencoder) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in sae.state_dict().items()}


def test_the_registry_has_architectures_to_test() -> None:
    assert {"ReLUSAE", "TopKSAE", "GatedSAE", "JumpReLUSAE"} <= ARCHITECTURES.keys()


@each
def test_shapes_and_agreement_of_the_methods(cls: type[SparseAutoencoder]) -> None:
    sae, x = small_sae(cls), small_batch()
    f = sae.encode(x)
    assert f.shape == (BATCH, D_SAE)
    assert (f >= 0).all()
    assert 0 < (f > 0).sum() < f.numel()
    assert sae.decode(f).shape == (BATCH, D_IN)
    assert torch.equal(sae(x), sae.decode(f))
    loss = sae.loss(x)
    assert torch.equal(loss.latents.f, f)
    assert ((loss.latents.step == 1) | ((loss.latents.step == 0) & (f == 0))).all()
    assert torch.equal(loss.reconstruction, sae(x))
    assert loss.terms["reconstruction"].item() == pytest.approx(
        sum(((row - sae(x)[i]) ** 2).sum().item() for i, row in enumerate(x)) / BATCH, rel=1e-5
    )
    assert loss.total.item() == pytest.approx(sum(t.item() for t in loss.terms.values()), rel=1e-6)


@each
def test_one_token_at_a_time_gives_the_same(cls: type[SparseAutoencoder]) -> None:
    sae, x = small_sae(cls).eval(), small_batch()
    alone = torch.cat([sae.encode(row[None]) for row in x])
    torch.testing.assert_close(alone, sae.encode(x))


@each
def test_folding_holds_in_evaluation_mode(cls: type[SparseAutoencoder]) -> None:
    sae, x = small_sae(cls).double(), small_batch().double()
    for seed in (1, 2):  # a threshold observed once is a pre-activation, up to round-off
        sae.observe(sae.loss(small_batch(seed).double()).latents)
    folded = copy.deepcopy(sae.eval()).fold_(7.0)
    torch.testing.assert_close(folded.encode(7.0 * x), 7.0 * sae.encode(x))
    torch.testing.assert_close(folded(7.0 * x), 7.0 * sae(x))


@each
def test_decode_is_affine_in_the_codes(cls: type[SparseAutoencoder]) -> None:
    sae, f = small_sae(cls).double(), small_sae(cls).encode(small_batch()).double()
    zero = sae.decode(torch.zeros_like(f))
    torch.testing.assert_close(sae.decode(3 * f) - zero, 3 * (sae.decode(f) - zero))


@each
def test_loss_is_pure(cls: type[SparseAutoencoder]) -> None:
    sae, x = small_sae(cls).train(), small_batch()
    before, random = bits(sae), torch.get_rng_state()
    totals = []
    for _ in range(2):
        loss = sae.loss(x)
        loss.total.backward()
        totals.append(loss.total.item())
    assert totals[0] == totals[1]
    assert bits(sae) == before
    assert torch.equal(torch.get_rng_state(), random)


@each
def test_only_the_penalty_follows_the_sparsity_scale(cls: type[SparseAutoencoder]) -> None:
    sae, x = small_sae(cls), small_batch()
    full, half = sae.loss(x).terms, sae.loss(x, sparsity_scale=0.5).terms
    assert full.keys() == half.keys()
    for name in full:
        factor = 0.5 if name == "sparsity" else 1.0
        assert half[name].item() == pytest.approx(factor * full[name].item())


@each
def test_every_parameter_gets_a_finite_gradient(cls: type[SparseAutoencoder]) -> None:
    sae = small_sae(cls)
    sae.loss(small_batch()).total.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@each
def test_observe_moves_counters_alone(cls: type[SparseAutoencoder]) -> None:
    sae, x = small_sae(cls), small_batch()
    loss, before = sae.loss(x), bits(sae)
    fired = (loss.latents.f > 0).any(0)
    for times in (1, 2):
        sae.observe(loss.latents)
        assert sae.silent_tokens.tolist() == [0 if on else times * BATCH for on in fired]
    parameters = {name for name, _ in sae.named_parameters()}
    assert all(bits(sae)[name] == before[name] for name in parameters)


@each
@pytest.mark.parametrize("s", [0.03, 7.0])
def test_folding_turns_it_into_the_sae_of_scaled_activations(
    cls: type[SparseAutoencoder], s: float
) -> None:
    sae, folded = small_sae(cls).double(), small_sae(cls).double()
    x = small_batch().double()
    assert folded.fold_(s) is folded
    torch.testing.assert_close(folded.encode(s * x), s * sae.encode(x))
    torch.testing.assert_close(folded(s * x), s * sae(x))
    assert torch.equal(folded.W_dec, sae.W_dec)
    for scale in (0.3, 1.0):
        after, before = folded.loss(s * x, scale).terms, sae.loss(x, scale).terms
        for name in before:
            torch.testing.assert_close(after[name], s**2 * before[name])
    if sae.threshold is None:
        assert folded.threshold is None
    else:
        torch.testing.assert_close(folded.threshold, s * sae.threshold)


@each
def test_folding_scales_the_gradients_as_well(cls: type[SparseAutoencoder]) -> None:
    """d loss(s x) / d W = s^2 d loss(x) / d W: kernels and coefficients follow the thresholds."""
    sae, folded = small_sae(cls).double(), small_sae(cls).double().fold_(5.0)
    x = small_batch().double()
    sae.loss(x).total.backward()
    folded.loss(5.0 * x).total.backward()
    torch.testing.assert_close(folded.W_enc.grad, 25 * sae.W_enc.grad)
    for ours, reference in zip(
        folded.threshold_parameters, sae.threshold_parameters, strict=True
    ):  # a log threshold; a raw one would gain only one factor
        torch.testing.assert_close(ours.grad, 25 * reference.grad)


@pytest.mark.parametrize(
    "slots",
    [
        {"penalty": Tanh(0.3, c=2.0)},
        {"penalty": RIL1(0.3), "decoder": FreeRows(0.5)},
        {"penalty": TargetL0(0.3, target=3.0), "activation": JumpReLU(RawThreshold(0.2))},
        {"penalty": QuadraticFrequency(0.3), "activation": JumpReLU(LogThreshold(0.2))},
    ],
    ids=lambda slots: type(slots["penalty"]).__name__,
)
def test_folding_with_other_slots(slots: dict[str, Any]) -> None:
    sae, folded = (
        small_sae(SparseAutoencoder, **slots, kernel=Triangle(0.4)).double() for _ in range(2)
    )
    x = small_batch().double()
    folded.fold_(3.0)
    torch.testing.assert_close(folded.loss(3 * x).total, 9 * sae.loss(x).total)
    assert folded.kernel == BatchKDE(Triangle(0.4 * 3.0))


@pytest.mark.parametrize("s", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_is_a_positive_number(s: float) -> None:
    with pytest.raises(InputError, match="the activation scale must be a positive number"):
        SparseAutoencoder(D_IN, D_SAE).fold_(s)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saving_and_loading_is_bit_exact(
    cls: type[SparseAutoencoder], dtype: torch.dtype, tmp_path: Path
) -> None:
    sae, x = small_sae(cls, seed=3).to(dtype), small_batch().to(dtype)
    sae.observe(sae.loss(x).latents)
    sae.provenance = {"remark": [1, None]}
    sae.save(tmp_path / "new" / "folder")
    loaded = load_sae(tmp_path / "new" / "folder")
    assert type(loaded) is cls
    assert bits(loaded) == bits(sae)
    assert loaded.slots == sae.slots
    assert loaded.provenance == sae.provenance
    assert (loaded.d_in, loaded.d_sae, loaded.seed) == (D_IN, D_SAE, 3)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(x), sae.eval()(x))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "sae.safetensors",
    ]


def test_slots_survive_saving_a_folded_sae(tmp_path: Path) -> None:
    sae = small_sae(
        SparseAutoencoder,
        activation=JumpReLU(RawThreshold(0.1)),
        penalty=QuadraticFrequency(0.3, w=0.01),
        kernel=BatchKDE(Gaussian(0.2), to_input=True),
        decoder=FreeRows(0.3),
    ).fold_(3.7)
    sae.save(tmp_path)
    assert load_sae(tmp_path).slots == sae.slots


def test_a_seed_gives_one_decoder_to_all_architectures() -> None:
    saes = [cls(D_IN, D_SAE, seed=5, **small_slots(cls)) for cls in ARCHITECTURES.values()]
    unit = [sae for sae in saes if sae.decoder == UnitRows()]
    assert len(unit) >= 4
    for sae in unit:
        assert torch.equal(sae.W_dec, unit[0].W_dec)
        assert torch.equal(sae.W_enc, sae.W_dec.T)
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
        assert all(not getattr(sae, name).any() for name in sae.biases)
    other = type(unit[0])(D_IN, D_SAE, seed=6, **small_slots(type(unit[0])))
    assert not torch.equal(other.W_dec, unit[0].W_dec)


@each
def test_building_draws_from_no_global_generator(cls: type[SparseAutoencoder]) -> None:
    random = torch.get_rng_state()
    first = cls(D_IN, D_SAE, seed=1, **small_slots(cls))
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(123)
    assert bits(cls(D_IN, D_SAE, seed=1, **small_slots(cls))) == bits(first)


@each
def test_float64(cls: type[SparseAutoencoder]) -> None:
    single, double, x = small_sae(cls), small_sae(cls).double(), small_batch()
    loss = double.loss(x.double())
    loss.total.backward()
    assert loss.total.dtype == torch.float64
    assert all(parameter.grad.dtype == torch.float64 for parameter in double.parameters())
    assert loss.total.item() == pytest.approx(single.loss(x).total.item(), rel=1e-5)


@each
def test_autocast_to_bfloat16(cls: type[SparseAutoencoder]) -> None:
    """Matrix products round; parameters, thresholds, codes and losses stay in float32."""
    sae, x = small_sae(cls), small_batch()
    exact = sae.loss(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sae.loss(x)
    rounded.total.backward()
    assert rounded.total.dtype == torch.float32
    assert {part.dtype for part in rounded.latents} == {torch.float32}
    assert rounded.reconstruction.dtype == torch.float32
    assert not torch.equal(rounded.reconstruction, exact.reconstruction)
    assert rounded.total.item() == pytest.approx(exact.total.item(), rel=0.1)
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@given(st.integers(0, 1_000))
def test_affine_subtracts_the_decoder_bias_first(seed: int) -> None:
    sae, x = small_sae(SparseAutoencoder, seed).double(), small_batch(seed).double()
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(D_IN, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(sae.affine(x, W, b), (x - sae.b_dec) @ W + b)


def test_the_gradient_of_the_decoder_bias_through_the_encoder() -> None:
    sae, x = small_sae(SparseAutoencoder).double(), small_batch().double()
    pre = sae.affine(x, sae.W_enc, sae.b_enc)
    (ours,) = torch.autograd.grad(pre.square().sum(), sae.b_dec)
    plain = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    (reference,) = torch.autograd.grad(plain.square().sum(), sae.b_dec)
    torch.testing.assert_close(ours, reference)


@each
def test_constraints_hold_after_a_step(cls: type[SparseAutoencoder]) -> None:
    sae = small_sae(cls)
    sae.loss(small_batch()).total.backward()
    sae.project_gradients_()
    assert sae.W_dec.grad is not None
    if sae.decoder == UnitRows():
        assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    torch.optim.SGD(sae.parameters(), lr=1.0).step()
    sae.project_parameters_()
    if sae.decoder == UnitRows():
        assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_squared_error_sums_over_dimensions_and_averages_over_tokens() -> None:
    x, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert squared_error(x, y).item() == (1 + 4 + 9) / 2


# -- slots ----------------------------------------------------------------------------------------


def test_a_kernel_or_an_estimator_fills_the_kernel_slot() -> None:
    bare = SparseAutoencoder(D_IN, D_SAE, kernel=Gaussian(0.3))
    assert bare.kernel == BatchKDE(Gaussian(0.3))
    estimator = BatchKDE(Rectangle(0.1), to_input=True)
    sae = SparseAutoencoder(D_IN, D_SAE, activation=JumpReLU(), kernel=estimator)
    assert sae.kernel is estimator
    assert f"d_sae={D_SAE}, activation=JumpReLU(LogThreshold(0.001)), penalty=L1(0.01)" in repr(sae)


def test_any_slot_can_be_swapped_and_the_class_stays_as_it_was() -> None:
    sae = SparseAutoencoder(
        D_IN,
        D_SAE,
        activation=JumpReLU(LogThreshold(0.25)),
        penalty=RIL1(0.5),
        decoder=FreeRows(2.0),
    )
    assert sae.threshold is not None
    assert torch.allclose(sae.threshold, torch.full((D_SAE,), 0.25))
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.full((D_SAE,), 2.0))
    assert sae.slots["penalty"] == RIL1(0.5)
    assert SparseAutoencoder.penalty == L1(1e-2)
    assert SparseAutoencoder(D_IN, D_SAE).threshold is None


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ({"penalty": L0(1.0)}, "ReLU has no threshold: .* needs an estimator with to_input=True"),
        ({"activation": TopK(3), "penalty": L0(1.0)}, "TopK fixes L0 by construction"),
        ({"activation": TopK(3), "penalty": TargetL0(1.0)}, "TopK fixes L0 by construction"),
        (
            {"kernel": BatchKDE(to_input=True)},
            "ReLU has no threshold: to_input=True changes nothing",
        ),
        ({"kernel": WindowKDE()}, "ReLU trains no threshold: state and exact-jump coefficients"),
        ({"kernel": BatchKDE(coefficient=ExactJump())}, "ReLU trains no threshold"),
        (
            {"penalty": L0(1.0), "kernel": PersistentBandwidth(BatchKDE(to_input=True))},
            "ReLU trains no threshold",
        ),
        (
            {"activation": TopK(3), "kernel": BatchKDE(to_input=True)},
            "TopK has no pseudo-derivative",
        ),
        ({"activation": BatchTopK(3), "kernel": WindowKDE()}, "BatchTopK trains no threshold"),
        ({"decoder": FreeRows()}, "L1 charges codes, whatever the norms.*: with FreeRows use RIL1"),
    ],
)
def test_combinations_without_meaning_say_why(slots: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"^SparseAutoencoder: {reason}"):
        SparseAutoencoder(D_IN, D_SAE, **slots)


def test_combinations_with_meaning_are_made() -> None:
    to_input = BatchKDE(Rectangle(0.1), to_input=True)
    SparseAutoencoder(D_IN, D_SAE, penalty=L0(1.0), kernel=to_input)
    SparseAutoencoder(D_IN, D_SAE, penalty=L1(1.0), activation=TopK(3))
    SparseAutoencoder(D_IN, D_SAE, penalty=NoPenalty(), activation=TopK(3))
    SparseAutoencoder(D_IN, D_SAE, penalty=L0(1.0), activation=JumpReLU())


@pytest.mark.parametrize(("d_in", "d_sae"), [(0, 4), (4, 0), (-1, 4)])
def test_widths_are_positive(d_in: int, d_sae: int) -> None:
    with pytest.raises(InputError, match=f"must be positive.* got {d_in} and {d_sae}"):
        SparseAutoencoder(d_in, d_sae)
