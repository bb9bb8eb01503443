"""Components with one fault each, for the suites to catch."""

from dataclasses import dataclass
from typing import Any

import torch

from sae_bench.activations import Activation, BatchTopK, JumpReLU, Latents, ReLU, TopK
from sae_bench.decoders import FreeRows, UnitRows
from sae_bench.estimators import BatchKDE, MomentumKDE
from sae_bench.kernels import Kernel
from sae_bench.penalties import L0, L1, Penalty, TargetL0
from sae_bench.surrogate import jump

# -- kernels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwiceScaled(Kernel):
    """Does not integrate to 1."""

    roughness, variance, half_mean, support = 1.0, 1 / 12, 1 / 8, 0.5

    def density(self, u: torch.Tensor) -> torch.Tensor:
        return 2.0 * (u.abs() < 0.5).to(u.dtype)


@dataclass(frozen=True)
class Lopsided(TwiceScaled):
    def density(self, u: torch.Tensor) -> torch.Tensor:
        return ((u > 0) & (u < 1)).to(u.dtype)


@dataclass(frozen=True)
class Widened(TwiceScaled):
    def density(self, u: torch.Tensor) -> torch.Tensor:
        return super().density(u).double()


# -- penalties ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summed(Penalty):
    """A sum over the batch, without units."""

    def value(self, latents: Any, W_dec: Any) -> Any:
        return latents.f.sum()


@dataclass(frozen=True)
class PerToken(Penalty):
    def value(self, latents: Any, W_dec: Any) -> Any:
        return latents.f.sum(1)


@dataclass(frozen=True)
class Rewarding(Penalty):
    def value(self, latents: Any, W_dec: Any) -> Any:
        return -latents.f.sum() / len(latents.f)


@dataclass(frozen=True)
class Remembers(Penalty):
    def value(self, latents: Any, W_dec: Any) -> Any:
        object.__setattr__(self, "seen", getattr(self, "seen", 0) + 1)
        return self.seen * latents.f.sum() / len(latents.f)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class WrongSlope(L1):
    def slope(self, f: Any, norms: Any) -> Any:
        return 3 * torch.ones_like(f)


@dataclass(frozen=True)
class WrongJump(L1):
    def jump(self, theta: Any, norms: Any) -> Any:
        return 7 * theta


@dataclass(frozen=True)
class Flat(TargetL0):
    """Forgets that it is no sum of steps."""

    @property
    def step_curvature(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Unstepped(L0):
    through_step = False


# -- estimators -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Average(MomentumKDE):
    """As a user may write it; its variants below have one fault each."""

    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        return super().estimate(state, batch, bandwidth)


@dataclass(frozen=True)
class Motionless(BatchKDE):
    """Never moves a threshold."""

    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        return torch.zeros_like(batch.present.theta), {}


@dataclass(frozen=True)
class DropsItsState(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        return super().estimate(state, batch, bandwidth)[0], {}


@dataclass(frozen=True)
class WidensItsState(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient, {name: value.double() for name, value in state.items()}


@dataclass(frozen=True)
class PlainState(Average):
    def init(self, d_sae: int) -> Any:
        return super().init(d_sae) | {"count": 0}


@dataclass(frozen=True)
class OneNumber(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient.sum(), state


@dataclass(frozen=True)
class OnlyGradient(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        return super().estimate(state, batch, bandwidth)[0]


@dataclass(frozen=True)
class Undefined(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient / (len(batch.samples.pre) > 0), state


@dataclass(frozen=True)
class Overwrites(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, after = super().estimate(state, batch, bandwidth)
        state["average"] += gradient
        return gradient, after


@dataclass(frozen=True)
class Rescales(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        batch.samples.weight.mul_(2)
        return super().estimate(state, batch, bandwidth)


@dataclass(frozen=True)
class Uphill(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return -gradient, state


@dataclass(frozen=True)
class SumOverTokens(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient * batch.tokens, state


@dataclass(frozen=True)
class NearSighted(Average):
    def reach(self, state: Any, bandwidth: Any = None) -> Any:
        return super().reach(state, bandwidth) / 4


@dataclass(frozen=True)
class OwnWidth(Average):
    """Takes no bandwidth."""

    def estimate(self, state: Any, batch: Any) -> Any:  # type: ignore[override]
        return super().estimate(state, batch)


@dataclass(frozen=True)
class DeafToWidth(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        return super().estimate(state, batch)


@dataclass(frozen=True)
class Random(Average):
    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient * torch.rand_like(gradient), state


@dataclass(frozen=True)
class NeverCalled(BatchKDE):
    """Claims to be what autograd computes."""

    is_backward = True  # type: ignore[assignment]

    def estimate(self, state: Any, batch: Any, bandwidth: Any = None) -> Any:
        gradient, state = super().estimate(state, batch, bandwidth)
        return gradient / 2, state


# -- activations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Triple(Activation):
    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        return pre, pre.relu(), (pre > 0).to(pre.dtype)

    infer = __call__


@dataclass(frozen=True)
class Signed(ReLU):
    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        return super().__call__(pre, own, estimator)._replace(f=pre)


@dataclass(frozen=True)
class Booleans(ReLU):
    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        return super().__call__(pre, own, estimator)._replace(step=pre > 0)


@dataclass(frozen=True)
class Clashing(ReLU):
    def parameters(self, d_sae: int) -> Any:
        return {"b_enc": torch.zeros(d_sae)}


@dataclass(frozen=True)
class Unused(ReLU):
    def parameters(self, d_sae: int) -> Any:
        return {"gain": torch.zeros(d_sae)}


@dataclass(frozen=True)
class Counts(ReLU):
    def buffers(self, d_sae: int) -> Any:
        return {"count": torch.zeros(())}

    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        own["count"].add_(1)
        return super().__call__(pre, own, estimator)


@dataclass(frozen=True)
class BatchInEvaluation(BatchTopK):
    def infer(self, pre: Any, own: Any, estimator: Any) -> Any:
        return self(pre, own, estimator)


@dataclass(frozen=True)
class Unfolded(JumpReLU):
    def fold_(self, own: Any, s: float) -> None:
        pass


@dataclass(frozen=True)
class Creeps(JumpReLU):
    def project_(self, own: Any) -> None:
        own[self.form.name].add_(0.1)


@dataclass(frozen=True)
class Narrow(ReLU):
    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        return Latents(*(each.float() for each in super().__call__(pre, own, estimator)))


@dataclass(frozen=True)
class Misstated(JumpReLU):
    """States twice its threshold."""

    def threshold(self, own: Any) -> Any:
        return 2 * super().threshold(own)

    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        return Latents(pre, *jump(pre, super().threshold(own), estimator))


@dataclass(frozen=True)
class Undeclared(JumpReLU):
    trains_threshold = False


@dataclass(frozen=True)
class Gradientless(JumpReLU):
    """Its step is no jump."""

    def __call__(self, pre: Any, own: Any, estimator: Any) -> Any:
        latents = super().__call__(pre, own, estimator)
        return latents._replace(step=latents.step.detach())


@dataclass(frozen=True)
class OtherL0(TopK):
    def at_l0(self, l0: float) -> Any:
        return self.replace(k=2 * round(l0))


# -- decoders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transposed(UnitRows):
    def initial(self, d_sae: int, d_in: int, generator: Any) -> Any:
        return super().initial(d_sae, d_in, generator).T


@dataclass(frozen=True)
class GlobalDraws(UnitRows):
    def initial(self, d_sae: int, d_in: int, generator: Any) -> Any:
        return torch.nn.functional.normalize(torch.randn(d_sae, d_in))


@dataclass(frozen=True)
class WrongStart(UnitRows):
    def initial(self, d_sae: int, d_in: int, generator: Any) -> Any:
        return 2 * super().initial(d_sae, d_in, generator)


@dataclass(frozen=True)
class Shrinking(FreeRows):
    def project_(self, W_dec: Any) -> None:
        W_dec.mul_(0.9)


@dataclass(frozen=True)
class MovesRows(UnitRows):
    def project_gradient_(self, W_dec: Any, gradient: Any) -> None:
        W_dec.mul_(0.9)


@dataclass(frozen=True)
class TurnsRound(UnitRows):
    def project_gradient_(self, W_dec: Any, gradient: Any) -> None:
        gradient.neg_()
