"""Every architecture in every format: saved and read again, or refused."""

from pathlib import Path

import pytest

from architectures import JumpReLUSAE, TopKSAE
from sae_bench.errors import InputError
from sae_bench.formats import FORMATS
from sae_bench.loading import format_of, load_sae, save_sae
from tests.foreign import SAES, placed, random_sae, raw_inputs, same_sae

REFUSED = {
    ("gemma-scope", "TopKSAE"): "a TopK SAE has no equal JumpReLU SAE",
    **{
        ("sparsify", name): f"sparsify has TopK SAEs only, this is a {type(sae).__name__}"
        for name, sae in SAES.items()
        if name != "TopKSAE"
    },
}
PLACE = {"model": "org/model", "site": "layers.3.mlp_out", "context": {"length": 128}}
each = pytest.mark.parametrize("name", SAES)
every = pytest.mark.parametrize("format", FORMATS)


@every
@each
def test_codes_are_equal(format: str, name: str, tmp_path: Path) -> None:
    sae, path = SAES[name], tmp_path / "new" / "folder"
    if reason := REFUSED.get((format, name)):
        with pytest.raises(InputError, match=reason):
            save_sae(sae, path, format)
        assert not path.exists()
        return
    save_sae(sae, path, format)
    assert format_of(path).name == format
    loaded = load_sae(path)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    same_sae(loaded, sae)
    loaded(raw_inputs()).sum().backward()  # it can be trained further
    assert not list(tmp_path.rglob("*.partial"))


@every
@each
def test_what_is_read_is_written_again_as_it_was(format: str, name: str, tmp_path: Path) -> None:
    if (format, name) in REFUSED:
        return
    save_sae(SAES[name], tmp_path / "one", format)
    save_sae(load_sae(tmp_path / "one"), tmp_path / "two", format)
    same_sae(load_sae(tmp_path / "two"), load_sae(tmp_path / "one"))


@pytest.mark.parametrize("format", ["saelens", "dictionary-learning", "sae-ablations"])
def test_where_it_belongs_is_kept(format: str, tmp_path: Path) -> None:
    sae = placed(SAES["JumpReLUSAE"], **PLACE)
    save_sae(sae, tmp_path, format)
    found = load_sae(tmp_path).provenance
    assert {name: found[name] for name in PLACE} == PLACE


@every
def test_nothing_is_known_of_where_it_belongs(format: str, tmp_path: Path) -> None:
    sae = SAES["TopKSAE" if format == "sparsify" else "ReLUSAE"]
    save_sae(sae, tmp_path, format)
    found = load_sae(tmp_path).provenance
    assert found.get("site") is None
    assert found.get("model") is None


@every
@pytest.mark.parametrize("scale", [1e5, 1e-5])
def test_any_scale_of_activations(format: str, scale: float, tmp_path: Path) -> None:
    cls = TopKSAE if format == "sparsify" else JumpReLUSAE
    save_sae(random_sae(cls).fold_(scale), tmp_path, format)
    same_sae(load_sae(tmp_path).fold_(1 / scale), random_sae(cls))


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format 'onnx'; known: saelens, gemma-scope"):
        save_sae(SAES["ReLUSAE"], tmp_path, "onnx")
