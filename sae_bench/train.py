"""Lockstep training: all arms of a group consume one pass over one stream of batches."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_bench.arm import Arm
from sae_bench.checkpoints import Checkpoints, State
from sae_bench.devices import default_device, free_memory, give_memory_back, keeping_memory
from sae_bench.errors import InputError, one_line
from sae_bench.paths import MOST, path_on
from sae_bench.progress import Progress
from sae_bench.projection import NeedsDense
from sae_bench.sae import Loss, SparseAutoencoder
from sae_bench.signals import Held, held_signals
from sae_bench.source import ActivationSource
from sae_bench.waves import memory_need, waves

LOGGED = 100
"""Rows of training history kept for each arm."""


@dataclass
class Trained:
    """What training leaves of one arm.

    sae: in normalised units, not yet folded; None if it could not be built. reason: why it failed,
    or None. history: one row a logged step (step, tokens, lr, sparsity_scale, l0, fvu, and the
    terms of the loss). seconds: time spent in this arm's own steps. path: what the choice between
    sparse and dense steps rests on, if that was measured. out_of_memory: the machine's fault, not
    the arm's: its checkpoints stay.
    """

    arm: Arm
    sae: SparseAutoencoder | None
    reason: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    path: str = ""
    out_of_memory: bool = False


class Trainee:
    """One arm in training: its SAE, its optimiser and its history. Knows nothing of other arms."""

    def __init__(self, arm: Arm, d_in: int, device: torch.device) -> None:
        self.arm, self.recipe = arm, arm.recipe
        self.sae = arm.build(d_in).to(device).train()
        self.result = Trained(arm, self.sae)
        self._loss: Callable[..., Loss] = self.sae.loss
        if self.recipe.compile:
            if self.sae.needs_samples:
                raise InputError(
                    f"{arm.slots['kernel'].label} needs the gradients of the codes, which a "
                    "compiled loss does not give; use compile=False"
                )
            self._loss = torch.compile(self.sae.loss)
        thresholds = self.sae.threshold_parameters
        own = {id(parameter) for parameter in thresholds}
        self._stored = {name: _as_stored(each) for name, each in self.sae.named_parameters()}
        groups: tuple[list[nn.Parameter], ...] = ([], [])
        for name, parameter in self.sae.named_parameters():
            groups[id(parameter) in own].append(self._stored[name])
        self._rates = [self.recipe.lr, self.recipe.threshold_lr or self.recipe.lr]
        self._optimiser = torch.optim.Adam(
            [{"params": group} for group in groups],
            lr=self.recipe.lr,
            betas=self.recipe.betas,
            eps=self.recipe.adam_eps,
            fused=True,
        )
        for stored in self._stored.values():  # now, not among the first step's temporaries
            self._optimiser.state[stored] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(stored, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(stored, memory_format=torch.preserve_format),
            }
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._observed = False
        self.path = path_on(device, not (self.recipe.compile or self.recipe.autocast))

    def step(self, index: int, x: Float[Tensor, "batch d_in"]) -> Loss:
        """One optimiser step on a normalised batch; `index` counts from 0."""
        loss = self.gradients(index, x)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.recipe.lr_factor(index)
        self._update()
        self.sae.project_parameters_()
        self.sae.observe(loss.latents)
        self._finite &= loss.total.detach().isfinite()
        return loss

    def gradients(self, index: int, x: Float[Tensor, "batch d_in"]) -> Loss:
        """The loss of a batch, with the gradients of the update in the parameters."""
        if index == 0 and self.recipe.centre:
            self.sae.b_dec.data.copy_(x.mean(0))
        loss = self._along_path(index, x)
        self.sae.project_gradients_()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.recipe.clip)
        return loss

    def _along_path(self, index: int, x: Float[Tensor, "batch d_in"]) -> Loss:
        if not self.path.is_sparse:
            with self.path.step():
                loss = self._backward(index, x)
            self.path.passed()
            return loss
        try:
            with self.path.step(), self.sae.sparsely(MOST):
                return self._backward(index, x)
        except self.path.survived as reason:
            self.path.close(reason)
        return self._backward(index, x)  # not inside `except`, which holds what the attempt made

    def _try_counters(self, loss: Loss) -> None:
        """Whether the counters, too, can do with entries: once, on a copy.

        Raises:
            NeedsDense: they cannot, or there is no copying this SAE.
        """
        if self._observed:
            return
        try:
            twin = copy.deepcopy(self.sae)
        except Exception as error:  # whatever a user's class holds
            raise NeedsDense(f"{type(self.sae).__name__} cannot be copied: {error}") from None
        twin.observe(loss.latents)
        self._observed = True

    def _backward(self, index: int, x: Float[Tensor, "batch d_in"]) -> Loss:
        self.sae.zero_grad(set_to_none=True)
        scale = self.recipe.sparsity_scale(index)
        with (
            self.sae.thresholds_left_to_estimator(),
            torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.autocast),
        ):
            loss = self._loss(x, scale)
        if self.path.is_sparse:
            self._try_counters(loss)  # before an estimator's state goes on
        if self.sae.needs_samples:
            loss.latents.f.retain_grad()
        loss.total.backward()
        self.sae.estimate_(loss, scale)
        return loss

    def _update(self) -> None:
        """An optimiser step; gradients are one arm's at a time."""
        for name, parameter in self.sae.named_parameters():
            stored, grad = self._stored[name], parameter.grad
            if stored is not parameter:
                stored.grad = None if grad is None else grad.T
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.sae.zero_grad(set_to_none=True)

    def log(self, index: int, x: Float[Tensor, "batch d_in"], loss: Loss) -> None:
        """Appends one row of history; changes nothing else.

        Raises:
            FloatingPointError: the loss was not finite at some step since the start, or a parameter
                is not finite now.
        """
        if not self._finite:
            raise FloatingPointError(f"diverged: loss not finite by step {index + 1}")
        if not all(parameter.isfinite().all() for parameter in self.sae.parameters()):
            raise FloatingPointError(f"diverged: parameters not finite by step {index + 1}")
        with torch.no_grad():
            error = (x - loss.reconstruction).square().sum()
            fvu = error / (x - x.mean(0)).square().sum()
            l0 = (loss.latents.f > 0).sum() / len(x)
        self.result.history.append(
            {
                "step": index + 1,
                "tokens": (index + 1) * len(x),
                "lr": self.recipe.lr * self.recipe.lr_factor(index),
                "sparsity_scale": self.recipe.sparsity_scale(index),
                "l0": l0.item(),
                "fvu": fvu.item(),
                **{name: term.item() for name, term in loss.terms.items()},
            }
        )

    def advance(self, index: int, x: Float[Tensor, "batch d_in"]) -> bool:
        """One step, logged when it is due. An error or a divergence ends this arm alone.

        Returns:
            Whether the arm goes on.
        """
        started = time.perf_counter()
        last = index + 1 == self.recipe.steps
        try:
            loss = self.step(index, x)
            if last or (index + 1) % max(1, self.recipe.steps // LOGGED) == 0:
                self.log(index, x, loss)
        except Exception as error:  # whatever an arm does, the others go on
            self.result.reason = _reason(error)
            self.result.out_of_memory = _is_out_of_memory(error)
        self.result.seconds += time.perf_counter() - started
        ended = last or self.result.reason is not None
        if ended:
            self.result.path = self.path.finding
        return not ended

    def state(self, step: int) -> State:
        """What it is after `step` steps; the tensors are its own, not copies."""
        tensors = {
            **{f"sae.{name}": tensor for name, tensor in self._sae_tensors().items()},
            **{
                f"adam.{name}.{moment}": tensor
                for name, stored in self._stored.items()
                for moment, tensor in self._optimiser.state[stored].items()
            },
            "finite": self._finite,
            **self.path.tensors,
        }
        return State(step, tensors, self.result.history, self.result.seconds)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Becomes, bit for bit, what `state` was taken of. Memory layouts are those of this SAE.

        Raises:
            InputError: it was taken of another SAE.
        """
        saved, own = dict(state.tensors), self._sae_tensors()
        self._finite.copy_(saved.pop("finite"))
        of_path = {name: saved.pop(name) for name in state.tensors if name.startswith("path")}
        self.path.restore(of_path)
        of_sae = {name: saved.pop(f"sae.{name}", None) for name in own}
        for name, tensor in own.items():
            found = of_sae[name]
            if found is None or found.shape != tensor.shape:
                raise InputError(f"its checkpoint lacks such a {name}; run again to start anew")
            tensor.copy_(found)
        for name, tensor in saved.items():
            owner, _, moment = name.removeprefix("adam.").rpartition(".")
            stored = self._stored[owner]
            kept = torch.empty_like(stored) if tensor.ndim else torch.empty_like(tensor)
            self._optimiser.state[stored][moment] = kept.to(stored.device).copy_(tensor)
        self.result.history = [dict(row) for row in state.history]
        self.result.seconds = state.seconds

    def _sae_tensors(self) -> dict[str, Tensor]:
        return dict(chain(self.sae.named_parameters(), self.sae.named_buffers()))


def _as_stored(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, or its transpose if that is how it lies in memory: the fused optimiser would
    copy it back and forth."""
    if parameter.ndim != 2 or parameter.is_contiguous() or not parameter.T.is_contiguous():
        return parameter
    return nn.Parameter(parameter.data.T)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FloatingPointError) else one_line(error)


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def group_key(arm: Arm) -> tuple[Any, ...]:
    """Arms with equal keys see the same batches and are trained together."""
    return arm.recipe.batch_size, arm.recipe.data_seed


def train(
    arms: Iterable[Arm],
    source: ActivationSource,
    *,
    device: str | torch.device | None = None,
    memory: int | None = None,
    finished: Callable[[Trained], None] = lambda trained: None,
    checkpoints: Checkpoints | None = None,
) -> list[Trained]:
    """Trains arms on one source, group by group, wave by wave.

    Lockstep is invisible: every arm ends with the bits it would have had alone, whatever the
    others do (on accelerators up to the choice of paths, which a clock makes), since each has its
    own optimiser and sees the batches that its recipe's `data_seed` and `batch_size` name. That is
    also why an arm can go on from a checkpoint with whatever arms stand at the same step.

    Args:
        arms: cells with meaning (`arm.objection` is None).
        source: gives normalised batches (E||x||^2 = 1).
        device: where to train; None: the accelerator if there is one.
        memory: bytes that a wave may take; None: 80% of what is free on the device.
        finished: called with each arm as soon as it ends, trained or failed; what it does not keep
            is trained again after a kill.
        checkpoints: where arms under way are found and kept; those of an arm that ended are
            removed. SIGINT and SIGTERM then wait for the end of a step and for its checkpoint.

    Returns:
        In the order of `arms`.

    Raises:
        KeyboardInterrupt, SystemExit: a signal asked for it.
    """
    arms = list(arms)
    device = default_device(device)
    budget = memory if memory is not None else int(0.8 * free_memory(device))
    groups: dict[tuple[Any, ...], list[Arm]] = {}
    for arm in arms:
        start = checkpoints.newest(arm) if checkpoints else 0
        groups.setdefault((start, *group_key(arm)), []).append(arm)

    def ended(trained: Trained) -> None:
        finished(trained)
        if checkpoints is not None and not trained.out_of_memory:
            checkpoints.drop(trained.arm)

    results: dict[int, Trained] = {}
    for (start, *_), group in groups.items():
        needs = [memory_need(arm, source.d_in) for arm in group]
        for wave in waves(group, needs, budget):
            for trained in _train_wave(wave, source, device, start, ended, checkpoints):
                results[id(trained.arm)] = trained
    return [results[id(arm)] for arm in arms]


def _train_wave(
    arms: list[Arm],
    source: ActivationSource,
    device: torch.device,
    start: int,
    ended: Callable[[Trained], None],
    checkpoints: Checkpoints | None,
) -> list[Trained]:
    """One pass, from step `start` on: where that is not 0, the arms have checkpoints there."""
    trainees, results = [], []
    give_memory_back()
    for arm in arms:
        try:
            trainee = Trainee(arm, source.d_in, device)
            if checkpoints is not None and start:
                trainee.restore(checkpoints.load(arm, start))
            trainees.append(trainee)
            results.append(trainee.result)
        except Exception as error:
            reason, out_of_memory = _reason(error), _is_out_of_memory(error)
            results.append(Trained(arm, None, reason, out_of_memory=out_of_memory))
            ended(results[-1])
    if not trainees:
        return results
    if checkpoints is not None:
        checkpoints.begin(trainee.arm for trainee in trainees)
    batch_size, data_seed = group_key(arms[0])
    steps = max(arm.recipe.steps for arm in arms)
    running = trainees
    name = f"training {len(arms)} arms"
    batches = source.batches(batch_size, data_seed, start)
    first = next(batches)  # a stream may take long to get here: nothing to hold a signal back for
    holding = nullcontext(Held()) if checkpoints is None else held_signals()
    with (
        Progress(name, steps, "steps", start) as progress,
        holding as signals,
        keeping_memory(),
    ):
        for index, x in zip(range(start, steps), chain([first], batches), strict=False):
            going = []
            for trainee in running:
                if trainee.advance(index, x):
                    going.append(trainee)
                else:
                    ended(trainee.result)
            running = going
            progress.note(_live(trainees))
            progress.update()
            if checkpoints is not None and running and (signals.number or checkpoints.is_due):
                checkpoints.save([(each.arm, each.state(index + 1)) for each in running])
            signals.obey()
            if not running:
                break
    return results


def _live(trainees: list[Trainee]) -> str:
    """Spread of the newest L0 and FVU over arms, for the progress bar."""
    rows = [trainee.result.history[-1] for trainee in trainees if trainee.result.history]
    if not rows:
        return ""
    l0, fvu = ([row[name] for row in rows if math.isfinite(row[name])] for name in ("l0", "fvu"))
    return f"L0 {min(l0):.0f}-{max(l0):.0f} FVU {min(fvu):.3f}-{max(fvu):.3f}" if l0 and fvu else ""
