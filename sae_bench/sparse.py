"""Matrices of a batch that look like tensors and hold only the entries of latents that fired.

`Deferred` stands for pre-activations, which are computed where they are asked for; `Sparse` for
codes, steps and all that is computed from them. Code written for tensors runs on either: what has
an exact counterpart on entries is computed there, anything else raises `NeedsDense`, whereupon the
trainer does the whole step again on ordinary tensors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae_bench.projection import NeedsDense, Projection
from sae_bench.sparse_functions import decoded, sums_of_latents, sums_of_tokens
from sae_bench.support import Bounds, Support


class _Matrix(Tensor):
    """A tensor without storage; subclasses know what it is made of.

    A method `on_<name>(func, *args, **kwargs)` is what the torch function of that name does when
    one of its arguments is such a matrix, `on_get_<name>` what reading the attribute does.
    """

    def __new__(cls, shape: tuple[int, int], like: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if not any(isinstance(value, Tensor) for value in kwargs.values()):
            for matrix in _matrices(args):
                if (method := getattr(type(matrix), f"on_{name}", None)) is not None:
                    try:
                        return method(matrix, func, *args, **kwargs)
                    except TypeError as error:  # called in a way that entries have no answer to
                        raise NeedsDense(f"{name} of codes or pre-activations: {error}") from None
            if name in _ELEMENTWISE:
                return _elementwise(func, name, args, kwargs)
        raise NeedsDense(f"{name} of codes or pre-activations")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NeedsDense(f"{func} of codes or pre-activations")

    def on_repr(self, func: Callable, _: Tensor, **__: Any) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"

    def on_new(self, func: Callable, _: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return func(torch.empty(0, dtype=self.dtype, device=self.device), *args, **kwargs)

    on_new_zeros = on_new_ones = on_new_full = on_new_empty = on_new_tensor = on_new

    def on_expand_as(self, func: Callable, other: Tensor, _: Tensor) -> Tensor:
        return other.expand(self.shape)


class Deferred(_Matrix):
    """`projection` + `shift`, then `maps`: elementwise functions of entries and their support."""

    projection: Projection
    shift: Tensor | float | None
    maps: tuple[Callable[[Tensor, Support], Tensor], ...]

    def __new__(
        cls, projection: Projection, shift: Tensor | float | None = None, maps: tuple = ()
    ) -> "Deferred":
        made = super().__new__(cls, projection.shape, projection.x)
        made.projection, made.shift, made.maps = projection, shift, maps
        return made

    @property
    def plain(self) -> Projection:
        """What it is, if nothing was done to it."""
        if self.shift is not None or self.maps:
            raise NeedsDense("a selection of rescaled pre-activations")
        return self.projection

    def at(self, support: Support) -> Float[Tensor, " entries"]:
        """The values of these entries."""
        entries = self.projection.at(support)
        if self.shift is not None:
            entries = entries + _other(self.shift, support)
        for each in self.maps:
            entries = each(entries, support)
        return entries

    def above(self, bound: Tensor | float) -> Support:
        """The support of what is above `bound`, one a latent or one for all."""
        return self.projection.above(self._bound(bound))

    def around(self, theta: Tensor) -> Support:
        """The support of what is above `theta`, and of what the reach wants below it."""
        reach = self.projection.reach
        if reach.samples is None:
            return self.above(theta - reach.margin)
        ends = (theta - reach.margin, theta, theta + reach.margin)
        return self.projection.around(Bounds(*map(self._bound, ends)), reach.samples)

    def _bound(self, bound: Tensor | float) -> Float[Tensor, " d_sae"]:
        """What the projection is compared with."""
        low = self._like(bound)
        if self.maps or low.shape not in (torch.Size(), self.shape[1:]):
            raise NeedsDense("a comparison of rescaled pre-activations, or with a matrix")
        if self.shift is not None:
            low = low - self._like(self.shift)
        return low.expand(self.shape[1]).contiguous()

    def _like(self, value: Tensor | float) -> Tensor:
        """As a tensor on the device of the data, made there: a copy from the host would wait."""
        if isinstance(value, Tensor):
            return value.detach().to(self.dtype)
        return self.projection.b.detach().new_full((), value)

    def on_add(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        other = args[1] if args[0] is self else args[0]
        if self.maps or kwargs or not self._shifts(other):
            return _elementwise(func, "add", args, kwargs)
        return Deferred(self.projection, other if self.shift is None else self.shift + other)

    on_radd = on_add

    def on_sub(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        if self.maps or kwargs or args[0] is not self or not self._shifts(args[1]):
            return _elementwise(func, "sub", args, kwargs)
        return self.on_add(func, self, -args[1])

    def _shifts(self, other: Any) -> bool:
        """Whether it is one number, or one for each latent."""
        if not isinstance(other, Tensor):
            return isinstance(other, float | int)
        return other.shape in (torch.Size(), self.shape[1:]) and not isinstance(other, _Matrix)

    def on_relu(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        if self.maps:
            return _elementwise(func, "relu", args, kwargs)
        support = self.above(0.0)
        return Sparse(support, self.at(support).relu())

    def on_gt(self, func: Callable, _: Tensor, bound: Any) -> Tensor:
        support = self.above(bound)
        return Sparse(support, self.at(support).detach() > _other(bound, support), False)

    def on_index_select(self, func: Callable, _: Tensor, dim: int, index: Tensor) -> Tensor:
        if dim not in (1, -1):
            raise NeedsDense("tokens selected from a batch")
        return self.plain.columns(index)

    def on_detach(self, func: Callable, _: Tensor) -> Tensor:
        shift = self.shift.detach() if isinstance(self.shift, Tensor) else self.shift
        maps = (*self.maps, lambda entries, support: entries.detach())
        return Deferred(self.projection.detached(), shift, maps if self.maps else ())


class Sparse(_Matrix):
    """`entries` at the places of `support`, and one value everywhere else."""

    support: Support
    entries: Shaped[Tensor, " entries"]
    background: float

    def __new__(cls, support: Support, entries: Tensor, background: float = 0.0) -> "Sparse":
        made = super().__new__(cls, support.shape, entries)
        made.support, made.entries, made.background = support, entries, background
        return made

    def dense(self) -> Tensor:
        """The same as an ordinary tensor."""
        full = self.entries.new_full(self.support.shape, self.background)
        place = self.support.tokens.long(), self.support.latents.long()
        return full.index_put(place, self.entries)

    def columns(self, first: int, end: int) -> "Sparse":
        """Columns `first` to `end` - 1."""
        latents = self.support.latents
        kept = (latents >= first) & (latents < end)
        support, chosen = self.support.narrowed(kept, first, end - first)
        return Sparse(support, self.entries[chosen], self.background)

    def on_get_grad(self, func: Callable, _: Tensor) -> Tensor | None:
        grad = self.entries.grad
        return None if grad is None else Sparse(self.support, grad)

    def on_get_requires_grad(self, func: Callable, _: Tensor) -> bool:
        return self.entries.requires_grad

    def on_retain_grad(self, func: Callable, _: Tensor) -> None:
        self.entries.retain_grad()

    def on_requires_grad_(self, func: Callable, _: Tensor, requires: bool = True) -> Tensor:
        self.entries.requires_grad_(requires)
        return self

    def on_grad(self, func: Callable, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if [each is self for each in _matrices((outputs, inputs, *args))] != [True]:
            raise NeedsDense("gradients of several matrices")
        (grad,) = func(outputs, self.entries, *args, **kwargs)
        return (None if grad is None else Sparse(self.support, grad),)

    def on_sum(
        self, func: Callable, _: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Tensor:
        if self.background != 0 or dtype is not None:
            raise NeedsDense("a sum of more than the entries")
        entries = self.entries if self.dtype.is_floating_point else self.entries.long()
        axis = _axis(dim)
        if axis is None:
            return entries.sum()
        sums = (sums_of_latents, sums_of_tokens)[axis](entries, self.support)
        return sums.unsqueeze(axis) if keepdim else sums

    def on_mean(self, func: Callable, _: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        axis, shape = _axis(dim), self.support.shape
        count = shape[0] * shape[1] if axis is None else shape[axis]
        return self.on_sum(func, self, dim, keepdim) / count

    def on_any(self, func: Callable, _: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        if self.background:
            raise NeedsDense("any of more than the entries")
        return Sparse(self.support, self.entries != 0, False).on_sum(func, self, dim, keepdim) > 0

    def on_count_nonzero(self, func: Callable, _: Tensor, dim: Any = None) -> Tensor:
        if self.background:
            raise NeedsDense("a count of more than the entries")
        return Sparse(self.support, self.entries != 0, False).on_sum(func, self, dim)

    def on_amin(self, func: Callable, _: Tensor) -> Tensor:
        return func(self._with_background())

    on_amax = on_min = on_max = on_amin

    def _with_background(self) -> Tensor:
        full = self.support.rows * self.support.width == len(self.support)
        rest = self.entries.new_full((0 if full else 1,), self.background)
        return torch.cat([self.entries, rest])

    def on_addmm(self, func: Callable, base: Tensor, left: Tensor, W: Tensor) -> Tensor:
        width = W.shape[1]
        if left is not self or base.shape not in ((width,), (self.support.rows, width)):
            raise NeedsDense("a product with codes on the right")
        return decoded(base, self.entries, W, self._product_support())

    def on_matmul(self, func: Callable, left: Tensor, W: Tensor) -> Tensor:
        if left is not self or W.ndim != 2:
            raise NeedsDense("a product with codes on the right")
        return decoded(W.new_zeros(W.shape[1]), self.entries, W, self._product_support())

    on_mm = on_matmul

    def _product_support(self) -> Support:
        if self.background != 0 or not self.dtype.is_floating_point:
            raise NeedsDense("a product with more than the entries")
        return self.support

    def on_split(self, func: Callable, _: Tensor, sizes: Any, dim: int = 0) -> tuple[Tensor, ...]:
        if _axis(dim) != 1:
            raise NeedsDense("a batch split into tokens")
        width = self.support.width
        if isinstance(sizes, int):
            sizes = [min(sizes, width - first) for first in range(0, width, sizes)]
        ends = list(accumulate(sizes, initial=0))
        return tuple(self.columns(*each) for each in pairwise(ends))

    def on_getitem(self, func: Callable, _: Tensor, index: Any) -> Tensor:
        if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)):
            raise NeedsDense("single codes or tokens of a batch")
        if not isinstance(index[1], slice) or index[1].step not in (None, 1):
            raise NeedsDense("single latents of a batch")
        return self.columns(*index[1].indices(self.support.width)[:2])


def within(
    low: Float[Tensor, " d_sae"],
    high: Float[Tensor, " d_sae"],
    pre: Float[Tensor, "batch d_sae"],
    *others: Shaped[Tensor, "batch d_sae"],
) -> tuple[Int[Tensor, " chosen"], list[Shaped[Tensor, " chosen"]]]:
    """Where low <= pre <= high: the latents, and the values there of `pre` and the others, without
    gradients."""
    f = next((each for each in others if isinstance(each, Sparse)), None)
    if f is None:
        near = ((pre >= low) & (pre <= high)).nonzero(as_tuple=True)
        return near[1], [each.detach()[near] for each in (pre, *others)]
    support, latents = f.support, f.support.latents
    entries = _other(pre, support).detach()
    near = ((entries >= low[latents]) & (entries <= high[latents])).nonzero()[:, 0]
    chosen = [entries, *(_entries(each, support).detach() for each in others)]
    return latents[near].long(), [each.index_select(0, near) for each in chosen]


def _entries(value: Tensor, support: Support) -> Tensor:
    if isinstance(value, _Matrix):
        return _other(value, support)
    return value[support.tokens, support.latents]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABOUT = _names("""
    get_shape get_dtype get_device get_layout get_ndim get_is_cuda size dim numel nelement len
    is_floating_point is_complex element_size stride is_contiguous
""")
"""What the wrapper itself knows."""

_ELEMENTWISE = _names("""
    relu tanh sigmoid abs absolute square sqrt neg negative sign exp expm1 log log1p pow rpow
    reciprocal clamp clamp_min clamp_max clip isfinite isnan isinf logical_not logical_and
    logical_or invert and or add radd sub rsub mul rmul div rdiv truediv rtruediv true_divide
    gt ge lt le eq ne maximum minimum where masked_fill to type type_as float double bool int long
    detach clone contiguous softplus silu gelu erf
""")
"""Functions of each element alone."""

_PRODUCTS = _names("mul rmul div truediv true_divide")
"""Functions that are 0 where their first argument (of a product: any) is."""


def _name(func: Callable) -> str:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return f"get_{func.__self__.__name__}"  # type: ignore[attr-defined]
    return name.strip("_") if name.endswith("__") else name


def _matrices(args: Iterable[Any]) -> Iterator[_Matrix]:
    for each in args:
        if isinstance(each, _Matrix):
            yield each
        elif isinstance(each, tuple | list):
            yield from _matrices(each)


def _axis(dim: Any) -> int | None:
    if isinstance(dim, tuple | list) and len(dim) == 1:
        (dim,) = dim
    if dim is None or dim in (0, 1):
        return dim
    if dim in (-1, -2):
        return dim + 2
    raise NeedsDense(f"a reduction over {dim}")


def gathered(tensor: Tensor, support: Support) -> Tensor:
    """A tensor that broadcasts against the matrix, at its entries."""
    if tensor.ndim == 0:
        return tensor
    if tensor.shape in ((support.width,), (1, support.width)):
        return tensor.reshape(-1).index_select(0, support.latents)
    if tensor.shape == (support.rows, 1):
        return tensor.reshape(-1).index_select(0, support.tokens)
    raise NeedsDense(f"codes beside a tensor of shape {tuple(tensor.shape)}")


def _other(value: Any, support: Support) -> Any:
    """Any argument of an elementwise function, at the entries."""
    if isinstance(value, Sparse):
        if value.support is not support:
            raise NeedsDense("codes that fired at other places")
        return value.entries
    if isinstance(value, Deferred):
        return value.at(support)
    return gathered(value, support) if isinstance(value, Tensor) else value


def _elementwise(
    func: Callable, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    matrices = list(_matrices(args))
    sparse = next((each for each in matrices if isinstance(each, Sparse)), None)
    if sparse is not None:
        support = sparse.support
        entries = func(*(_other(each, support) for each in args), **kwargs)
        if entries.device != sparse.device:
            raise NeedsDense("codes brought to another device")
        return Sparse(support, entries, _background(func, name, args, kwargs))
    deferred = matrices[0]
    assert isinstance(deferred, Deferred)
    if any(each is not deferred for each in matrices):
        raise NeedsDense("a function of two matrices of pre-activations")

    def mapped(entries: Tensor, support: Support) -> Tensor:
        here = (entries if each is deferred else _other(each, support) for each in args)
        return func(*here, **kwargs)

    return Deferred(deferred.projection, deferred.shift, (*deferred.maps, mapped))


@torch.no_grad()
def _background(
    func: Callable, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float:
    """What the function gives beside the entries."""
    sparse = [each for each in args if isinstance(each, Sparse)]
    others = [each for each in args if isinstance(each, Tensor) and not isinstance(each, Sparse)]
    if any(each.numel() > 1 or each.requires_grad for each in others):
        factors = (
            sparse if name in ("mul", "rmul") else sparse[:1] if isinstance(args[0], Sparse) else []
        )
        if name in _PRODUCTS and any(each.background == 0 for each in factors):
            return 0.0
        raise NeedsDense(f"{name} of codes and of what differs between latents")
    device = others[0].device if others else None
    here = (
        torch.full((), each.background, dtype=each.dtype, device=device)
        if isinstance(each, Sparse)
        else each
        for each in args
    )
    return func(*here, **kwargs).item()
