"""The conformance suite for architectures.

for name, check in ARCHITECTURE.named(MySAE):
    check()
"""

import copy
import math
import tempfile

import torch
from torch import Tensor

from sae_bench.activation_checks import latents_are_sound
from sae_bench.activations import Latents, ReLU, TopK
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE
from sae_bench.kernels import Triangle
from sae_bench.loading import load_sae
from sae_bench.penalties import L0
from sae_bench.recipe import Recipe
from sae_bench.registry import architecture
from sae_bench.sae import SparseAutoencoder, squared_error
from sae_bench.suite import Suite
from sae_bench.thresholds import ESTIMATOR
from sae_bench.train import Trainee, train

D_IN, D_SAE, BATCH = 16, 128, 64
Class = type[SparseAutoencoder]
ARCHITECTURE: Suite[Class] = Suite(
    "subclass of SparseAutoencoder",
    lambda thing: isinstance(thing, type) and issubclass(thing, SparseAutoencoder),
)


def check_architecture(cls: type) -> None:
    """Runs all checks on a subclass of `SparseAutoencoder`, built with its defaults.

    Raises:
        InputError: it is no such class.
        AssertionError: checks failed; one line each, saying what to do.
    """
    ARCHITECTURE.run(cls)


def _data(rows: int = BATCH, seed: int = 0) -> Tensor:
    """Activations with E||x||^2 = 1 and a mean."""
    x = torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5
    return x / x.square().sum(1).mean().sqrt()


def _arm(cls: Class, steps: int = 8, **slots: object) -> Arm:
    recipe = Recipe(
        tokens=steps * BATCH, batch_size=BATCH, lr=1e-3, lr_warmup=0, penalty_warmup=0, centre=True
    )
    return Arm(cls, D_SAE, recipe, slots=slots)


def _trained(cls: Class, steps: int = 8) -> SparseAutoencoder:
    """An SAE that has seen a few steps, in evaluation mode."""
    (trained,) = train([_arm(cls, steps)], _cache(), device="cpu")
    assert trained.reason is None, f"training ended with: {trained.reason}"
    assert trained.sae is not None
    return trained.sae.eval()


def _cache() -> ActivationCache:
    return ActivationCache.from_tensor(_data(1024), held_out=0.0)


def _state(sae: SparseAutoencoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _moved(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The SAE with every number in it moved a little, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sae.state_dict().items():
        if tensor.is_floating_point() and not name.startswith(ESTIMATOR):
            tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator))
    sae.project_parameters_()
    return sae


@ARCHITECTURE.first
def is_built_with_its_defaults(cls: Class) -> None:
    """Its default slots have a meaning, and make an SAE."""
    reason = cls.objection(cls.resolve({}))
    assert reason is None or isinstance(reason, str), (
        f"`objection` must return a reason or None, got {reason!r}"
    )
    assert reason is None, f"its default slots have no meaning: {reason}"
    cls(D_IN, D_SAE)


@ARCHITECTURE.first
def gives_latents_and_a_loss(cls: Class) -> None:
    """`latents` gives Latents, `loss_terms` scalars by name."""
    sae, x = cls(D_IN, D_SAE), _data()
    latents = sae.latents(x)
    assert isinstance(latents, Latents), (
        f"`latents` must return Latents(pre, f, step), got {type(latents).__name__}"
    )
    sae.loss(x)


@ARCHITECTURE
def is_found_by_its_name(cls: Class) -> None:
    """One class a name."""
    found = architecture(cls.__name__)
    assert found is cls, f"the name {cls.__name__} belongs to {found}; rename the class"


@ARCHITECTURE
def has_the_standard_parameters(cls: Class) -> None:
    """W_enc, W_dec and b_dec have their shapes."""
    sae = cls(D_IN, D_SAE)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    for name, shape in shapes.items():
        found = tuple(getattr(sae, name).shape)
        assert found == shape, f"`initial` must return {name} of shape {shape}, got {found}"


@ARCHITECTURE
def codes_have_one_column_a_latent(cls: Class) -> None:
    """encode: (batch, d_in) -> (batch, d_sae); decode: back; for any batch, one token included."""
    sae = cls(D_IN, D_SAE)
    for rows in (1, 7):
        f = sae.encode(_data(rows))
        assert f.shape == (rows, D_SAE), (
            f"`latents` must give f of ({rows}, {D_SAE}), got {f.shape}"
        )
        x_hat = sae.decode(f)
        assert x_hat.shape == (rows, D_IN), (
            f"`decode` must give ({rows}, {D_IN}), got {x_hat.shape}"
        )


@ARCHITECTURE
def codes_and_steps_are_sound(cls: Class) -> None:
    """Codes >= 0; steps 1 where a latent is on and 0 where it is off; evaluation too."""
    sae, x = cls(D_IN, D_SAE), _data()
    for mode in (sae.train(), sae.eval()):
        latents_are_sound(mode.latents(x), (BATCH, D_SAE), "`latents`")


@ARCHITECTURE
def encode_decode_and_forward_agree(cls: Class) -> None:
    """forward(x) = decode(encode(x)), and the loss reconstructs from the same codes."""
    sae, x = cls(D_IN, D_SAE), _data()
    assert torch.equal(sae(x), sae.decode(sae.encode(x))), "do not override `forward` or `encode`"
    loss = sae.loss(x)
    assert torch.equal(loss.reconstruction, sae.decode(loss.latents.f)), (
        "the loss must decode `latents.f`: what differs goes into `latents` or `decode`"
    )


@ARCHITECTURE
def the_loss_is_the_sum_of_its_terms(cls: Class) -> None:
    """Finite scalars that add up."""
    loss = cls(D_IN, D_SAE).loss(_data())
    assert loss.total.isfinite(), "the loss of a fresh SAE must be finite"
    total = sum(term.item() for term in loss.terms.values())
    assert math.isclose(loss.total.item(), total, rel_tol=1e-5), (
        "`total` must be the sum of `terms`"
    )


@ARCHITECTURE
def the_reconstruction_is_summed_over_dimensions(cls: Class) -> None:
    """The term `reconstruction` is ||x - x_hat||^2, a mean over the batch (penalty coefficients are
    comparable only so), and the codes learn from it."""
    x = _data()
    loss = cls(D_IN, D_SAE).loss(x)
    assert "reconstruction" in loss.terms, (
        "`loss_terms` must name one term 'reconstruction': squared_error(x, reconstruction)"
    )
    term, wanted = loss.terms["reconstruction"], squared_error(x, loss.reconstruction)
    assert _close(term, wanted), (
        f"the term 'reconstruction' is {term.item():.4g}, squared_error(x, reconstruction) is "
        f"{wanted.item():.4g}: sum over d_in"
    )
    (gradient,) = torch.autograd.grad(term, loss.latents.f, allow_unused=True)
    learns = gradient is not None and bool(gradient.any())
    assert learns, "codes get no gradient from the reconstruction: do not detach them in `decode`"


@ARCHITECTURE
def the_sparsity_scale_is_on_the_penalty(cls: Class) -> None:
    """sparsity_scale multiplies the penalty's coefficient and nothing else."""
    sae, x = cls(D_IN, D_SAE), _data()
    if sae.penalty.coefficient == 0:
        return
    totals = []
    for coefficient, scale in ((1.0, 0.5), (0.5, 1.0), (1.0, 0.0)):
        sae.penalty = sae.penalty.replace(coefficient=coefficient)
        totals.append(sae.loss(x, scale).total)
    advice = "`loss_terms` must multiply the penalty, and it alone, by sparsity_scale"
    assert _close(totals[0], totals[1]), advice
    assert not _close(totals[0], totals[2]), advice


@ARCHITECTURE
def objects_where_the_penalty_has_no_gradient(cls: Class) -> None:
    """A penalty on L0 with an activation that cannot pass it on is refused."""
    for activation in (ReLU(), TopK(4)):
        slots = {"activation": activation, "penalty": L0(0.1), "kernel": BatchKDE(Triangle(0.5))}
        try:
            resolved = cls.resolve(slots)
        except InputError:  # its slots are narrower than these
            continue
        if cls.objection(resolved):
            continue
        sae, x = cls(D_IN, D_SAE, **slots), _data()  # type: ignore[arg-type]
        with_it, without = (
            torch.autograd.grad(
                sae.loss(x, scale).total, list(sae.parameters()), materialize_grads=True
            )
            for scale in (1.0, 0.0)
        )
        assert any((a - b).abs().max() > 1e-6 for a, b in zip(with_it, without, strict=True)), (
            f"L0 with {activation.label} has no gradient: start `objection` with "
            "`if reason := super().objection(slots): return reason`"
        )


@ARCHITECTURE
def the_loss_is_a_mean_over_the_batch(cls: Class) -> None:
    """A batch that is repeated has the same loss."""
    sae, x = cls(D_IN, D_SAE), _data()
    once, twice = sae.loss(x).total, sae.loss(torch.cat([x, x])).total
    assert _close(once, twice), "average terms over the batch (sum over d_in and latents)"


@ARCHITECTURE
def the_loss_changes_nothing(cls: Class) -> None:
    """loss and encode are pure functions; counters move in `observe`."""
    sae, x = cls(D_IN, D_SAE), _data()
    before, generator = _state(sae), torch.get_rng_state()
    first = sae.loss(x).total
    assert _same(before, _state(sae)), "`loss_terms` changed a tensor: move that to `observe`"
    assert torch.equal(first, sae.loss(x).total), "the same batch must have the same loss"
    assert torch.equal(generator, torch.get_rng_state()), "do not draw from the global generator"


@ARCHITECTURE
def every_parameter_gets_a_finite_gradient(cls: Class) -> None:
    """No parameter is forgotten, none becomes NaN."""
    sae = cls(D_IN, D_SAE)
    sae.loss(_data()).total.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient: use it or make it a buffer"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"


@ARCHITECTURE
def weights_come_from_the_seed(cls: Class) -> None:
    """Same seed, same weights; another seed, others."""
    one, same, other = (_state(cls(D_IN, D_SAE, seed=seed)) for seed in (3, 3, 4))
    assert _same(one, same), "draw weights from the generator that `initial` is given"
    assert not torch.equal(one["W_dec"], other["W_dec"]), "W_dec must depend on the seed"


@ARCHITECTURE
def evaluation_changes_nothing(cls: Class) -> None:
    """encode and decode in evaluation mode leave the state alone."""
    sae = _trained(cls)
    before = _state(sae)
    sae(_data(seed=5))
    assert _same(before, _state(sae)), "evaluation changed a tensor: move that to `observe`"


@ARCHITECTURE
def a_token_is_encoded_alone(cls: Class) -> None:
    """In evaluation mode a token's codes do not depend on the rest of its batch."""
    sae, x = _trained(cls), _data(seed=5)
    alone = torch.cat([sae.encode(row) for row in x.split(1)])
    assert _close(sae.encode(x), alone), "use a fixed threshold in evaluation mode"


@ARCHITECTURE
def saving_and_loading_gives_the_same_codes(cls: Class) -> None:
    """Everything that decides the codes is in the record."""
    sae, x = _trained(cls), _data(seed=5)
    with tempfile.TemporaryDirectory() as folder:
        sae.save(folder)
        loaded = load_sae(folder)
    assert torch.equal(loaded.encode(x), sae.encode(x)), (
        "keep settings in slots, tensors in buffers"
    )
    assert loaded.slots == sae.slots, "slots must survive `save` and `load_sae`"


@ARCHITECTURE
def folding_scales_the_codes(cls: Class) -> None:
    """After fold_(s), s * x has codes and reconstruction s times as large, and s^2 the loss."""
    sae, x, s = _moved(_trained(cls)), _data(seed=5), 3.0
    f, x_hat, loss = sae.encode(x), sae(x), sae.loss(x).total
    folded = copy.deepcopy(sae).fold_(s)
    advice = "list tensors in units of the activations in `biases`, units of fields in `units`"
    assert _close(folded.encode(s * x), s * f, 1e-3), f"codes: {advice}"
    assert _close(folded(s * x), s * x_hat, 1e-3), f"reconstruction: {advice}"
    assert _close(folded.loss(s * x).total, s * s * loss, 1e-3), f"loss: {advice}"


@ARCHITECTURE
def training_lowers_the_loss(cls: Class) -> None:
    """Some steps on one small set help, and the decoder constraint holds after them."""
    (trained,) = train([_arm(cls, 120)], _cache(), device="cpu")
    assert trained.reason is None, f"training ended with: {trained.reason}"
    first, last = trained.history[0]["fvu"], trained.history[-1]["fvu"]
    assert last < first, f"FVU went from {first:.3g} to {last:.3g}: check the signs of the terms"
    assert trained.sae is not None
    W_dec = trained.sae.W_dec.detach().clone()
    trained.sae.decoder.project_(W_dec)
    assert _close(W_dec, trained.sae.W_dec), "call super() in `project_parameters_`"


@ARCHITECTURE
def lockstep_is_invisible(cls: Class) -> None:
    """Beside another arm the SAE ends with the bits it has alone."""
    arm, other = _arm(cls), _arm(SparseAutoencoder)
    (alone,), (_, beside) = (train(arms, _cache(), device="cpu") for arms in ([arm], [other, arm]))
    for trained in (alone, beside):
        assert trained.reason is None, f"training ended with: {trained.reason}"
    assert alone.sae is not None
    assert beside.sae is not None
    assert _same(_state(alone.sae), _state(beside.sae)), "do not share tensors between objects"


@ARCHITECTURE
def goes_on_from_a_checkpoint(cls: Class) -> None:
    """Stopped after some steps and restored, the SAE ends with the bits it has uninterrupted."""
    whole, stopped, resumed = (Trainee(_arm(cls), D_IN, torch.device("cpu")) for _ in range(3))
    for index, x in zip(range(8), _cache().batches(BATCH, seed=0), strict=False):
        whole.step(index, x)
        if index == 4:
            resumed.restore(stopped.state(index))
        (stopped if index < 4 else resumed).step(index, x)
    same = _same(_state(whole.sae), _state(resumed.sae))
    assert same, "keep what moves during training in buffers, where checkpoints find it"


@ARCHITECTURE
def works_in_float64(cls: Class) -> None:
    """`.double()` gives nearly the same codes."""
    sae, x = _trained(cls), _data(seed=5)
    wide = copy.deepcopy(sae).double()(x.double())
    assert wide.dtype == torch.float64, "make new tensors of the inputs' dtype"
    assert (wide.float() - sae(x)).norm() < 1e-2 * x.norm(), "float64 gives other numbers"


@ARCHITECTURE
def works_under_bfloat16_autocast(cls: Class) -> None:
    """Matrix products in bfloat16, parameters and gradients in float32."""
    sae = cls(D_IN, D_SAE)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(_data())
    loss.total.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.dtype == torch.float32, f"{name} must stay float32"
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"{name}: the gradient is not finite"
