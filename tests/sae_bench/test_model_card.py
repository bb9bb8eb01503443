"""Model cards: the hub can read them, and they say what the record says."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.loading import load_sae, save_sae
from sae_bench.model_card import model_card
from sae_bench.run import run
from sae_bench.sae import SparseAutoencoder
from sae_bench.store import RunFolder, metrics_beside
from tests.small import ARCHITECTURES, JUMP, RECIPE, small_batch, small_cache, small_sae

ARM = Arm(SparseAutoencoder, 9, RECIPE, 1, JUMP)
PLACE = {
    "model": "google/gemma-2-2b",
    "site": "layers.9.resid_post",
    "context": {"class": "Packed", "length": 256},
    "text": {"class": "HubText", "name": "owner/some-text", "split": "train"},
}


def trained() -> SparseAutoencoder:
    sae = small_sae(SparseAutoencoder, **JUMP)
    arm = json.loads(json.dumps(ARM.record()))
    sae.provenance = {"arm": arm, "activation_scale": 3.25, **PLACE}
    return sae


def facts(card: str) -> dict[str, str]:
    """The rows of the first table."""
    table = card.split("\n\n")[3].splitlines()
    rows = [re.fullmatch(r"\| (.*?) \| (.*) \|", line) for line in table]
    assert all(rows)
    return {row[1]: row[2] for row in rows if row}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_card(name: str) -> None:
    sae = small_sae(ARCHITECTURES[name])
    text = model_card(sae)
    card = ModelCard(text)
    assert card.data.library_name == "sae-ablations"
    assert "sparse-autoencoder" in card.data.tags
    assert {"license", "base_model", "datasets"}.isdisjoint(card.data.to_dict())
    assert card.content == text
    assert facts(text)["architecture"] == name
    assert facts(text)["d_sae"] == str(sae.d_sae)
    assert "Metrics" not in text


def test_the_front_matter_of_a_trained_one() -> None:
    card = ModelCard(model_card(trained(), license="mit"))
    assert card.data.license == "mit"
    assert card.data.base_model == "google/gemma-2-2b"
    assert card.data.datasets == ["owner/some-text"]


def test_the_card_says_what_the_record_says() -> None:
    shown = facts(model_card(trained()))
    assert shown["activation"] == "JumpReLU(form=LogThreshold(start=0.1))"
    assert (shown["penalty"], shown["coefficient"]) == ("L0", "0.01")
    assert "Rectangle(bandwidth=0.2)" in shown["kernel"]
    assert shown["decoder"] == "UnitRows"
    assert shown["model"] == PLACE["model"]
    assert shown["site"] == PLACE["site"]
    assert shown["context"] == "Packed(length=256)"
    assert shown["training data"] == "HubText(name=owner/some-text, split=train)"
    assert shown["training tokens"] == str(RECIPE.tokens)
    assert "batch_size=32" in shown["recipe"]
    assert shown["activation scale"] == "3.25"


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    save_sae(trained(), tmp_path, "saelens")
    shown = facts(model_card(load_sae(tmp_path)))
    assert {"penalty", "coefficient", "recipe", "training data"}.isdisjoint(shown)
    assert shown["model"] == PLACE["model"]
    assert shown["context"] == "Packed(length=256)"


def test_metrics_with_intervals() -> None:
    rows: dict[str, list[Any]] = {
        "eval_set": ["held-out", "odd | <b>name</b>"],
        "l0": [12.5, 3.0],
        "l0_low": [12.0, float("nan")],
        "l0_high": [13.0, float("nan")],
        "delta_lm_loss": [0.1234567, float("nan")],
        "frequency": [[0.1], [0.2]],
    }
    text = model_card(small_sae(SparseAutoencoder), pd.DataFrame(rows))
    assert "| evaluation set | L0 | delta LM loss |" in text
    assert "| held-out | 12.5 [12, 13] | 0.123457 |" in text
    assert "| odd &#124; &lt;b>name&lt;/b> | 3 | - |" in text


def test_evaluations_as_they_come() -> None:
    cache = small_cache()
    saes = [small_sae(SparseAutoencoder, seed) for seed in (0, 1)]
    one = evaluate(saes[0], cache)
    assert f"| held-out | {one['l0'][0]:.6g}" in model_card(saes[0], one)
    with pytest.raises(InputError, match="metrics of several SAEs"):
        model_card(saes[0], evaluate(saes, cache))
    with pytest.raises(InputError, match="metrics must be rows of `evaluate`"):
        model_card(saes[0], pd.DataFrame({"loss": [1.0]}))


def test_the_card_of_an_arm_of_a_run(tmp_path: Path) -> None:
    other = ActivationCache.from_tensor(small_batch())
    table = run([ARM], small_cache(), {"other": other}, out=tmp_path, device="cpu")
    folder = tmp_path / "arms" / ARM.key / "sae"
    metrics = metrics_beside(folder)
    card = model_card(RunFolder(tmp_path).sae(ARM), metrics)
    assert f"| other | {table['l0'][0]:.6g}" in card
    assert facts(card)["training tokens"] == str(RECIPE.tokens)
    assert metrics_beside(tmp_path) is None


def test_the_snippet_works(tmp_path: Path) -> None:
    sae = small_sae(SparseAutoencoder).eval()
    sae.save(tmp_path / "sae")
    text = model_card(sae, source=str(tmp_path / "sae"))
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert code
    scope: dict[str, Any] = {"x": small_batch()}
    exec(code[1], scope)
    assert torch.equal(scope["x_hat"], sae(small_batch()))


def test_parts_of_the_authors_own_are_mentioned() -> None:
    sae = trained()
    assert "author's own" not in model_card(sae)
    sae.provenance["arm"]["source"] = "abc"
    assert "author's own: import the modules" in model_card(sae)


@pytest.mark.parametrize(
    "evil", ["a\n---\nlicense: x", "| a |\n| b |", "<script>", "`x`", ["a", {"b": "\n"}], 7, {}]
)
def test_provenance_from_anywhere_stays_in_its_cell(evil: Any) -> None:
    sae = small_sae(SparseAutoencoder)
    sae.provenance = dict.fromkeys(("arm", "model", "site", "context", "text", "hub"), evil)
    text = model_card(sae)
    card = ModelCard(text)
    assert {"license", "base_model", "datasets"}.isdisjoint(card.data.to_dict())
    assert facts(text)["d_in"] == str(sae.d_in)
    assert "<script" not in text
    assert text.count("```") == 2
