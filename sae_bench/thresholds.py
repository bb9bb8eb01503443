"""The thresholds of an SAE, and how their gradients come from an estimator."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_bench.activations import Activation, Latents
from sae_bench.errors import InputError
from sae_bench.estimator import Estimator
from sae_bench.loss import Loss
from sae_bench.penalties import Penalty
from sae_bench.ranks import ranks
from sae_bench.samples import Batch, Present, Samples
from sae_bench.sparse import Sparse, within

ESTIMATOR = "estimator_"
"""Prefix of the buffers that hold the estimator's state; a saved SAE leaves them out."""


class WithThresholds(nn.Module):
    """The part of an SAE that knows of thresholds. `estimate_` takes the place of backward where
    the estimator is another than the plain batch one."""

    d_sae: int
    activation: Activation
    penalty: Penalty
    kernel: Estimator
    W_dec: Float[Tensor, "d_sae d_in"]
    _own_names: tuple[str, ...]

    def curvature(self) -> Float[Tensor, " d_sae"]:
        """Half the second derivative of the reconstruction terms with respect to each code:
        ||d_i||^2, times the number of such terms that the latent takes part in."""
        return self.W_dec.square().sum(1)

    @property
    def threshold(self) -> Float[Tensor, " d_sae"] | None:
        """The per-latent threshold in units of the pre-activations (float32, or float64 for a
        float64 SAE), or None if the activation has none."""
        theta = self.activation.threshold(self._own)
        return None if theta is None else theta.expand(self.d_sae)

    @property
    def threshold_parameters(self) -> list[nn.Parameter]:
        """The activation's own parameters, which have a learning rate of their own."""
        return list(self._trained.values())

    @property
    def needs_samples(self) -> bool:
        """Whether `estimate_` has work to do, and wants the codes' gradients to be retained."""
        return not self.kernel.is_backward and bool(self._behind_threshold)

    @cached_property
    def _behind_threshold(self) -> tuple[str, ...]:
        """The names of the parameters that decide the threshold: an estimator sets their gradient;
        the activation's other parameters keep that of backward."""
        names = behind_threshold(self.activation, self._own, self._trained)
        if bool(names) != self.activation.trains_threshold:
            raise InputError(
                f"{type(self.activation).__name__}: set trains_threshold = {bool(names)}: "
                f"its threshold depends on {' and '.join(names) or 'no parameter'}"
            )
        return names

    @contextmanager
    def thresholds_left_to_estimator(self) -> Iterator[None]:
        """Losses computed inside leave no gradient in the thresholds if `estimate_` will set it:
        the backward pass saves the work of one that would be replaced."""
        left = self._behind_threshold if self.needs_samples else ()
        for name in left:
            self.get_parameter(name).requires_grad_(False)
        try:
            yield
        finally:
            for name in left:
                self.get_parameter(name).requires_grad_(True)

    @torch.no_grad()
    def estimate_(self, loss: Loss, sparsity_scale: float) -> None:
        """Sets the gradient of the thresholds to the estimator's, whatever backward left there, and
        advances its state: once an optimiser step, by the trainer alone.

        Args:
            loss: after `loss.total.backward()`, with the gradient of `loss.latents.f` retained.
            sparsity_scale: the one that the loss was computed with.

        Raises:
            InputError: the estimator returns something of another shape than it should.
        """
        if not self.needs_samples:
            return
        state = self.estimator_state
        gradient, following = self.kernel.estimate(state, self.batch(loss, sparsity_scale))
        name = f"{type(self.kernel).__name__}.estimate"
        if gradient.shape != (self.d_sae,):
            raise InputError(
                f"{name}: the gradient must have the shape ({self.d_sae},), "
                f"got {tuple(gradient.shape)}"
            )
        if following.keys() != state.keys():
            raise InputError(
                f"{name}: the state must keep the names that `init` gave, {sorted(state)}; "
                f"got {sorted(following)}"
            )
        for name, value in following.items():
            if value is not state[name]:  # large parts of a state may stay as they are
                self.get_buffer(ESTIMATOR + name).copy_(value)
        with torch.enable_grad():
            theta = self.threshold
        assert theta is not None
        parameters = [self.get_parameter(name) for name in self._behind_threshold]
        for parameter, part in zip(
            parameters, torch.autograd.grad(theta, parameters, gradient), strict=True
        ):
            parameter.grad = part

    @property
    def estimator_state(self) -> dict[str, Tensor]:
        """The estimator's memory, as its last step left it."""
        return {
            name.removeprefix(ESTIMATOR): value
            for name, value in self.named_buffers()
            if name.startswith(ESTIMATOR)
        }

    @torch.no_grad()
    def batch(self, loss: Loss, sparsity_scale: float) -> Batch:
        """What the estimator is given of a batch: see `estimate_`."""
        theta = self.threshold
        assert theta is not None
        norms, scale = self.W_dec.norm(dim=1), sparsity_scale * self.penalty.coefficient
        present = Present(theta, norms, self.curvature(), self.penalty, scale)
        samples = self._samples(loss.latents, present, self.kernel.reach(self.estimator_state))
        return Batch(samples, present, len(loss.latents.pre))

    def _samples(
        self, latents: Latents, present: Present, reach: float | Float[Tensor, " d_sae"]
    ) -> Samples:
        """The tokens of a batch within `reach` of thresholds."""
        if latents.f.grad is None:
            raise RuntimeError("estimate_: call loss.latents.f.retain_grad() before backward")
        step_slope = self.penalty.step_slope(latents, self.W_dec)
        low, high = present.theta - reach, present.theta + reach
        latent, columns = within(low, high, *latents, latents.f.grad, step_slope)
        pre, f, step, grad, step_slope = columns
        slope = present.penalty.slope(f, present.norms.index_select(0, latent))
        pull = len(latents.f) * grad - present.scale * slope
        samples = Samples(
            latent=latent,
            pre=pre,
            projection=f * present.curvature.index_select(0, latent) - pull / 2,
            step_slope=step_slope - step * self.penalty.step_curvature,
            weight=torch.ones_like(pre),
        )
        if (most := self.kernel.most_samples) is None:
            return samples
        rank, count = ranks(latent, self.d_sae)
        near = latents.f.support.near if isinstance(latents.f, Sparse) else None
        offered = count if near is None else near
        return samples.first(most(offered), rank, offered)

    @property
    def _own(self) -> dict[str, Tensor]:
        """The parameters and buffers that the activation declared."""
        return {name: getattr(self, name) for name in self._own_names}

    @property
    def _trained(self) -> dict[str, nn.Parameter]:
        """Those of them that are trained."""
        return {name: own for name, own in self._own.items() if isinstance(own, nn.Parameter)}


@torch.enable_grad()
def behind_threshold(
    activation: Activation, own: Mapping[str, Tensor], trained: Iterable[str]
) -> tuple[str, ...]:
    """Those of the `trained` tensors on which the activation's threshold depends."""
    leaves = {name: own[name].detach().requires_grad_() for name in trained}
    theta = activation.threshold({**own, **leaves})
    if theta is None or not theta.requires_grad:
        return ()
    found = torch.autograd.grad(theta.sum(), list(leaves.values()), allow_unused=True)
    return tuple(name for name, g in zip(leaves, found, strict=True) if g is not None)
