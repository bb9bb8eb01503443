"""The interface that every architecture implements."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_bench.activations import Activation, Latents, ReLU
from sae_bench.annotations import fit, fit_seed, typed
from sae_bench.components import Component, label_of, walk
from sae_bench.decoders import Decoder, UnitRows
from sae_bench.errors import InputError, a
from sae_bench.estimators import BatchKDE, Estimator, as_estimator
from sae_bench.files import check_json, checksum, write_atomically, write_json
from sae_bench.kernels import Kernel
from sae_bench.loss import Loss, squared_error
from sae_bench.penalties import L1, Penalty
from sae_bench.plain import Plain
from sae_bench.projection import Projection, Reach
from sae_bench.slots import Slotted
from sae_bench.sparse import Deferred
from sae_bench.thresholds import ESTIMATOR, WithThresholds
from sae_bench.user_code import source_digest

FORMAT, VERSION = "sae_bench", 2
WEIGHTS, CONFIG = "sae.safetensors", "config.json"
SOURCE = "source"
"""Key of the provenance of saved SAEs under which the hash of a user's code stands."""


class SparseAutoencoder(Slotted, WithThresholds):
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
        self.d_in, self.d_sae = (
            fit(value, int, f"{type(self).__name__}.{name}")
            for name, value in (("d_in", d_in), ("d_sae", d_sae))
        )
        self.seed = fit_seed(seed, f"{type(self).__name__}.seed")
        self.provenance: dict[str, Any] = {}
        self._reach: Reach | None = None
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
        for name in self._own_names:
            if name in SparseAutoencoder.__annotations__ or self._own_names.count(name) > 1:
                raise _taken(self.activation, name)
        for name, value in self.initial(torch.Generator().manual_seed(self.seed)).items():
            if hasattr(self, name):
                raise _taken(self.activation if name in self._own_names else self, name)
            self.register_parameter(name, nn.Parameter(value))
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.register_buffer("silent_tokens", torch.zeros(d_sae, dtype=torch.int64))
        for name, value in self.kernel.init(d_sae).items():
            self.register_buffer(ESTIMATOR + name, value)
        for name in self.biases:
            if not isinstance(getattr(self, name, None), Tensor):
                raise InputError(f"{type(self).__name__}.biases: there is no tensor {name!r}")

    # -- slots ------------------------------------------------------------------------------------

    @classmethod
    def resolve(cls, slots: Mapping[str, Any]) -> dict[str, Any]:
        """`slots` completed by the defaults; a bare kernel becomes the batch estimator around it.

        Raises:
            InputError: unknown slot, or a value that is not what its annotation says.
        """
        values = {**cls.slot_defaults(), **slots}
        if isinstance(values["kernel"], Kernel):
            values["kernel"] = as_estimator(values["kernel"])
        return super().resolve(values)

    @classmethod
    def objection(cls, slots: Mapping[str, Any]) -> str | None:
        """Why a combination of slots has no meaning, or None. `grid` records such cells as skipped
        with this reason."""
        activation, penalty, kernel = (slots[name] for name in ("activation", "penalty", "kernel"))
        if penalty.through_step and (reason := activation.objection_to_step(kernel)):
            return reason
        sampled = activation.trains_threshold and not kernel.is_backward
        if sampled and (reason := penalty.objection_to_samples()):
            return reason
        if penalty.needs_fixed_norms and not slots["decoder"].fixes_norms:
            return (
                f"{penalty.label_without('coefficient')} charges codes, whatever the norms of "
                f"their decoder rows: with {type(slots['decoder']).__name__} use RIL1"
            )
        return activation.objection_to_estimator(kernel, penalty.through_step)

    # -- what architectures override --------------------------------------------------------------

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial value of every parameter: rows of W_dec by the decoder constraint, W_enc its
        transpose (untied afterwards), zero biases, and what the activation needs."""
        W_dec = self.decoder.initial(self.d_sae, self.d_in, generator)
        return {
            "W_enc": W_dec.T.clone(),  # a latent's weights stay together in memory
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
        if self._reach is not None:
            return Deferred(Projection(x, W, b, self.b_dec, self._reach))
        return torch.addmm(b - self.b_dec @ W, x, W).to(b.dtype)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """The codes f, in units of x.

        Raises:
            InputError: x is no tensor of floats of shape (batch, d_in).
        """
        is_tensor = isinstance(x, Tensor) and x.is_floating_point()
        if not is_tensor or x.ndim != 2 or x.shape[1] != self.d_in:
            found = (
                f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else a(type(x).__name__)
            )
            raise InputError(
                f"{type(self).__name__}: takes activations of shape (batch, {self.d_in}), a tensor "
                f"of floats, got {found}"
            )
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

    @contextmanager
    def sparsely(self, most: float) -> Iterator[None]:
        """Losses computed inside, and their gradients, touch only the latents that fire or lie
        within the estimator's reach of their thresholds: the same numbers, sooner.

        Args:
            most: share of all latents of the batch up to which that is tried.

        Raises:
            NeedsDense: there are more, or there is code in the way that no entries are enough for.
        """
        looks_below = self.activation.trains_threshold or self.kernel.to_input
        margin = self.kernel.reach(self.estimator_state) if looks_below else 0.0
        samples = None if self.kernel.to_input else self.kernel.most_samples
        self._reach = Reach(margin, samples, most)
        try:
            yield
        finally:
            self._reach = None

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

    @typed()
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

    @torch.no_grad()
    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes copies of `tensors` in place of its own of those names: values and types as given,
        memory layouts as its own, so that the same values compute the same bits."""
        own = self.state_dict()
        taken = {
            name: torch.empty_like(own[name], dtype=tensor.dtype).copy_(tensor)
            for name, tensor in tensors.items()
        }
        self.load_state_dict(own | taken, assign=True)

    @typed()
    def save(self, folder: str | Path) -> None:
        """Writes the SAE as it is (`run` folds it first), its provenance included: weights as
        safetensors, the rest as JSON. `load_sae` reads it back.

        Args:
            folder: made if it does not exist.

        Raises:
            InputError: it cannot be made, or provenance or a slot holds what JSON cannot.
        """
        folder = Path(folder)
        source = {SOURCE: self.source} if self.source else {}
        config = {
            "format": FORMAT,
            "version": VERSION,
            "architecture": type(self).__name__,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "seed": self.seed,
            "slots": self.slots,
            "provenance": fit(self.provenance, dict, f"{type(self).__name__}.provenance") | source,
        }
        check_json(config, f"{type(self).__name__}.save")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()  # tied ones are refused
            for name, tensor in self.state_dict().items()
            if not name.startswith(ESTIMATOR)
        }
        write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path))
        write_json(folder / CONFIG, config | {"weights": checksum(folder / WEIGHTS)})


def _taken(owner: object, name: str) -> InputError:
    return InputError(
        f"{type(owner).__name__}: the name {name!r} of its tensor is taken; choose another"
    )
