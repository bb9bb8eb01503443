"""The interface that every architecture implements."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_bench.activations import Activation, Latents, ReLU
from sae_bench.components import Component, label_of, walk
from sae_bench.decoders import Decoder, UnitRows
from sae_bench.errors import InputError
from sae_bench.estimators import BatchKDE, Estimator, as_estimator
from sae_bench.files import write_atomically, write_json
from sae_bench.kernels import Kernel
from sae_bench.penalties import L1, Penalty
from sae_bench.plain import Plain
from sae_bench.samples import Present, Samples
from sae_bench.user_code import source_digest

FORMAT, VERSION = "sae_bench", 1
WEIGHTS, CONFIG = "sae.safetensors", "config.json"
SOURCE = "source"
"""Key of the provenance of saved SAEs under which the hash of a user's code stands."""
ESTIMATOR = "estimator_"
"""Prefix of the buffers that hold the estimator's state; a saved SAE leaves them out."""


@dataclass(frozen=True)
class Loss:
    """Value of the training loss on one batch.

    total: sum of `terms`; terms: name -> scalar, each averaged over the batch; latents and
    reconstruction: what the forward pass produced on the way.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]
    latents: Latents
    reconstruction: Float[Tensor, "batch d_in"]

    @classmethod
    def of(
        cls,
        terms: Mapping[str, Float[Tensor, ""]],
        latents: Latents,
        reconstruction: Float[Tensor, "batch d_in"],
    ) -> Self:
        """The loss that is the sum of `terms`."""
        return cls(torch.stack(list(terms.values())).sum(), terms, latents, reconstruction)


class SparseAutoencoder(nn.Module):
    """x -> pre = (x - b_dec) W_enc + b_enc -> f = activation(pre) -> x_hat = f W_dec + b_dec.

    Loss = sum over d_in, mean over the batch, of (x - x_hat)^2, plus the penalty.

    **Slots.** The annotated class attributes are slots: each can be given another value by keyword
    when an SAE is built, and all of them go into the record. A subclass changes a slot's default or
    adds slots by annotating class attributes of its own (components or plain values).

    **Subclassing.** Override any of `initial`, `latents`, `decode`, `loss_terms`, `biases`,
    `objection`, `plain`; nothing else needs to know. `loss` is a pure function: what moves during
    training moves in `observe`, which only the trainer calls, and lives in buffers, where
    checkpoints find it.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        seed: draws the initial weights. Architectures with the same seed, d_in, d_sae and decoder
            constraint start from the same decoder.
        slots: values of slots; `kernel` takes a kernel or an estimator around one.

    Raises:
        InputError: unknown slot, value of the wrong type, or a combination without meaning.
    """

    activation: Activation = ReLU()
    penalty: Penalty = L1(1e-2)
    kernel: Estimator = BatchKDE()
    decoder: Decoder = UnitRows()

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    silent_tokens: Int[Tensor, " d_sae"]
    """Training tokens since each latent last fired."""

    provenance: dict[str, Any]
    """JSON-ready remarks on where the SAE comes from, saved with it: what `run` knows of model,
    site, context, data and recipe, or the settings of the library that it was loaded from."""

    biases: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    """Tensors in units of the activations: those that fold with the activation scale."""

    def __init__(self, d_in: int, d_sae: int, *, seed: int = 0, **slots: Any) -> None:
        super().__init__()
        self.d_in, self.d_sae, self.seed = d_in, d_sae, seed
        self.provenance: dict[str, Any] = {}
        if not (d_in >= 1 and d_sae >= 1):
            raise InputError(
                f"{type(self).__name__}: d_in and d_sae must be positive, got {d_in} and {d_sae}"
            )
        resolved = self.resolve(slots)
        if reason := self.objection(resolved):
            raise InputError(f"{type(self).__name__}: {reason}")
        for name, value in resolved.items():
            setattr(self, name, value)
        buffers = self.activation.buffers(d_sae)
        self._own_names = (*self.activation.parameters(d_sae), *buffers)
        for name, value in self.initial(torch.Generator().manual_seed(seed)).items():
            self.register_parameter(name, nn.Parameter(value))
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.register_buffer("silent_tokens", torch.zeros(d_sae, dtype=torch.int64))
        for name, value in self.kernel.init(d_sae).items():
            self.register_buffer(ESTIMATOR + name, value)

    # -- slots ------------------------------------------------------------------------------------

    @classmethod
    def slot_defaults(cls) -> dict[str, Any]:
        """Every slot of the class with its default value."""
        names = [
            name
            for base in reversed(cls.__mro__)
            if issubclass(base, SparseAutoencoder)
            for name in base.__annotations__
            if hasattr(cls, name) and name != "biases"
        ]
        return {name: getattr(cls, name) for name in names}

    @classmethod
    def resolve(cls, slots: Mapping[str, Any]) -> dict[str, Any]:
        """`slots` completed by the defaults.

        Raises:
            InputError: unknown slot, or a component of the wrong kind.
        """
        defaults = cls.slot_defaults()
        for name, value in slots.items():
            if name not in defaults:
                raise InputError(
                    f"{cls.__name__}: unknown argument {name!r}; it takes {', '.join(defaults)}"
                )
            kind = _kind(defaults[name])
            if kind is Estimator and isinstance(value, Kernel):
                value = as_estimator(value)
            if not isinstance(value, kind):
                raise InputError(
                    f"{cls.__name__}: {name} must be a {kind.__name__}, got {value!r:.60}"
                )
            defaults[name] = value
        return defaults

    @classmethod
    def objection(cls, slots: Mapping[str, Any]) -> str | None:
        """Why a combination of slots has no meaning, or None. `grid` records such cells as skipped
        with this reason."""
        activation, penalty, kernel = (slots[name] for name in ("activation", "penalty", "kernel"))
        if penalty.through_step and (reason := activation.objection_to_step(kernel)):
            return reason
        if penalty.needs_fixed_norms and not slots["decoder"].fixes_norms:
            return (
                f"{penalty.label_without('coefficient')} charges codes, whatever the norms of "
                f"their decoder rows: with {type(slots['decoder']).__name__} use RIL1"
            )
        return activation.objection_to_estimator(kernel, penalty.through_step)

    @property
    def slots(self) -> dict[str, Any]:
        """The values of all slots of this SAE."""
        return {name: getattr(self, name) for name in self.slot_defaults()}

    # -- what architectures override --------------------------------------------------------------

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial value of every parameter: rows of W_dec by the decoder constraint, W_enc its
        transpose (untied afterwards), zero biases, and what the activation needs."""
        W_dec = self.decoder.initial(self.d_sae, self.d_in, generator)
        return {
            "W_enc": W_dec.T.contiguous(),
            "b_enc": torch.zeros(self.d_sae),
            "W_dec": W_dec,
            "b_dec": torch.zeros(self.d_in),
            **self.activation.parameters(self.d_sae),
        }

    def latents(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        """Pre-activations, codes and step of a batch; activations may differ in evaluation mode."""
        activation = self.activation if self.training else self.activation.infer
        return activation(self.affine(x, self.W_enc, self.b_enc), self._own, self.kernel)

    def decode(self, f: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """x_hat = f W_dec + b_dec."""
        return torch.addmm(self.b_dec, f, self.W_dec).to(self.b_dec.dtype)

    def loss_terms(
        self,
        x: Float[Tensor, "batch d_in"],
        latents: Latents,
        reconstruction: Float[Tensor, "batch d_in"],
        sparsity_scale: float,
    ) -> dict[str, Float[Tensor, ""]]:
        """Named terms whose sum is minimised; each is averaged over the batch.

        sparsity_scale multiplies the penalty (warm-up) and nothing else.
        """
        return {
            "reconstruction": squared_error(x, reconstruction),
            "sparsity": sparsity_scale * self.penalty(latents, self.W_dec),
        }

    @torch.no_grad()
    def observe(self, latents: Latents) -> None:
        """Advances counters and the activation's buffers after a training step; nothing else
        does."""
        fired = (latents.f > 0).any(0)
        self.silent_tokens.add_(len(latents.f)).masked_fill_(fired, 0)
        self.activation.observe(latents, self._own)

    def curvature(self) -> Float[Tensor, " d_sae"]:
        """Half the second derivative of the reconstruction terms with respect to each code:
        ||d_i||^2, times the number of such terms that the latent takes part in."""
        return self.W_dec.square().sum(1)

    def plain(self) -> Plain:
        """What the SAE computes in evaluation, in tensors that share its memory: for other
        libraries and for conversions. `exportable` checks that it is the truth.

        Raises:
            InputError: nothing that other libraries know.
        """
        weights = {
            name: getattr(self, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        }
        own = {name: tensor.detach() for name, tensor in self._own.items()}
        return self.activation.plain(weights, own)

    @property
    def source(self) -> str | None:
        """Hash of the code of its class and its slots' classes, as far as they are the user's."""
        return source_digest([type(self), *(type(part) for part in walk(self.slots))])

    def extra_repr(self) -> str:
        """Sizes and slots, for `print(sae)`."""
        shown = {"d_in": self.d_in, "d_sae": self.d_sae, **self.slots}
        return ", ".join(f"{name}={label_of(value)}" for name, value in shown.items())

    # -- what users call --------------------------------------------------------------------------

    def affine(
        self,
        x: Float[Tensor, "batch d_in"],
        W: Float[Tensor, "d_in d_out"],
        b: Float[Tensor, " d_out"],
    ) -> Float[Tensor, "batch d_out"]:
        """(x - b_dec) W + b, computed as x W + (b - b_dec W): the gradient of b_dec then costs a
        matrix-vector product instead of a matrix product."""
        return torch.addmm(b - self.b_dec @ W, x, W).to(b.dtype)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The codes f, in units of x."""
        return self.latents(x).f

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """The reconstruction of x."""
        return self.decode(self.encode(x))

    def loss(self, x: Float[Tensor, "batch d_in"], sparsity_scale: float = 1.0) -> Loss:
        """Training loss of a batch: a pure function of x, the parameters and the buffers."""
        latents = self.latents(x)
        reconstruction = self.decode(latents.f)
        terms = self.loss_terms(x, latents, reconstruction, sparsity_scale)
        return Loss.of(terms, latents, reconstruction)

    @property
    def threshold(self) -> Float[Tensor, " d_sae"] | None:
        """The per-latent threshold in units of the pre-activations (float32, or float64 for a
        float64 SAE), or None if the activation has none."""
        theta = self.activation.threshold(self._own)
        return None if theta is None else theta.expand(self.d_sae)

    @property
    def threshold_parameters(self) -> list[nn.Parameter]:
        """The activation's own parameters, which have a learning rate of their own."""
        return [tensor for tensor in self._own.values() if isinstance(tensor, nn.Parameter)]

    @property
    def needs_samples(self) -> bool:
        """Whether `estimate_` has work to do, and wants the codes' gradients to be retained."""
        return bool(self.threshold_parameters) and not self.kernel.is_backward

    @contextmanager
    def thresholds_left_to_estimator(self) -> Iterator[None]:
        """Losses computed inside leave no gradient in the thresholds if `estimate_` will set it:
        the backward pass saves the work of one that would be replaced."""
        left = self.threshold_parameters if self.needs_samples else []
        for parameter in left:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in left:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def estimate_(self, loss: Loss, sparsity_scale: float) -> None:
        """Sets the gradient of the thresholds to the estimator's, whatever backward left there, and
        advances its state: once an optimiser step, by the trainer alone.

        Args:
            loss: after `loss.total.backward()`, with the gradient of `loss.latents.f` retained.
            sparsity_scale: the one that the loss was computed with.
        """
        theta = self.threshold
        if theta is None or not self.needs_samples:
            return
        state = {
            name.removeprefix(ESTIMATOR): value
            for name, value in self.named_buffers()
            if name.startswith(ESTIMATOR)
        }
        norms, scale = self.W_dec.norm(dim=1), sparsity_scale * self.penalty.coefficient
        present = Present(theta, norms, self.curvature(), self.penalty, scale)
        samples = self._samples(loss.latents, present, self.kernel.reach(state))
        tokens = len(loss.latents.pre)
        gradient, state = self.kernel.estimate(state, samples, present, tokens)
        for name, value in state.items():
            self.get_buffer(ESTIMATOR + name).copy_(value)
        with torch.enable_grad():
            differentiable = self.threshold
        assert differentiable is not None
        parameters = self.threshold_parameters
        for parameter, part in zip(
            parameters, torch.autograd.grad(differentiable, parameters, gradient), strict=True
        ):
            parameter.grad = part

    def _samples(
        self, latents: Latents, present: Present, reach: float | Float[Tensor, " d_sae"]
    ) -> Samples:
        """The tokens of a batch within `reach` of thresholds."""
        if latents.f.grad is None:
            raise RuntimeError("estimate_: call loss.latents.f.retain_grad() before backward")
        low, high = present.theta - reach, present.theta + reach
        near = ((latents.pre >= low) & (latents.pre <= high)).nonzero(as_tuple=True)
        latent = near[1]
        pre, f, step = (tensor.detach()[near] for tensor in latents)
        slope = present.penalty.slope(f, present.norms[latent])
        pull = len(latents.f) * latents.f.grad[near] - present.scale * slope
        step_slope = self.penalty.step_slope(latents, self.W_dec)[near]
        return Samples(
            latent=latent,
            pre=pre,
            projection=f * present.curvature[latent] - pull / 2,
            step_slope=step_slope - step * self.penalty.step_curvature,
            weight=torch.ones_like(pre),
        )

    @property
    def _own(self) -> dict[str, Tensor]:
        """The parameters and buffers that the activation declared."""
        return {name: getattr(self, name) for name in self._own_names}

    # -- constraints, scale -----------------------------------------------------------------------

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Removes forbidden parts of the gradient, in place, before an update."""
        if self.W_dec.grad is not None:
            self.decoder.project_gradient_(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def project_parameters_(self) -> None:
        """Restores all constraints, in place, after an update."""
        self.decoder.project_(self.W_dec)
        self.activation.project_(self._own)

    @torch.no_grad()
    def fold_(self, s: float) -> Self:
        """Turns an SAE for x into the SAE for s * x, in place: codes, thresholds and
        reconstructions scale by s, decoder rows stay. Components follow (`Component.rescaled`), so
        loss(s * x) is s^2 times the former loss(x); the estimator's state, in old units, starts
        anew. An SAE trained on normalised activations is folded by their scale before it is saved,
        and then takes raw activations.

        Raises:
            InputError: s is not a positive number.
        """
        if not (s > 0 and math.isfinite(s)):
            raise InputError(f"the activation scale must be a positive number, got {s}")
        for name in self.biases:
            getattr(self, name).mul_(s)
        self.activation.fold_(self._own, s)
        for name, value in self.slots.items():
            if isinstance(value, Component):
                setattr(self, name, value.rescaled(s))
        for name, value in self.kernel.init(self.d_sae).items():
            self.get_buffer(ESTIMATOR + name).copy_(value)
        return self

    def save(self, folder: str | Path) -> None:
        """Writes the SAE as it is (`run` folds it first), its provenance included: weights as
        safetensors, the rest as JSON. `load_sae` reads it back.

        Args:
            folder: made if it does not exist.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
            if not name.startswith(ESTIMATOR)
        }
        write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))
        source = {SOURCE: self.source} if self.source else {}
        config = {
            "format": FORMAT,
            "version": VERSION,
            "architecture": type(self).__name__,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "seed": self.seed,
            "slots": self.slots,
            "provenance": self.provenance | source,
        }
        write_json(folder / CONFIG, config)


def squared_error(
    x: Float[Tensor, "batch d_in"], reconstruction: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """Reconstruction loss: sum over d_in, mean over the batch."""
    return (x - reconstruction).square().sum() / len(x)


def _kind(default: Any) -> type:
    """The type that values of a slot must have: the component base, or the plain type."""
    for base in (Activation, Penalty, Estimator, Decoder):
        if isinstance(default, base):
            return base
    return type(default)
