"""r_L0: gradients against finite differences, closed forms, and all SAEs in one pass."""

from functools import cache as memo

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_bench import attribution
from sae_bench.attribution import gradients, r_l0, relative_l0
from sae_bench.cache import ActivationCache
from sae_bench.models import LanguageModel
from sae_bench.sites import capture, resolve_site, resume_at
from sae_bench.splicing import TextBatch, text_batches
from tests.grids import SITE, constant_sae, identity_sae, lm_cache, random_saes
from tests.tiny import tiny_model

TOKENS = 300
KINDS = ("resid_pre", "resid_post", "mlp_out", "attn_z")


@memo
def model(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return tiny_model(family, dtype=dtype)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return lm_cache(model("llama"), tmp_path_factory.mktemp("cache"))


def two_contexts(lm: LanguageModel) -> TextBatch:
    """BOS and 8 tokens with a separator among them; BOS and 6 tokens, then padding."""
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[0, 5], ids[1, 7:] = lm.bos_id, lm.eos_id, lm.pad_id
    return TextBatch(ids, ids != lm.pad_id, np.zeros(ids.shape, dtype=np.int64), ids >= 4)


def centred_correct(logits: Tensor, ids: Tensor, scored: Tensor) -> Tensor:
    """Of each context, the sum over scored positions, term by term."""
    total = torch.zeros(len(logits), dtype=torch.float64)
    for t in scored.nonzero().flatten().tolist():
        total += logits[:, t, ids[t + 1]] - logits[:, t].mean(1)
    return total


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(family: str, kind: str) -> None:
    """All coordinates of a position at once: one context a coordinate and direction."""
    lm, h = model(family, torch.float64), 2e-3
    batch, site = two_contexts(lm), resolve_site(lm, f"layers.1.{kind}")
    x, g = gradients(lm, site, batch)
    places = batch.scored.nonzero().tolist()
    clean = capture(lm, batch.ids, batch.mask, [site])[site.name]
    assert torch.equal(x, torch.stack([clean[row, at] for row, at in places]).float())
    bends = []
    for index in (0, 3, len(places) - 1):  # before and after the separator, beside the padding
        row, at = places[index]
        size = 2 * site.d_in
        ids, mask = batch.ids[row].expand(size, -1), batch.mask[row].expand(size, -1)
        passed = resume_at(lm, ids, mask, site)
        moved = passed.activations.clone()
        moved[:, at] += h * torch.cat([torch.eye(site.d_in), -torch.eye(site.d_in)])
        value = centred_correct(passed.logits_with(moved), ids[0], batch.scored[row])
        up, down = value.chunk(2)
        numeric = ((up - down) / (2 * h)).float()
        assert (numeric - g[index]).abs().max() < 3e-3 * g[index].abs().max()
        bends.append(g[index].abs().max())
    assert min(bends) > 1e-3


def test_the_model_is_left_as_it_was() -> None:
    lm = model("llama")
    batch = two_contexts(lm)
    before = lm.logits(batch.ids, batch.mask)
    _, g = gradients(lm, resolve_site(lm, SITE), batch)
    assert not g.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    assert torch.equal(lm.logits(batch.ids, batch.mask), before)


def test_a_model_in_bfloat16() -> None:
    exact, rough = model("llama"), model("llama", torch.bfloat16)
    batch = two_contexts(exact)
    _, wanted = gradients(exact, resolve_site(exact, SITE), batch)
    x, g = gradients(rough, resolve_site(rough, SITE), batch)
    assert x.dtype == g.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(g.flatten(), wanted.flatten(), dim=0) > 0.98


# -- r_L0 -----------------------------------------------------------------------------------------


def of(*attributions: float) -> float:
    """r_L0 of one token whose latents have these attributions."""
    y = torch.tensor([attributions], dtype=torch.float32)
    d_sae = len(attributions)
    return r_l0(y.abs(), y.sign().T * torch.eye(d_sae), torch.ones(1, d_sae)).item()


def test_closed_forms() -> None:
    assert of(0.3) == of(0, -7, 0) == 1
    assert of(2, -2, 0, 2, 2) == pytest.approx(1)
    assert of(1e6, 1, 1, 1) == pytest.approx(1 / 4, rel=1e-3)
    # p = 3/4, 1/4: exp of the entropy is 4 / 3^(3/4)
    assert of(3, 0, -1) == pytest.approx(4 / 3**0.75 / 2)
    assert np.isnan(of(0, 0))


def test_latents_whose_decoder_is_orthogonal_to_the_gradient_do_not_count() -> None:
    f, W_dec = torch.ones(1, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 5.0]])
    assert r_l0(f, W_dec, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1)


def test_decoder_norms_count() -> None:
    f = torch.tensor([[1.0, 1.0]])
    W_dec = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    assert r_l0(f, W_dec, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(of(3, 1))


@given(
    seed=st.integers(0, 2**32 - 1),
    d_sae=st.integers(1, 40),
    scale=st.floats(1e-4, 1e4),
    density=st.floats(0, 1),
)
def test_it_is_a_share_and_knows_no_scale(
    seed: int, d_sae: int, scale: float, density: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    f, keep = (torch.rand(6, d_sae, generator=generator) for _ in range(2))
    f = f * (keep < density)
    W_dec, g = (torch.randn(n, 5, generator=generator) for n in (d_sae, 6))
    r = r_l0(f, W_dec, g)
    y = f.double() * (g.double() @ W_dec.T.double())
    assert torch.equal(r.isnan(), (y == 0).all(1))
    known = r[~r.isnan()]
    assert ((known > 0) & (known <= 1 + 1e-5)).all()
    assert (known * (y != 0).sum(1)[~r.isnan()] >= 1 - 1e-5).all()
    for scaled in ((scale * f, W_dec, g), (f, scale * W_dec, g), (f, W_dec, -scale * g)):
        torch.testing.assert_close(r_l0(*scaled), r, rtol=1e-4, atol=1e-6, equal_nan=True)


# -- of SAEs --------------------------------------------------------------------------------------


def test_one_pass_gives_what_each_sae_alone_gives(cache: ActivationCache) -> None:
    saes = random_saes(cache.d_in)
    together = relative_l0(saes, cache, model("llama"), TOKENS)
    for sae, row in zip(saes, together, strict=True):
        assert [row] == relative_l0([sae], cache, model("llama"), TOKENS)
        (alone,) = relative_l0([sae], cache, model("llama"), TOKENS, batch_tokens=1)
        assert alone == pytest.approx(row, rel=1e-4)
        assert 0 < row["r_l0_low"] < row["r_l0"] < row["r_l0_high"] < 1
    assert len({row["r_l0"] for row in together}) == len(saes)


def test_the_mean_over_all_tokens(cache: ActivationCache) -> None:
    """Of latents relu(x_i) and relu(-x_i) exactly one is on, with attribution x_i g_i."""
    lm = model("llama")
    site = resolve_site(lm, SITE)
    shares = []
    for batch in text_batches(cache, lm, TOKENS, 64):
        x, g = gradients(lm, site, batch)
        size = (x * g).double().abs().numpy()
        p = size / size.sum(1, keepdims=True)
        shares += list(np.exp(-(p * np.log(p)).sum(1)) / cache.d_in)
    (row,) = relative_l0([identity_sae(cache.d_in)], cache, lm, TOKENS)
    assert row["r_l0_tokens"] == len(shares)
    assert row["r_l0"] == pytest.approx(np.mean(shares), rel=1e-5)


def test_tokens_without_an_attribution_are_left_out(cache: ActivationCache) -> None:
    lm = model("llama")
    silent, (relu, *_) = constant_sae(torch.zeros(cache.d_in)), random_saes(cache.d_in)
    with torch.no_grad():  # one latent, on for some tokens
        relu.W_enc[:, 1:] = 0
        relu.b_enc.fill_(-1)
        relu.b_enc[0] = 0
    none, some = relative_l0([silent, relu], cache, lm, TOKENS)
    assert none["r_l0_tokens"] == 0
    assert np.isnan(none["r_l0"])
    site = resolve_site(lm, SITE)
    rows = [gradients(lm, site, batch)[0] for batch in text_batches(cache, lm, TOKENS, 1024)]
    fired = int((relu.encode(torch.cat(rows)) > 0).any(1).sum())
    assert 0 < fired < len(torch.cat(rows))
    assert some["r_l0_tokens"] == fired
    assert some["r_l0"] == pytest.approx(1)


def test_the_model_runs_once_a_batch(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model("llama")
    site = resolve_site(lm, SITE)  # which runs the model a few times itself
    monkeypatch.setattr(attribution, "resolve_site", lambda lm, name: site)
    runs: list[int] = []
    hook = lm.layers[0].register_forward_hook(lambda *_: runs.append(0))
    relative_l0(random_saes(cache.d_in), cache, lm, TOKENS, batch_tokens=64)
    hook.remove()
    assert len(runs) == len(list(text_batches(cache, lm, TOKENS, 64))) > 1


def test_the_interval_is_over_documents_of_known_tokens(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
        sums.append((numerator, denominator))
        return 0.0, 1.0

    monkeypatch.setattr(attribution, "bootstrap_ratio", recorded)
    lm = model("llama")
    (row,) = relative_l0([identity_sae(cache.d_in)], cache, lm, TOKENS)
    owners = np.concatenate([b.owners for b in text_batches(cache, lm, TOKENS, 1024)])
    assert -1 not in owners
    (numerator, denominator) = sums[0]
    assert denominator.tolist() == np.unique(owners, return_counts=True)[1].tolist()
    assert numerator.sum() / denominator.sum() == pytest.approx(row["r_l0"])
