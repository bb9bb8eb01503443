"""Gemma Scope's archives: conventions, and files that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench.loading import load_sae, save_sae
from tests.foreign import D_SAE, SAES, assert_same_codes, raw_inputs, same_sae, some
from tests.refusals import refused
from tests.sae_bench.formats.files import Edit, Payload, edit_npz, write_npz

PARAMS = "params.npz"


def arrays() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in some("b_enc", "threshold").items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_npz(tmp_path / PARAMS, arrays())
    return tmp_path


def test_b_dec_is_not_subtracted(folder: Path) -> None:
    W = some("b_enc", "threshold")
    pre = raw_inputs() @ W["W_enc"] + W["b_enc"]
    f = pre.relu() * (pre > W["threshold"])
    assert_same_codes(load_sae(folder), f, f @ W["W_dec"] + W["b_dec"])
    assert_same_codes(load_sae(folder / PARAMS), f, f @ W["W_dec"] + W["b_dec"])


def test_what_we_write_reads_x_as_it_is(tmp_path: Path) -> None:
    sae = SAES["GatedSAE"]
    save_sae(sae, tmp_path / "any-name.npz", "gemma-scope")
    with np.load(tmp_path / "any-name.npz") as archive:
        W = {name: torch.from_numpy(archive[name]) for name in archive.files}
    assert set(W) == set(arrays())
    pre = raw_inputs() @ W["W_enc"] + W["b_enc"]
    f = pre * (pre > W["threshold"])
    assert_same_codes(sae, f, f @ W["W_dec"] + W["b_dec"])
    same_sae(load_sae(tmp_path / "any-name.npz"), sae)


def test_names_in_lower_case_and_a_scaling_factor_of_ones(folder: Path) -> None:
    expected = load_sae(folder)

    def old(a: dict[str, Any]) -> None:
        a.update(w_enc=a.pop("W_enc"), w_dec=a.pop("W_dec"), scaling_factor=np.ones(D_SAE))

    edit_npz(folder / PARAMS, old)
    same_sae(load_sae(folder), expected)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2"])
def test_other_types_of_numbers(dtype: str, folder: Path) -> None:
    def cast(a: dict[str, Any]) -> None:
        a.update({name: array.astype(dtype) for name, array in a.items()})

    edit_npz(folder / PARAMS, cast)
    W = arrays()["W_enc"].astype(dtype).astype("f4")
    assert torch.equal(load_sae(folder).W_enc, torch.from_numpy(W))


def test_negative_thresholds_act_as_zero(folder: Path) -> None:
    edit_npz(folder / PARAMS, lambda a: a["threshold"].fill(-0.5))
    threshold = load_sae(folder).threshold
    assert threshold is not None
    assert not threshold.any()


@pytest.mark.parametrize(
    ("repo", "model", "site"),
    [
        ("gemma-scope-2b-pt-res", "google/gemma-2-2b", "layers.20.resid_post"),
        ("models--google--gemma-scope-9b-pt-mlp", "google/gemma-2-9b", "layers.20.mlp_out"),
        ("gemma-scope-2b-pt-att", "google/gemma-2-2b", "layers.20.attn_z"),
        ("gemma-scope-9b-it-res", "google/gemma-2-9b-it", "layers.20.resid_post"),
        ("something-else", None, None),
    ],
)
def test_where_it_belongs(repo: str, model: str | None, site: str | None, tmp_path: Path) -> None:
    folder = tmp_path / repo / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    write_npz(folder / PARAMS, arrays())
    found = load_sae(folder).provenance
    assert found.get("model") == model
    assert found.get("site") == site


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda a: a.pop("W_enc"), "missing tensor 'W_enc'"),
        (lambda a: a.pop("threshold"), "missing tensor 'threshold' for a Gemma Scope SAE"),
        (lambda a: a.update(W_skip=np.ones((2, 2))), "unknown tensor 'W_skip'"),
        (lambda a: a.update(W_dec=a["W_enc"]), "'W_dec' has shape (16, 48), expected (48, 16)"),
        (lambda a: a.update(threshold=np.ones(3)), "'threshold' has shape (3,), expected (48,)"),
        (lambda a: a["b_dec"].fill(np.nan), "'b_dec' has values that are not finite"),
        (lambda a: a["threshold"].fill(np.inf), "'threshold' has values that are not finite"),
        (lambda a: a.update(b_dec=np.full(16, 1e300)), "'b_dec' has values that are too large"),
        (lambda a: a.update(scaling_factor=np.full(3, 2.0)), "'scaling_factor' is not 1"),
        (lambda a: a.update(b_dec=np.ones(16, int)), "'b_dec' is torch.int64, expected floating"),
        (lambda a: a.update(b_dec=np.array(["a"])), "array 'b_dec' of type <U1 holds no numbers"),
        (lambda a: a.update(b_dec=np.ones(16, complex)), "of type complex128 holds no numbers"),
        (lambda a: a.update(b_dec=np.ones(16, np.longdouble)), "holds no numbers"),
        (lambda a: a.update(W_enc=np.float32(1)), "'W_enc' is no matrix"),
        (lambda a: a.update(W_enc=np.ones((0, 4))), "'W_enc' is no matrix"),
        (lambda a: a.clear(), "missing tensor 'W_enc'"),
    ],
)
def test_wrong_arrays_are_named(edit: Edit, words: str, folder: Path) -> None:
    edit_npz(folder / PARAMS, edit)
    refused(folder, PARAMS, words)


def test_pickled_objects_are_not_read(folder: Path) -> None:
    target = folder / "written"
    pickled = np.array([Payload(target)], dtype=object)
    for edit in (lambda a: a.update(b_dec=pickled), lambda a: a.update(more=pickled)):
        write_npz(folder / PARAMS, arrays())
        edit_npz(folder / PARAMS, edit)
        refused(folder, PARAMS, "not a readable .npz archive of plain arrays")
    (folder / PARAMS).unlink()
    np.save(folder / "bare.npy", pickled, allow_pickle=True)
    (folder / "bare.npy").rename(folder / PARAMS)
    refused(folder, PARAMS, "not a readable .npz archive of plain arrays")
    assert not target.exists()


def test_a_single_array(folder: Path) -> None:
    with (folder / PARAMS).open("wb") as file:
        np.save(file, np.ones(3))
    refused(folder, PARAMS, "a single array, not an .npz archive")
