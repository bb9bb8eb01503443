"""Sites: the places of a language model where activations are read and replaced.

Names, for decoder layer N counted from 0:

| name | tensor |
|---|---|
| `layers.N.resid_pre` | residual stream that enters the layer |
| `layers.N.resid_post` | residual stream that leaves it |
| `layers.N.mlp_out` | what the MLP adds to the stream (after its post-norm, where there is one) |
| `layers.N.attn_z` | outputs of all heads, concatenated: the input of the projection W_O |
| any module path | output of that module (the first one, if it has several) |

Nothing here knows a model by its name: the layers, the MLP and the projection are found among the
modules, and what is found is verified by running three tokens through the model.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_bench.errors import InputError
from sae_bench.models import LanguageModel

# First match wins: post-norms, then last matrices (the `mlp` of BLOOM and the `ffn` of MPT add the
# residual stream by themselves), then whole MLPs.
_MLP_OUTPUTS = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "mlp.dense_4h_to_h",
    "ffn.down_proj",
    "mlp",
    "feed_forward",
    "ffn",
    "block_sparse_moe",
)
_OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "dense", "out_proj", "wo")


@dataclass(frozen=True)
class Site:
    """A place in a model, as `resolve_site` found it.

    Attributes:
        name: what the user calls it.
        d_in: width of its activations.
        depth: index of the decoder layer it lies in; -1 before the layers, n_layers after them.
        module: path of the module that is hooked; `at_input` tells its input from its output.
        skippable: how many decoder layers a pass that replaces this site's value need not run.
    """

    name: str
    d_in: int
    depth: int
    module: str
    at_input: bool
    skippable: int


def resolve_site(lm: LanguageModel, name: str) -> Site:
    """The site that `name` means in this model.

    Raises:
        InputError: there is no such layer, kind of site or module, the module is not run by a
            forward pass, or its value is not of shape (batch, pos, d_in).
    """
    module, at_input = _find(lm, name)
    ids = torch.arange(3).expand(2, 3) % lm.model.get_input_embeddings().weight.shape[0]
    mask = torch.ones_like(ids, dtype=torch.bool)
    site = Site(name, d_in=0, depth=-1, module=module, at_input=at_input, skippable=0)

    finished: list[int] = []
    with ExitStack() as stack:
        for index, layer in enumerate(lm.layers):
            hook = layer.register_forward_hook(lambda *_, index=index: finished.append(index))
            stack.callback(hook.remove)
        value = _run_until(lm, ids, mask, [site])[name]
    if value.shape[:2] != ids.shape or value.ndim != 3 or not value.is_floating_point():
        raise InputError(
            f"site {name!r}: module {module} gives a tensor of shape {tuple(value.shape)} for 2 "
            "contexts of 3 tokens; a site has shape (batch, pos, d_in)"
        )

    inside = re.match(re.escape(lm.layers_path) + r"\.(\d+)", module)
    depth = int(inside[1]) if inside else len(finished) or -1
    is_layer_output = module == f"{lm.layers_path}.{depth}" and not at_input
    site = replace(
        site, d_in=value.shape[2], depth=depth, skippable=max(depth, 0) + is_layer_output
    )
    return site if _resumes(lm, ids, mask, site) else replace(site, skippable=0)


def capture(
    lm: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    sites: Sequence[Site],
) -> dict[str, Float[Tensor, "batch pos _"]]:
    """Activations at several sites (by name) from one forward pass, which stops at the deepest one.

    The tensors have the model's dtype and device, no gradient, and can be used in training; at
    positions where `mask` is False they mean nothing.
    """
    return _run_until(lm, ids, mask, sites)


@dataclass(frozen=True)
class Resumable:
    """A clean forward pass that can be taken up again at a site, made by `resume_at`.

    Attributes:
        activations: the clean value at the site, (batch, pos, d_in).
        logits: the clean logits, (batch, pos, vocab).
        entered: what the last skippable layer returned in the clean pass; None if there is none.
    """

    lm: LanguageModel
    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    site: Site
    activations: Float[Tensor, "batch pos d_in"]
    logits: Float[Tensor, "batch pos vocab"]
    entered: Any

    def logits_with(
        self, replacement: Float[Tensor, "batch pos d_in"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits with the site's value replaced, equal to a full pass that replaces it.

        Only what comes after the site is run: every skippable layer answers at once with what
        the last of them returned in the clean pass. Gradients flow to `replacement` if it
        requires them.
        """
        skipped = self.lm.layers[: self.site.skippable]
        # Copies, because a model may add to its hidden state in place.
        answer = _with_first(self.entered, _first(self.entered).clone()) if len(skipped) else None
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and replacement.requires_grad),
            _answering(skipped, answer),
            _hooked(
                self.lm,
                self.site,
                lambda clean: replacement.to(clean.device, clean.dtype, copy=True),
            ),
        ):
            return self.lm.logits(self.ids, self.mask)


def resume_at(
    lm: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    site: Site,
) -> Resumable:
    """Runs the model once and keeps what is needed to run only the part after `site` again."""
    values: dict[str, Any] = {"entered": None}

    def keep_value(value: Tensor) -> None:
        values["activations"] = value.clone()

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        values["entered"] = _with_first(output, _first(output).clone())

    with torch.no_grad(), ExitStack() as stack:
        if site.skippable:
            hook = lm.layers[site.skippable - 1].register_forward_hook(keep_output)
            stack.callback(hook.remove)
        stack.enter_context(_hooked(lm, site, keep_value))
        logits = lm.logits(ids, mask)
    return Resumable(lm, ids, mask, site, logits=logits, **values)


def logits_from(
    lm: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    site: Site,
) -> tuple[Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos vocab"]]:
    """The clean value at the site, as a leaf that requires gradients, and the clean logits as a
    function of it, from one forward pass. Of what comes before the site nothing is kept: there is
    no gradient to compute there."""
    leaves: list[Tensor] = []

    def detach(value: Tensor) -> Tensor:
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1].clone()  # some models add to it in place, which a leaf forbids

    with torch.enable_grad(), _hooked(lm, site, detach):
        logits = lm.logits(ids, mask)
    return leaves[0], logits


# --- finding the module -------------------------------------------------------------------------


def _find(lm: LanguageModel, name: str) -> tuple[str, bool]:
    """Path of the module to hook, and whether the site is its input."""
    match = re.fullmatch(r"layers\.(-?\d+)\.(\w+)", name)
    if match and match[2] in _KINDS:
        index = int(match[1])
        if not 0 <= index < lm.n_layers:
            raise InputError(f"site {name!r}: the model has layers 0..{lm.n_layers - 1}")
        path, at_input = _KINDS[match[2]](lm.layers[index], name)
        return ".".join(filter(None, (lm.layers_path, str(index), path))), at_input
    paths = [path for path, _ in lm.model.named_modules() if path]
    if name in paths:
        return name, False
    close = difflib.get_close_matches(name, paths, n=1, cutoff=0.0)
    raise InputError(
        f"unknown site {name!r}: the model has layers.N.{{{','.join(_KINDS)}}} for N in "
        f"0..{lm.n_layers - 1}, and its module paths (nearest: {close[0]})"
    )


def _mlp_output(layer: nn.Module, name: str) -> tuple[str, bool]:
    paths = {path for path, _ in layer.named_modules()}
    for candidate in _MLP_OUTPUTS:
        if candidate in paths:
            return candidate, False
    raise InputError(
        f"site {name!r}: no MLP among {_children(layer)}; give its module path instead"
    )


def _attention_projection(layer: nn.Module, name: str) -> tuple[str, bool]:
    found = []
    for path, _ in layer.named_modules():
        owner, _, last = path.rpartition(".")
        attends = "attn" in owner or "attention" in owner
        if last in _OUTPUT_PROJECTIONS and attends and "cross" not in owner:
            found.append(path)
    if len(found) != 1:
        what = f"several output projections ({', '.join(found)})" if found else "none"
        raise InputError(
            f"site {name!r}: expected one attention output projection, found {what} "
            f"among {_children(layer)}"
        )
    return found[0], True


def _children(layer: nn.Module) -> str:
    return ", ".join(child for child, _ in layer.named_children())


_KINDS: dict[str, Callable[[nn.Module, str], tuple[str, bool]]] = {
    "resid_pre": lambda layer, name: ("", True),
    "resid_post": lambda layer, name: ("", False),
    "mlp_out": _mlp_output,
    "attn_z": _attention_projection,
}


# --- hooks --------------------------------------------------------------------------------------


class _Reached(Exception):
    """Ends a forward pass once all sites have been read."""


def _run_until(
    lm: LanguageModel, ids: Tensor, mask: Tensor, sites: Sequence[Site]
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    wanted = {site.name for site in sites}

    def keep(name: str) -> Callable[[Tensor], None]:
        def edit(value: Tensor) -> None:
            values[name] = value.clone()  # some models add to it in place later
            if values.keys() == wanted:
                raise _Reached

        return edit

    # no_grad and not inference_mode: training must be able to save these tensors for its backward.
    with torch.no_grad(), ExitStack() as stack:
        for site in sites:
            stack.enter_context(_hooked(lm, site, keep(site.name)))
        try:
            lm.logits(ids, mask)
        except _Reached:
            return values
    missing = ", ".join(sorted(wanted - values.keys()))
    raise InputError(f"site {missing}: its module is not run by a forward pass of the model")


@contextmanager
def _hooked(
    lm: LanguageModel, site: Site, edit: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """While active, `edit` sees the value at the site and may return another one."""

    def at_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            changed = edit(args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        key = next(iter(kwargs))
        changed = edit(kwargs[key])
        return None if changed is None else (args, {**kwargs, key: changed})

    def at_output(module: nn.Module, args: Any, output: Any) -> Any:
        changed = edit(_first(output))
        return None if changed is None else _with_first(output, changed)

    module = lm.model.get_submodule(site.module)
    if site.at_input:
        hook = module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        hook = module.register_forward_hook(at_output)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _answering(layers: nn.ModuleList, answer: Any) -> Iterator[None]:
    """While active, calling one of `layers` returns `answer` at once."""
    originals = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = lambda *_args, **_kwargs: answer
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            del layer.forward
            if original is not None:  # other libraries wrap it in this way, too
                layer.forward = original


def _first(output: Any) -> Tensor:
    """The activations in what a module returned: the tensor, or the first of several."""
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor):
        raise InputError(f"a site must be a tensor, and this module gives a {type(value).__name__}")
    return value


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _resumes(lm: LanguageModel, ids: Tensor, mask: Tensor, site: Site) -> bool:
    """Whether skipping leaves the logits as they are: false for models whose layers hand on more
    than the residual stream, such as keys and values that later layers share."""
    run = resume_at(lm, ids, mask, site)
    try:
        with torch.no_grad():
            resumed = run.logits_with(run.activations)
    except (LookupError, AttributeError, TypeError):  # a layer found nothing where another left it
        return False
    return torch.allclose(resumed.float(), run.logits.float(), rtol=1e-3, atol=1e-3, equal_nan=True)
