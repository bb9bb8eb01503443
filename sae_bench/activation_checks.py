"""The conformance suite for activations."""

from typing import Any

import torch
from torch import Tensor

from sae_bench.activations import Activation, Latents
from sae_bench.estimators import BatchKDE, Estimator, MeanKDE
from sae_bench.kernels import Triangle
from sae_bench.penalties import L1
from sae_bench.sae import SparseAutoencoder
from sae_bench.suite import ComponentSuite

ACTIVATION: ComponentSuite[Activation] = ComponentSuite(Activation)
BATCH, D_SAE, D_IN = 32, 128, 8
Own = dict[str, Tensor]


def _own(activation: Activation) -> Own:
    """Its tensors, moved a little from where they start."""
    generator = torch.Generator().manual_seed(3)
    tensors = {**activation.parameters(D_SAE), **activation.buffers(D_SAE)}
    moved = {
        name: value.clone().add_(0.1 * torch.rand(value.shape, generator=generator))
        if value.is_floating_point()
        else value.clone()
        for name, value in tensors.items()
    }
    activation.project_(moved)
    return moved


def _pre(activation: Activation, own: Own) -> Tensor:
    """Pre-activations on both sides of the thresholds."""
    theta = activation.threshold(own)
    scale = 1.0 if theta is None else max(1.0, 3 * theta.detach().max().item())
    return scale * torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(0))


def _estimator(pre: Tensor, *, to_input: bool = False) -> Estimator:
    return BatchKDE(Triangle(pre.std().item()), to_input=to_input)


def _both(activation: Activation, own: Own, pre: Tensor) -> dict[str, Any]:
    """What it gives in training and in evaluation: Latents, if it is right."""
    estimator = _estimator(pre)
    return {
        "__call__": activation(pre, own, estimator),
        "infer": activation.infer(pre, own, estimator),
    }


def latents_are_sound(latents: object, shape: tuple[int, ...], source: str) -> None:
    """Latents of this shape; codes >= 0; steps 1 where a latent is on and 0 where it is off."""
    assert isinstance(latents, Latents), (
        f"{source} must return Latents(pre, f, step), got {type(latents).__name__}"
    )
    for name, tensor in latents._asdict().items():
        found = tuple(tensor.shape)
        assert found == shape, f"{source}: {name} must have the shape {shape}, got {found}"
        assert tensor.dtype == latents.pre.dtype, (
            f"{source}: {name} must have the type of pre, {latents.pre.dtype}, got {tensor.dtype}"
        )
    f, step = latents.f, latents.step
    assert (f >= 0).all(), f"{source}: codes must not be negative (a latent is on where f > 0)"
    assert ((step == 0) | (step == 1)).all(), f"{source}: step must be 0 or 1"
    assert (f[step == 0] == 0).all(), f"{source}: f must be 0 where step is 0"
    agreement = (step == (f > 0)).float().mean().item()
    assert agreement > 0.9, (
        f"{source}: step must be 1 where f > 0 and 0 elsewhere; it is so in {agreement:.0%} of "
        "the entries"
    )


@ACTIVATION.first
def gives_latents(activation: Activation) -> None:
    """pre, codes and steps of the shape and type of pre, in training and in evaluation."""
    own = _own(activation)
    for source, latents in _both(activation, own, _pre(activation, own)).items():
        latents_are_sound(latents, (BATCH, D_SAE), f"`{source}`")


@ACTIVATION.first
def is_part_of_an_sae(activation: Activation) -> None:
    """The names of its tensors are free, and training moves every parameter of it."""
    sae = SparseAutoencoder(D_IN, D_SAE, activation=activation, kernel=Triangle(1.0))
    x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    sae.loss(x).total.backward()
    for name in activation.parameters(D_SAE):
        gradient = sae.get_parameter(name).grad
        assert gradient is not None, f"{name} gets no gradient: use it or make it a buffer"
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"


@ACTIVATION
def changes_nothing_but_in_observe(activation: Activation) -> None:
    """The same pre-activations give the same latents; `observe` moves buffers alone."""
    own = _own(activation)
    pre = _pre(activation, own)
    before = {name: value.clone() for name, value in own.items()}
    generator = torch.get_rng_state()
    first, again = (_both(activation, own, pre) for _ in range(2))
    for source, latents in first.items():
        same = torch.equal(latents.f, again[source].f)
        assert same, f"`{source}` must give the same codes each time: keep no memory in it"
    for name, value in own.items():
        assert torch.equal(value, before[name]), f"{name} changed: move that to `observe`"
    assert torch.equal(generator, torch.get_rng_state()), "do not draw from the global generator"
    activation.observe(first["__call__"], own)
    for name in activation.parameters(D_SAE):
        assert torch.equal(own[name], before[name]), f"`observe` changed the parameter {name}"


@ACTIVATION
def a_token_is_encoded_alone(activation: Activation) -> None:
    """In evaluation a token's codes do not depend on the rest of its batch."""
    own = _own(activation)
    pre = _pre(activation, own)
    estimator = _estimator(pre)
    together = activation.infer(pre, own, estimator).f
    alone = torch.cat([activation.infer(row, own, estimator).f for row in pre.split(1)])
    assert torch.allclose(together, alone), "use a fixed threshold in `infer`"


@ACTIVATION
def folds_with_the_activations(activation: Activation) -> None:
    """Rescaled by s, s * pre has codes s times as large and the same steps."""
    own, s = _own(activation), 3.0
    pre = _pre(activation, own)
    before = _both(activation, own, pre)
    folded = {name: value.clone() for name, value in own.items()}
    activation.fold_(folded, s)
    for source, after in _both(activation.rescaled(s), folded, s * pre).items():
        agree = torch.isclose(after.f, s * before[source].f, rtol=1e-3).float().mean()
        assert agree > 0.999, (
            f"`{source}`: rescale tensors in units of pre in `fold_`, and name fields in such "
            "units in `units`"
        )


@ACTIVATION
def projects_once_for_all(activation: Activation) -> None:
    """A second `project_` changes nothing."""
    own = {name: value - 0.5 for name, value in activation.parameters(D_SAE).items()}
    own |= activation.buffers(D_SAE)
    activation.project_(own)
    once = {name: value.clone() for name, value in own.items()}
    activation.project_(own)
    for name, value in own.items():
        assert torch.equal(value, once[name]), f"`project_` applied twice changes {name}"


@ACTIVATION
def works_in_float64(activation: Activation) -> None:
    """With tensors in float64, nearly the same codes, in float64."""
    own = _own(activation)
    pre = _pre(activation, own)
    wide = {name: v.double() if v.is_floating_point() else v for name, v in own.items()}
    narrow = _both(activation, own, pre)
    for source, latents in _both(activation, wide, pre.double()).items():
        assert latents.f.dtype == torch.float64, f"`{source}`: make tensors of the type of pre"
        agree = torch.isclose(latents.f.float(), narrow[source].f, rtol=1e-3).float().mean()
        assert agree > 0.99, f"`{source}`: float64 gives other codes"


# -- thresholds -----------------------------------------------------------------------------------


@ACTIVATION
def is_on_above_its_threshold(activation: Activation) -> None:
    """Where `threshold` is not None, it is a scalar or one a latent, in units of pre."""
    own = _own(activation)
    theta, pre = activation.threshold(own), _pre(activation, own)
    if theta is None:
        return
    assert theta.shape in ((), (D_SAE,)), (
        f"`threshold` must give one number or d_sae of them, got the shape {tuple(theta.shape)}"
    )
    step = activation.infer(pre, own, _estimator(pre)).step
    assert torch.equal(step, (pre > theta).to(step.dtype)), (
        "in evaluation a latent must be on where pre > `threshold`"
    )


@ACTIVATION
def says_whether_it_trains_thresholds(activation: Activation) -> None:
    """`trains_threshold` is what it says; the gradient by samples is then autograd's."""
    declares = bool(activation.parameters(D_SAE))
    assert declares == activation.trains_threshold, f"set trains_threshold = {declares}"
    if not declares:
        return
    own = _own(activation)
    pre = _pre(activation, own)
    kernel, gradients = Triangle(pre.std().item()), []
    x = 3 * pre.std() * torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    for estimator in (BatchKDE(kernel), MeanKDE(kernel, steps=1)):
        sae = SparseAutoencoder(
            D_IN, D_SAE, activation=activation, penalty=L1(0.1), kernel=estimator
        )
        loss = sae.loss(x)
        loss.latents.f.retain_grad()
        loss.total.backward()
        sae.estimate_(loss, 1.0)  # refuses a wrong `trains_threshold`
        gradients.append([parameter.grad for parameter in sae.threshold_parameters])
    for name, batch, sampled in zip(activation.parameters(D_SAE), *gradients, strict=True):
        assert batch is not None
        assert sampled is not None
        assert torch.allclose(batch, sampled, rtol=1e-2, atol=1e-2 * batch.abs().max().item()), (
            f"the gradient of {name} by samples, for f = pre where pre > `threshold`, is not the "
            "one of `jump`: do they share one threshold?"
        )


@ACTIVATION
def objects_where_a_penalty_on_steps_has_no_gradient(activation: Activation) -> None:
    """Where `objection_to_step` is None, steps have a gradient."""
    own = _own(activation)
    pre = _pre(activation, own).requires_grad_()
    leaves = [pre, *(own[name].requires_grad_() for name in activation.parameters(D_SAE))]
    for to_input in (False, True):
        estimator = _estimator(pre.detach(), to_input=to_input)
        reason = activation.objection_to_step(estimator)
        assert reason is None or (isinstance(reason, str) and reason), (
            f"`objection_to_step` must return a reason or None, got {reason!r}"
        )
        if reason is None:
            step = activation(pre, own, estimator).step
            advice = (
                "steps have no gradient: make them with `jump`, or say so in `objection_to_step`"
            )
            assert step.requires_grad, advice
            found = torch.autograd.grad(step.sum(), leaves, allow_unused=True)
            assert any(gradient is not None and gradient.any() for gradient in found), advice


@ACTIVATION
def fixes_its_l0_where_it_says_so(activation: Activation) -> None:
    """`at_l0(n)`, where it is not None, has about n latents on a token in training."""
    wanted = activation.at_l0(5.0)
    if wanted is None:
        return
    own = _own(wanted)
    pre = _pre(wanted, own)
    found = (wanted(pre, own, _estimator(pre)).f > 0).sum().item() / BATCH
    assert abs(found - 5) < 1, f"`at_l0(5)` gives an L0 of {found:.3g}"
