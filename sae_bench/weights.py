"""Reading weights that somebody else wrote. Nothing is ever unpickled.

Every function raises `InputError` with one line that names the file and, where there is one, the
key.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_bench.errors import InputError

Shape = tuple[int, ...]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: no such file, or not a whole safetensors file.
    """
    try:
        tensors = load_file(_existing(path))
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({_first_line(error)})"
        ) from None
    # Copied, since the tensors read are windows into the file.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz archive.

    Raises:
        InputError: no such file, not a whole archive, or one that holds pickled objects.
    """
    file = _existing(path)
    try:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{path}: a single array, not an .npz archive")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        if strange := [name for name, a in arrays.items() if not isinstance(a, np.ndarray)]:
            raise InputError(f"{path}: {strange[0]!r} is no array")
    except InputError:
        raise
    except Exception as error:  # whatever a damaged archive makes of its reader
        raise InputError(
            f"{path}: not a readable .npz archive of plain arrays ({_first_line(error)})"
        ) from None
    numbers = {
        name: array.astype(array.dtype.newbyteorder("="))
        for name, array in arrays.items()
        if array.dtype.kind in "fiu" and array.dtype.itemsize <= 8
    }
    if strange := sorted(set(arrays) - set(numbers)):
        dtype = arrays[strange[0]].dtype
        raise InputError(f"{path}: array {strange[0]!r} of type {dtype} holds no numbers")
    return {name: torch.from_numpy(array) for name, array in numbers.items()}


def read_state_dict(path: Path) -> dict[str, Any]:
    """A torch file read with `weights_only`: tensors and plain containers, nothing else.

    Raises:
        InputError: no such file, not a whole torch file, one that needs more than tensors and plain
            containers to be read (pickled code is refused, not run), no dictionary by names, or
            tensors without numbers of their own (sparse, nested or meta ones).
    """
    file = _existing(path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # whatever damaged bytes make of the reader, or what it refuses to run
        raise InputError(
            f"{path}: not a readable torch file of tensors alone: it is damaged, or holds objects "
            "whose reading could run code"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path}: no dictionary of tensors by name")
    for name, value in state.items():
        if isinstance(value, Tensor) and not _is_dense(value):
            raise InputError(f"{path}: {name!r} is no plain tensor of numbers")
    return state


def _is_dense(value: Tensor) -> bool:
    return (
        value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized)
    )


def check(
    tensors: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    path: Path,
    kind: str,
    integers: Collection[str] = (),
) -> None:
    """Whether `tensors` are exactly those expected: names, shapes, finite numbers.

    Args:
        tensors: what a file held.
        shapes: name -> shape of every tensor that must be there.
        path: the file, for messages.
        kind: what it should be, for messages.
        integers: the names of those that hold integers.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or type, or not finite.
    """
    if wrong := sorted(set(tensors) ^ set(shapes)):
        fault = "unknown" if wrong[0] in tensors else "missing"
        raise InputError(f"{path}: {fault} tensor {wrong[0]!r} for a {kind}")
    for name, shape in shapes.items():
        value = tensors[name]
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
        if tuple(value.shape) != tuple(shape):
            raise InputError(
                f"{path}: {name!r} has shape {tuple(value.shape)}, expected {tuple(shape)}"
            )
        if not (_is_integer(value) if name in integers else _is_float(value)):
            wanted = "integers" if name in integers else "floating point of 16 bits or more"
            raise InputError(f"{path}: {name!r} is {value.dtype}, expected {wanted}")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name!r} has values that are not finite")


def floats(
    tensors: Mapping[str, Any], shapes: Mapping[str, Shape], path: Path, kind: str
) -> dict[str, Tensor]:
    """`tensors` in float32, if they are exactly those expected; see `check`."""
    check(tensors, shapes, path, kind)
    narrow = {name: tensors[name].to(torch.float32).contiguous() for name in shapes}
    for name, tensor in narrow.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name!r} has values that are too large for float32")
    return narrow


def matrix(tensors: Mapping[str, Any], name: str, path: Path) -> Shape:
    """The shape of the matrix called `name`, from which the others follow.

    Raises:
        InputError: it is missing or no matrix.
    """
    value = tensors.get(name)
    if value is None:
        raise InputError(f"{path}: missing tensor {name!r}")
    if not isinstance(value, Tensor) or value.ndim != 2 or 0 in value.shape:
        raise InputError(f"{path}: {name!r} is no matrix")
    return tuple(value.shape)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    return path


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point() and value.itemsize >= 2


def _is_integer(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as other libraries expect them: float32, contiguous, on the CPU, in memory
    of their own (safetensors refuses ties).

    Raises:
        InputError: numbers that are not finite in this form.
    """
    narrow = {
        name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    for name, tensor in narrow.items():
        if wrong := int((~tensor.isfinite()).sum()):
            raise InputError(
                f"{wrong} of {tensor.numel()} values of {name!r} are too large for float32 in this "
                "format; nothing is written"
            )
    return narrow
