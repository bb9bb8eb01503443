"""Dead latents over as many tokens a latent: latents are followed until they fire."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from ablations import scale
from ablations._unfired import CHUNK, EACH, never, unfired
from architectures import JumpReLUSAE
from sae_bench.ablation import Data, Finished
from sae_bench.activations import JumpReLU, LogThreshold
from sae_bench.cache import ActivationCache
from sae_bench.plain import PlainJumpReLU
from sae_bench.sae import SparseAutoencoder
from tests.grids import tensor_cache

D_IN, D_SAE, ROWS = 8, 600, 3 * CHUNK


def trained() -> SparseAutoencoder:
    """Thresholds from those that all rows exceed to those that none does."""
    sae = JumpReLUSAE(D_IN, D_SAE, activation=JumpReLU(LogThreshold(0.5)))
    (log_threshold,) = sae.threshold_parameters
    with torch.no_grad():
        log_threshold.copy_(torch.linspace(-3, 3, D_SAE))
        sae.b_dec.fill_(0.5)
        sae.b_enc.fill_(0.1)
    return sae


@pytest.mark.parametrize("tokens", [CHUNK, CHUNK + 1, ROWS])
def test_as_if_all_codes_had_been_looked_at(tokens: int) -> None:
    looked_at = -(-tokens // CHUNK) * CHUNK
    x, sae = tensor_cache(ROWS, D_IN), trained()
    rows = torch.cat(list(x.chunks(CHUNK)))[:looked_at]
    dead = (sae.encode(rows) == 0).all(0).double().mean()
    plain = sae.plain()
    assert isinstance(plain, PlainJumpReLU)
    assert 0.05 < dead < 0.95
    assert never(plain, x, tokens) == pytest.approx(float(dead))


def test_an_sae_of_another_precision() -> None:
    """As one that lives elsewhere: rows come to it."""
    cached, plain = tensor_cache(ROWS, D_IN), trained().double().plain()
    assert isinstance(plain, PlainJumpReLU)
    assert 0.05 < never(plain, cached, CHUNK) < 0.95


class Made(Finished):
    """A run of one arm, whose SAE is made here."""

    def sae(self, arm: str) -> SparseAutoencoder:
        return trained()


def test_tokens_are_as_many_a_latent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a cache of the training text that has so many."""
    asked, cached = [], tensor_cache(ROWS, D_IN)

    def cache(data: Data, device: str | None = None) -> ActivationCache:
        asked.append(data)
        return cached

    monkeypatch.setattr(Data, "cache", cache)
    preset = scale.PRESETS["study"].replace(d_sae=CHUNK // EACH)
    found = unfired(Made(preset, pd.DataFrame({"arm": ["a"]}), tmp_path, cached))
    assert asked == [preset.data.replace(tokens=CHUNK // EACH * EACH)]
    (row,) = found.to_dict("records")
    plain = trained().plain()
    assert isinstance(plain, PlainJumpReLU)
    assert row == {"arm": "a", "unfired": never(plain, cached, CHUNK)}
