"""The spliced loss against full forward passes, one context at a time, with a hook of our own."""

from collections import Counter
from functools import cache as memo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_bench import splicing
from sae_bench.cache import ActivationCache
from sae_bench.contexts import ContextPolicy, Packed, PerDocument, Settled
from sae_bench.models import LanguageModel
from sae_bench.sae import SparseAutoencoder
from sae_bench.sites import resolve_site
from sae_bench.splicing import splice, spread, text_batches
from tests.grids import SITE, constant_sae, identity_sae, lm_cache, random_saes
from tests.tiny import FAMILIES, LAYERS, tiny_model

TOKENS = 300


@memo
def model(family: str) -> LanguageModel:
    return tiny_model(family)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActivationCache]:
    return {family: lm_cache(model(family), tmp_path_factory.mktemp(family)) for family in FAMILIES}


def slow_losses(
    cache: ActivationCache, lm: LanguageModel, sae: SparseAutoencoder | None
) -> list[tuple[float, int]]:
    """(loss in nats, document of the target) of each scored position, in no special order."""
    losses = []
    for context in spread(cache, TOKENS):
        ids = torch.from_numpy(context.ids)[None]
        pairs = zip(context.ids.tolist(), context.documents.tolist(), strict=True)
        counts = [token not in lm.special_ids and document >= 0 for token, document in pairs]

        def overwrite(module: Any, args: Any, output: Any, counts: list[bool] = counts) -> Any:
            if sae is None:
                return None
            value = output[0] if isinstance(output, tuple) else output
            value = value.clone()
            for position in range(len(counts)):
                if counts[position]:
                    value[0, position] = sae(value[:, position])[0]
            return (value, *output[1:]) if isinstance(output, tuple) else value

        hook = lm.layers[1].register_forward_hook(overwrite)
        with torch.no_grad():
            logits = lm.model(ids).logits[0]
        hook.remove()
        for t in range(len(counts) - 1):
            if counts[t] and counts[t + 1]:
                loss = torch.nn.functional.cross_entropy(logits[t], ids[0, t + 1])
                losses.append((loss.item(), int(context.documents[t + 1])))
    return losses


def mean(losses: list[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in losses) / len(losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_full_passes(caches: dict[str, ActivationCache], family: str) -> None:
    cache, lm = caches[family], model(family)
    saes = [*random_saes(cache.d_in)[:2], constant_sae(torch.zeros(cache.d_in))]
    clean = slow_losses(cache, lm, None)
    zero = mean(slow_losses(cache, lm, saes[-1]))
    for sae, row in zip(saes, splice(saes, cache, lm, TOKENS), strict=True):
        spliced = mean(slow_losses(cache, lm, sae))
        assert row["lm_tokens"] == len(clean)
        assert row["lm_loss"] == pytest.approx(mean(clean), rel=1e-5)
        assert row["delta_lm_loss"] == pytest.approx(spliced - mean(clean), abs=1e-5)
        wanted = 1 - (spliced - mean(clean)) / (zero - mean(clean))
        assert row["loss_recovered"] == pytest.approx(wanted, abs=1e-3)
        assert row["delta_lm_loss_low"] <= row["delta_lm_loss"] <= row["delta_lm_loss_high"]
        assert abs(row["delta_lm_loss"]) > 1e-3  # a hook that does nothing would not pass


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perfect_sae_costs_nothing(caches: dict[str, ActivationCache], family: str) -> None:
    (row,) = splice([identity_sae(32)], caches[family], model(family), TOKENS)
    assert row["delta_lm_loss"] == pytest.approx(0, abs=1e-6)
    assert row["loss_recovered"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_recover_nothing(caches: dict[str, ActivationCache], family: str) -> None:
    (row,) = splice([constant_sae(torch.zeros(32))], caches[family], model(family), TOKENS)
    assert row["loss_recovered"] == 0


@pytest.mark.parametrize("context", [Packed(24), PerDocument(24)])
def test_padding_does_not_matter(tmp_path: Path, context: ContextPolicy) -> None:
    lm = model("gpt2")
    cache = lm_cache(lm, tmp_path, context=context)
    saes = random_saes(32)
    together = splice(saes, cache, lm, TOKENS, batch_tokens=1024)
    alone = splice(saes, cache, lm, TOKENS, batch_tokens=1)
    for one, other in zip(together, alone, strict=True):
        assert one["lm_tokens"] == other["lm_tokens"]
        assert one["lm_loss"] == pytest.approx(other["lm_loss"], rel=1e-5)
        assert one["delta_lm_loss"] == pytest.approx(other["delta_lm_loss"], abs=1e-5)


def test_positions_that_do_not_count_keep_their_activations(tmp_path: Path) -> None:
    lm = model("llama")
    whole, settled = (
        lm_cache(lm, tmp_path, context=context) for context in (Packed(24), Settled(Packed(24), 6))
    )
    zero = constant_sae(torch.zeros(settled.d_in))
    clean, damaged = (slow_losses(settled, lm, sae) for sae in (None, zero))
    (row,), (other,) = (splice([zero], cache, lm, TOKENS) for cache in (settled, whole))
    assert row["lm_tokens"] == len(clean) < other["lm_tokens"]
    assert row["lm_loss"] == pytest.approx(mean(clean), rel=1e-5)
    assert row["delta_lm_loss"] == pytest.approx(mean(damaged) - mean(clean), abs=1e-5)
    assert abs(row["delta_lm_loss"] - other["delta_lm_loss"]) > 1e-3


@pytest.mark.parametrize("site", ["layers.1.resid_pre", "layers.0.mlp_out", "layers.2.attn_z"])
def test_other_sites(tmp_path: Path, site: str) -> None:
    lm = model("llama")
    cache = lm_cache(lm, tmp_path, site=site)
    perfect, zero = identity_sae(cache.d_in), constant_sae(torch.zeros(cache.d_in))
    good, bad = splice([perfect, zero], cache, lm, TOKENS)
    assert good["delta_lm_loss"] == pytest.approx(0, abs=1e-6)
    assert bad["loss_recovered"] == 0
    assert abs(bad["delta_lm_loss"]) > 1e-3


def test_the_prefix_runs_once_and_the_suffix_once_an_sae(
    caches: dict[str, ActivationCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, cache = model("llama"), caches["llama"]
    site = resolve_site(lm, SITE)  # which runs the model a few times itself
    monkeypatch.setattr(splicing, "resolve_site", lambda lm, name: site)
    batches = len(list(text_batches(cache, lm, TOKENS, 64)))
    assert batches > 1
    executed: Counter[int] = Counter()
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, index=index: executed.update([index]))
        for index, layer in enumerate(lm.layers)
    ]
    splice(random_saes(32), cache, lm, TOKENS, batch_tokens=64)
    for hook in hooks:
        hook.remove()
    assert LAYERS == 3
    # The suffix also runs for the clean and for the zero-ablated model.
    assert executed == {0: batches, 1: batches, 2: batches * (2 + 4)}


def test_special_positions_are_neither_replaced_nor_scored(
    caches: dict[str, ActivationCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, cache = model("neox"), caches["neox"]
    replaced: list[tuple[Any, torch.Tensor]] = []
    original = splicing.resume_at

    def watched(*arguments: Any) -> Any:
        passed = original(*arguments)

        class Watched:
            activations, logits = passed.activations, passed.logits

            def logits_with(self, replacement: torch.Tensor) -> torch.Tensor:
                replaced.append((passed, replacement))
                return passed.logits_with(replacement)

        return Watched()

    monkeypatch.setattr(splicing, "resume_at", watched)
    splice([constant_sae(torch.ones(32))], cache, lm, TOKENS)
    special = torch.tensor(sorted(lm.special_ids))
    separators = 0
    for passed, replacement in replaced:
        kept = torch.isin(passed.ids, special) | ~passed.mask
        assert torch.equal(replacement[kept], passed.activations[kept])
        assert (replacement[~kept] != passed.activations[~kept]).any(1).all()
        separators += int((passed.ids[:, 1:] == lm.eos_id).sum())
    assert separators > 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_intervals_are_over_the_documents_of_scored_positions(
    caches: dict[str, ActivationCache], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    lm, cache = model(family), caches[family]
    sums: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
        sums.append((numerator, denominator))
        return 0.0, 1.0

    monkeypatch.setattr(splicing, "bootstrap_ratio", recorded)
    sae = random_saes(32)[0]
    splice([sae], cache, lm, TOKENS)
    totals: dict[int, list[float]] = {}
    clean, spliced = slow_losses(cache, lm, None), slow_losses(cache, lm, sae)
    for (before, document), (after, _) in zip(clean, spliced, strict=True):
        totals.setdefault(document, []).append(after - before)
    assert len(totals) > 2
    assert -1 not in totals
    wanted = [totals[document] for document in sorted(totals)]
    np.testing.assert_allclose(sums[0][0], [sum(deltas) for deltas in wanted], atol=1e-3)
    np.testing.assert_array_equal(sums[0][1], [len(deltas) for deltas in wanted])


def test_the_model_is_left_as_it_was(caches: dict[str, ActivationCache]) -> None:
    lm = model("llama")
    ids = torch.tensor([[1, 5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    before = lm.logits(ids, mask)
    splice([constant_sae(torch.ones(32))], caches["llama"], lm, TOKENS)
    assert torch.equal(lm.logits(ids, mask), before)


def test_contexts_are_spread_over_the_whole_cache(caches: dict[str, ActivationCache]) -> None:
    cache = caches["llama"]
    every = [tuple(context.ids) for context in cache.contexts()]
    total = sum(map(len, every))
    assert [tuple(context.ids) for context in spread(cache, 10 * total)] == every
    chosen = [every.index(tuple(context.ids)) for context in spread(cache, total // 3)]
    assert abs(len(chosen) - len(every) / 3) <= 1
    assert set(np.diff(chosen)) <= {2, 3, 4}
    assert len(spread(cache, 1)) == 1
