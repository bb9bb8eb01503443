"""Sites in other libraries' words, and that every site comes back from every format."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_bench.errors import InputError
from sae_bench.formats import FORMATS
from sae_bench.formats.gemma_scope import GemmaScope
from sae_bench.formats.places import (
    HOOKS,
    hook_name,
    site_of_hook,
    site_of_submodule,
    submodule,
)
from sae_bench.loading import load_sae, save_sae
from sae_bench.sites import _KINDS
from tests.foreign import SAES, placed
from tests.refusals import refused
from tests.sae_bench.formats.files import edit_json

SITES = [
    *(f"layers.9.{kind}" for kind in _KINDS),
    "layers.0.resid_post",
    "layers.007.mlp_out",
    "layers.foo.bar",
    "layers.9.nonsense",
    "layers.9",
    "layers.",
    "model.layers.3.mlp.down_proj",
    "transformer.h.3.attn",
    "blocks.3.hook_resid_post",
    "blocks.3.attn.hook_z",
    "resid_post_layer_3",
    "mlp_out_layer_None",
    "embed",
    "größe",
]
every = pytest.mark.parametrize("format", FORMATS)


def of(format: str) -> Any:
    return SAES["TopKSAE" if format == "sparsify" else "BatchTopKSAE"]


@every
@pytest.mark.parametrize("site", SITES)
def test_every_site_comes_back(format: str, site: str, tmp_path: Path) -> None:
    place = {"model": "org/model", "site": site, "context": {"class": "Packed", "length": 128}}
    for folder in ("layers.3", "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"):
        save_sae(placed(of(format), **place), tmp_path / folder, format)
        found = load_sae(tmp_path / folder)
        assert {key: found.provenance[key] for key in place} == place
        save_sae(found, tmp_path / "again", format)
        found = load_sae(tmp_path / "again")
        assert {key: found.provenance[key] for key in place} == place


def test_hooks() -> None:
    assert HOOKS.keys() == _KINDS.keys()
    for kind in HOOKS:
        assert site_of_hook(hook_name(f"layers.12.{kind}")) == f"layers.12.{kind}"
    assert hook_name("layers.9.attn_z") == "blocks.9.attn.hook_z"
    assert hook_name("layers.9.other") == site_of_hook("layers.9.other") == "layers.9.other"
    assert hook_name(None) is None
    assert site_of_hook(None) is None


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("layers.9.resid_pre", {"layer": 9, "submodule_name": "resid_pre_layer_9"}),
        ("layers.9.attn_z", {"layer": 9}),
        ("layers.foo.bar", {"submodule_name": "layers.foo.bar"}),
        ("gpt_neox.layers.3.mlp", {"submodule_name": "gpt_neox.layers.3.mlp"}),
        ("", {}),
        (None, {}),
    ],
)
def test_submodules(site: str | None, words: dict[str, Any]) -> None:
    """An attention's heads have no name there, and must not get one that looks like theirs."""
    assert submodule(site) == words
    if "submodule_name" in words:
        assert site_of_submodule(words.get("layer"), words["submodule_name"]) == site


def test_words_that_were_changed_later_count_more(tmp_path: Path) -> None:
    sae = placed(of("saelens"), model="m", site="blocks.3.hook_resid_post")
    save_sae(sae, tmp_path / "one", "saelens")
    assert load_sae(tmp_path / "one").provenance["site"] == "blocks.3.hook_resid_post"
    edit_json(
        tmp_path / "one" / "cfg.json",
        lambda c: c["metadata"].update(hook_name="blocks.4.hook_resid_post"),
    )
    assert load_sae(tmp_path / "one").provenance["site"] == "layers.4.resid_post"
    save_sae(sae, tmp_path / "two", "dictionary-learning")
    edit_json(
        tmp_path / "two" / "config.json",
        lambda c: c["trainer"].update(layer=4, submodule_name="mlp_out_layer_4"),
    )
    assert load_sae(tmp_path / "two").provenance["site"] == "layers.4.mlp_out"


def test_archives_have_the_arrays_of_the_library_alone(tmp_path: Path) -> None:
    """Its loaders take every member for a tensor: the remark stands in the archive's comment."""
    path = tmp_path / "v.npz"
    save_sae(placed(of("gemma-scope"), site="layers.9.attn_z"), path, "gemma-scope")
    with np.load(path) as archive:
        assert set(archive.files) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    with zipfile.ZipFile(path, "a") as archive:
        assert json.loads(archive.comment) == {"sae_ablations": {"site": "layers.9.attn_z"}}
        archive.comment = b"made by hand"
    assert "site" not in load_sae(path).provenance
    for comment in (b'{"sae_ablations": {"site": 3}}', b'{"sae_ablations": 3}'):
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = comment
        refused(path, "", "comment", "expected")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b'{"sae_ablations": {"si'
    refused(path, "", "its comment is not as it was written")


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "sae-ablations"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"site": 3}, "provenance.site: expected text or None, got 3"),
        ({"model": ["m"]}, "provenance.model: expected text or None, got"),
        ({"context": 128}, "provenance.context: expected a dict or None, got 128"),
        ({"context": {"length": {3}}}, "provenance: context cannot be written as JSON"),
    ],
)
def test_a_place_that_cannot_be_written(
    format: str, place: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        save_sae(placed(of(format), **place), tmp_path / "new", format)
    assert words in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_provenance_that_is_no_json(tmp_path: Path) -> None:
    for provenance in ({"more": {3}}, {"more": {1: 2, "a": 3}}):
        sae = placed(of("sae-ablations"), **provenance)
        with pytest.raises(InputError, match=r"^BatchTopKSAE\.save: provenance cannot be written"):
            save_sae(sae, tmp_path / "new", "sae-ablations")
        assert not (tmp_path / "new").exists()


@every
def test_no_provenance(format: str, tmp_path: Path) -> None:
    sae = placed(of(format))
    sae.provenance = None  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"provenance: expected a .*, got None$"):
        save_sae(sae, tmp_path / "new", format)
    assert not (tmp_path / "new").exists()


def test_a_comment_has_its_limit(tmp_path: Path) -> None:
    sae = placed(of("gemma-scope"), site="x" * 70_000)
    with pytest.raises(InputError, match=r"^provenance: 700\d\d bytes .* has room for 65535"):
        GemmaScope().save(sae, tmp_path / "v.npz")
