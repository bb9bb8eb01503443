"""What may go wrong with a saved SAE, and that each mistake is named in one line."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from architectures import ReLUSAE
from sae_bench.activations import JumpReLU, RawThreshold
from sae_bench.decoders import FreeRows
from sae_bench.errors import InputError
from sae_bench.files import checksum, read_json, write_atomically, write_json
from sae_bench.loading import load_sae
from sae_bench.penalties import L0, L1, RIL1
from sae_bench.sae import SparseAutoencoder
from tests.refusals import refused
from tests.small import small_batch, small_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved SAE with a threshold."""
    small_sae(SparseAutoencoder, activation=JumpReLU(RawThreshold(0.2)), penalty=L0(0.1)).save(
        tmp_path
    )
    return tmp_path


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / "sae.safetensors").read_bytes())


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = read_tensors(folder)
    edit(tensors)
    save_file(tensors, folder / "sae.safetensors")
    weights = checksum(folder / "sae.safetensors")
    edit_config(folder, lambda config: config.update(weights=weights))


def test_the_folder_is_readable_as_it_is(folder: Path) -> None:
    assert isinstance(load_sae(str(folder)), SparseAutoencoder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format="other"), "not the config of an SAE saved by this library"),
        (lambda c: c.pop("format"), "not the config of an SAE saved by this library"),
        (lambda c: c.update(version=1), "version 1, this library reads 2"),
        (lambda c: c.update(extra=1), "unknown key 'extra'"),
        (lambda c: c.pop("seed"), "missing key 'seed'"),
        (lambda c: c.update(d_in="6"), ".d_in: expected int, got '6'"),
        (lambda c: c.update(seed=None), ".seed: expected int, got None"),
        (lambda c: c.update(slots=[]), ".slots: expected dict, got []"),
        (lambda c: c.update(seed=2**70), ".seed: 1.181e+21 is no seed of 64 bits"),
        (lambda c: c.update(d_in=0), ".d_in: says 0, but sae.safetensors has 6"),
        (lambda c: c.update(d_sae=10**15), ".d_sae: says 1000000000000000, but sae.safetensors"),
        (lambda c: c.update(architecture="NoSAE"), ".architecture: unknown SparseAutoencoder"),
        (lambda c: c["slots"].update(colour=1), "unknown argument 'colour'"),
        (lambda c: c["slots"].update(penalty=1), ".penalty: expected a Penalty, got 1"),
        (lambda c: c["slots"]["penalty"].update({"class": "L7"}), ".slots.penalty: unknown"),
        (lambda c: c["slots"]["penalty"].update(weight=1), ".slots.penalty: L0 has no field"),
        (lambda c: c["slots"]["penalty"].pop("coefficient"), ".slots.penalty: L0: "),
        (
            lambda c: c["slots"]["activation"]["form"].update(start=-1.0),
            ".slots.activation.form: RawThreshold: start must be a number >= 0, got -1.0",
        ),
        (
            lambda c: c["slots"]["activation"]["form"].update(start=1e308),
            ": SparseAutoencoder cannot be built from its slots (RuntimeError: value cannot be",
        ),
        (lambda c: c["slots"].update(activation={"class": "ReLU"}), "ReLU has no threshold"),
    ],
)
def test_a_wrong_config_is_named(folder: Path, edit: Any, message: str) -> None:
    edit_config(folder, edit)
    refused(folder, "config.json", message)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", pickle.dumps({"format": 1})])
def test_a_config_that_is_no_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json", "not valid JSON")


@pytest.mark.parametrize("value", [[], 3, None, "sae_bench"])
def test_a_config_of_another_kind_is_named(folder: Path, value: Any) -> None:
    (folder / "config.json").write_text(json.dumps(value))
    refused(folder, "config.json", "not the config of an SAE saved by this library")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("b_dec"), "missing tensor 'b_dec' for a SparseAutoencoder"),
        (lambda t: t.pop("raw_threshold"), "missing tensor 'raw_threshold'"),
        (lambda t: t.update(bias=torch.zeros(2)), "unknown tensor 'bias' for a SparseAutoencoder"),
        (
            lambda t: t.update(W_enc=torch.zeros(16, 6)),
            "'W_enc' has shape (16, 6), expected (6, 16)",
        ),
        (lambda t: t["W_dec"][3].fill_(torch.nan), "'W_dec' has values that are not finite"),
        (lambda t: t["raw_threshold"][3].fill_(torch.inf), "'raw_threshold' has values that are"),
        (
            lambda t: t.update(b_enc=torch.zeros(16, dtype=torch.int64)),
            "'b_enc' is torch.int64, expected floating point of 16 bits",
        ),
    ],
)
def test_wrong_tensors_are_named(folder: Path, edit: Any, message: str) -> None:
    edit_tensors(folder, edit)
    refused(folder, "sae.safetensors", message)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "sae.safetensors", "not a readable safetensors file")


class Exploding:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled(folder: Path) -> None:
    tensors = read_tensors(folder)
    (folder / "sae.safetensors").write_bytes(pickle.dumps([Exploding()]))
    refused(folder, "sae.safetensors", "not a readable safetensors file")
    torch.save({**tensors, "more": Exploding()}, folder / "sae.safetensors")
    refused(folder, "sae.safetensors", "not a readable safetensors file")


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "", "no such file or folder")
    (folder / "sae.safetensors").unlink()
    refused(folder, "sae.safetensors", "no such file")
    (folder / "sae.safetensors").mkdir()
    refused(folder, "sae.safetensors", "a folder, not a file")
    shutil.rmtree(folder / "sae.safetensors")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "config.json", "cannot be read (Is a directory)")


def test_thresholds_keep_their_precision_beside_narrow_weights(folder: Path) -> None:
    """Every tensor is loaded in the type that it was stored in."""

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["W_dec"] = tensors["W_dec"].bfloat16()

    edit_tensors(folder, narrow)
    stored, loaded = read_tensors(folder), load_sae(folder)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == stored[name].dtype
        assert torch.equal(tensor, stored[name])


def test_the_weights_of_another_sae_are_refused(folder: Path) -> None:
    """Of the same names and shapes: only the checksum tells."""
    tensors = read_tensors(folder)
    tensors["W_enc"][0, 0] += 1
    save_file(tensors, folder / "sae.safetensors")
    refused(folder, "sae.safetensors", "not the weights that belong to config.json")


def test_a_loaded_sae_is_independent_of_its_file(folder: Path) -> None:
    loaded, stored = load_sae(folder), read_tensors(folder)
    path = folder / "sae.safetensors"
    with path.open("r+b") as file:  # in place, as a copy over the file would
        file.write(b"\0" * path.stat().st_size)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"penalty": L0(0.5), "list": (1, 2)})
    assert read_json(path) == {"penalty": L0(0.5).record(), "list": [1, 2]}

    def half(partial: Path) -> None:
        partial.write_text("{")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, half)
    assert read_json(path)["list"] == [1, 2]


def test_the_folder_of_an_arm_says_where_its_sae_is(tmp_path: Path) -> None:
    ReLUSAE(4, 8).save(tmp_path / "arm" / "sae")
    with pytest.raises(InputError, match=r"arm: an arm of a run; its SAE is .*arm/sae$"):
        load_sae(tmp_path / "arm")


def test_slots_of_an_earlier_version_that_are_refused_now(tmp_path: Path) -> None:
    """The line says what to do; done, the SAE is there with the same codes."""
    sae = small_sae(ReLUSAE, penalty=RIL1(0.1), decoder=FreeRows())
    sae.eval().save(tmp_path)
    edit_config(tmp_path, lambda c: c["slots"].update(penalty=L1(0.1).record()))
    refused(
        tmp_path,
        "config.json: ReLUSAE: L1 charges codes",
        "if an earlier version saved it: penalty, kernel and decoder matter in training only",
        "put others into its slots",
    )
    edit_config(tmp_path, lambda c: c["slots"].update(penalty={"class": "NoPenalty"}))
    x = small_batch()
    assert torch.equal(load_sae(tmp_path).encode(x), sae.encode(x))
