"""Context length: parts in common units, positions, vanishing firings, from end to end."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ablations import _vanishing, context_length
from ablations._matched import ALL, BOTH, FVU, LINES, LOSS, effects, interval_of, opposed
from ablations._positions import apart_by_position, at_l0, by_bin
from ablations._turnover import OWN, by_class, elicits_other, lost, shares, tabulated
from ablations._vanishing import CONTROL, Cut, foreign_to, last_activations, reach, readings
from sae_bench import ablation
from sae_bench.ablation import Data
from sae_bench.cache import ActivationCache
from sae_bench.contexts import Context, Packed, VariableLength
from sae_bench.contrasts import Interval
from sae_bench.results import Results
from sae_bench.sites import resolve_site
from sae_bench.study import study
from tests.desk import furnish
from tests.grids import lm_cache
from tests.tiny import tiny_model

STUDY = context_length.PRESETS["study"]
LETTERS = Data(
    model="model",
    site="layers.1.resid_post",
    text="text.jsonl",
    tokens=1000,
    held_out_tokens=200,
    lm_tokens=100,
)
LENGTHS = (6, 12, 24)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = furnish(tmp_path_factory.mktemp("desk"))
    recipe = STUDY.recipe.replace(
        tokens=512, batch_size=64, lr_warmup=1, lr_decay=1, penalty_warmup=2
    )
    small = STUDY.replace(
        data=LETTERS,
        d_sae=200,
        recipe=recipe,
        lengths=LENGTHS,
        shortest=4,
        k=(80, 13),
        jumprelu=(1.9e-4, 1.6e-3),
        seeds=(0, 1),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("SAE_BENCH_CACHE", str(folder / "cache"))
        chosen = ablation.load("context_length")
        return study(chosen, small.parts(), folder / "run", device="cpu")


def test_the_grid_and_its_contexts() -> None:
    parts = STUDY.parts()
    contexts = {name: part.data.context for name, part in parts.items()}
    assert contexts == {
        "64": Packed(64),
        "256": Packed(256),
        "1024": Packed(1024),
        "variable": VariableLength(16, 1024),
    }
    assert {part.scaled_by() for part in parts.values()} == {parts["256"].data}
    assert list(STUDY.evaluation()) == ["64", "256", "1024"]
    keys = [[arm.key for arm in context_length.arms(part)] for part in parts.values()]
    assert all(each == keys[0] for each in keys)
    arms = context_length.arms(STUDY)
    assert len(set(keys[0])) == len(arms) == 18
    assert not any(arm.objection for arm in arms)
    assert all(arm.ends_warm and arm.recipe.data_seed == arm.seed for arm in arms)
    assert len({arm.setting for arm in arms}) == 6
    assert STUDY.recipe.steps * STUDY.recipe.batch_size == STUDY.data.tokens  # each token once


def test_from_end_to_end(results: Results) -> None:
    table, further = results.table, results.further
    assert set(table["status"]) == {"trained"}
    assert set(table["part"]) == {"6", "12", "24", "variable"}
    assert table.groupby(["part", "eval_set"]).size().eq(8).all()
    assert table["activation_scale"].nunique() == 1
    assert table["delta_lm_loss"].notna().all()

    reading = further["reading"].set_index("part")
    assert reading.loc["12", "relative_norm"] == pytest.approx(1, abs=1e-6)
    assert (reading["relative_norm"] - 1).abs().max() < 0.2
    assert reading["documents"].max() == reading["documents"].min()
    assert reading.loc["6", "from_6"] == 0 < reading.loc["24", "from_12"]

    positions = further["positions"]
    assert set(positions["position"]) == {1, 2, 4, 8, 16}
    longest = table[table["eval_set"] == "24"].set_index("arm")
    found = positions.set_index("arm")
    tokens = positions.groupby("arm")["tokens"].sum()
    assert (tokens == longest["tokens"][tokens.index]).all()
    l0 = (found["l0"] * found["tokens"]).groupby("arm").sum() / tokens
    assert l0.to_numpy() == pytest.approx(longest["l0"][l0.index].to_numpy())

    vanishing = further["vanishing"]
    assert set(vanishing["cut"]) == {"6", "12", CONTROL}
    assert vanishing.groupby("part")["arm"].nunique().eq(4).all()  # two lines, two seeds
    counts = vanishing.groupby(["arm", "cut"])[["firings", "vanished"]].sum()
    assert (counts["vanished"] <= counts["firings"]).all()
    assert counts["vanished"].sum() > 0
    by_frequency = further["latents"].groupby(["arm", "cut"])[["firings", "vanished"]].sum()
    pd.testing.assert_frame_equal(by_frequency, counts, check_dtype=False)

    drawn = context_length.figures(results)
    assert set(drawn) == {"fvu_vs_l0", "effects", "positions", "vanishing"}
    for each in drawn.values():
        each.draw_without_rendering()
    said = context_length.answer(results)
    rows = context_length.contrasts(results)
    last = rows[rows["position"] == 16]
    assert set(last["contrast"]) == {"6", "24", "variable"}
    assert set(rows["cut"].dropna()) == {"6", "12", CONTROL, OWN}
    for words in ("Is 6 enough?", "Fixed or variable?", "other latents fire", "Not decided"):
        assert words in said


def test_a_run_that_is_not_finished(results: Results) -> None:
    one = results.table[results.table["part"] == "12"]
    assert "not among the parts: 6" in context_length.answer(Results(one, results.frequencies))
    assert list(context_length.figures(Results(one, results.frequencies))) == ["fvu_vs_l0"]


def grid_of(effect: dict[str, float], seeds: int = 3) -> pd.DataFrame:
    """log FVU = -0.5 log L0 + effect of the training context, twice that in contexts of 1024, in
    JumpReLU alone; the sign of the seed's noise alternates."""
    rows = []
    for part, shift in effect.items():
        for line in LINES:
            for name in ("64", "256", "1024"):
                for seed in range(seeds):
                    for l0 in (12, 30, 70):
                        noise = 0.001 * (-1) ** seed * (part != "256")
                        more = shift * (1 + (name == "1024")) * (line == "JumpReLU") + noise
                        y = -0.5 * np.log(l0) + more
                        known = {"part": part, "line": line, "eval_set": name, "seed": seed}
                        logs = {"log_l0": np.log(l0), "log_fvu": y, "delta_lm_loss": y - 1}
                        rows.append(known | logs | {"arm": f"{part}/{line}-{seed}-{l0}"})
    return pd.DataFrame(rows)


def test_effects_are_found_where_they_are() -> None:
    found = effects(grid_of({"64": 0.1, "256": 0.0, "1024": -0.05, "variable": 0.0}))
    assert found[found["contrast"] == "256"]["mean"].eq(0).all()
    assert set(found["places"]) == {"16, 32, 64", "16, 32"}  # the loss at two
    for outcome in (FVU, LOSS):
        for evaluate, times in (("64", 1), ("1024", 2), (ALL, 4 / 3)):
            where = {"outcome": outcome.name, "evaluate": evaluate, "contrast": "64"}
            by_line = [interval_of(found, line=line, **where).mean for line in LINES]
            assert by_line == pytest.approx([0, 0.1 * times], abs=1e-3)
            both = interval_of(found, line=BOTH, **where)
            assert both.mean == pytest.approx(0.05 * times, abs=1e-3)
            assert both.low > 0
    short = interval_of(found, outcome=FVU.name, evaluate="64", line=BOTH, contrast="1024")
    assert short.high < 0


def test_what_counts_as_enough() -> None:
    assert context_length.call(Interval(-0.01, -0.03, 0.01, 3)) == "enough"
    assert context_length.call(Interval(0.01, 0.005, 0.015, 3)) == "enough"
    assert context_length.call(Interval(0.05, 0.01, 0.09, 3)) == "not enough"
    assert context_length.call(Interval(0.05, -0.01, 0.11, 3)) == "not decided"
    assert context_length.call(Interval(0.05, np.nan, np.nan, 1)) == "not decided"


def test_positions_fall_into_powers_of_two() -> None:
    position = np.array([1, 2, 3, 4, 7, 8, 15, 16, 1023])
    first, (counts, values) = by_bin(position, np.ones(9), position.astype(float))
    assert first.tolist() == [1, 2, 4, 8, 16, 512]
    assert counts.tolist() == [1, 2, 2, 2, 1, 1]
    assert values.tolist() == [1, 5, 11, 23, 16, 1023]


def test_fvu_by_position_is_matched_in_mean_l0() -> None:
    table = grid_of({"64": 0.1, "256": 0.0})
    table = table[table["eval_set"] == "1024"]
    one = table[["arm", "eval_set"]].assign(l0=1.0, fvu=np.exp(table["log_fvu"]))
    found = pd.concat([one.assign(position=1), one.assign(position=2, fvu=2 * one["fvu"])])
    values = at_l0(found, table, "fvu", 32)
    expected = np.exp(-0.5 * np.log(32))
    assert values.loc[("TopK", 1), "256"].to_numpy() == pytest.approx(expected, rel=1e-3)
    assert values.loc[("TopK", 2), "256"].to_numpy() == pytest.approx(2 * expected, rel=1e-3)
    values.loc[(slice(None), 2), "64"] *= np.exp(0.3)
    apart = apart_by_position(values, "256")
    assert apart[["position", "contrast", "n"]].to_numpy().tolist() == [[1, "64", 3], [2, "64", 3]]
    assert apart["mean"].tolist() == pytest.approx([0.1, 0.4], abs=1e-3)  # lines: 0 and 0.2, + 0.3
    assert interval_of(apart, position=2, contrast="64").low > 0.3


def test_how_far_one_document_reaches() -> None:
    assert reach(np.array([-1, 4, 4, 4, -1, 5, 5])).tolist() == [1, 1, 2, 3, 1, 1, 2]


def test_a_foreign_context_shares_no_document() -> None:
    owners = [[-1, 0, 0], [-1, 0, 1], [-1, 1, 2], [-1, 2, 3]]
    contexts = [Context(np.zeros(3, int), np.array(each)) for each in owners]
    assert [contexts.index(foreign_to(contexts, index)) for index in range(4)] == [2, 3, 0, 1]


def cut() -> Cut:
    """Latent 0 fires ten times and loses six, latent 1 ten times and loses five, latent 2 appears
    twice, latent 3 fires once and loses that."""
    longer, shorter = (torch.zeros(10, 4, dtype=torch.bool) for _ in range(2))
    longer[:, :2] = shorter[:, :2] = True
    shorter[:6, 0] = shorter[5:, 1] = False
    shorter[:2, 2] = True
    longer[9, 3] = True
    return Cut(longer, shorter)


def test_vanished_and_appeared_firings_by_document() -> None:
    documents = np.array([7] * 5 + [3] * 5)
    found = cut().by_document(documents)
    assert found.to_dict("list") == {
        "document": [3, 7],
        "firings": [11, 10],
        "vanished": [1 + 5 + 1, 5],
        "appeared": [0, 2],
    }


def test_vanished_firings_by_frequency() -> None:
    found = cut().by_frequency(np.array([0.5, 0.05, 0.05, 0.0]))
    assert found.to_dict("list") == {
        "frequency": [1e-3, 1e-2, 1e-1, 1.0],
        "firings": [1, 0, 10, 10],
        "vanished": [1, 0, 5, 6],
        "latents": [0, 0, 1, 1],
        "lost": [0, 0, 0, 1],  # half is not more than half; one firing says nothing
    }
    assert lost(found.assign(cut="64")).to_dict("records") == [
        {"cut": "64", "mean": 0.5, "latents": 2}
    ]


def test_what_vanishes_is_a_row_a_claim() -> None:
    """Of the rarest class nothing fires; more vanishes by the cut than by the control in the most
    frequent one alone."""
    counts = {"frequency": [1e-3, 1e-2, 1.0], "firings": [0, 10, 20], "latents": 4, "lost": 1}
    cuts = {"64": [0, 2, 10], "256": [0, 1, 1], CONTROL: [0, 2, 5]}
    by_frequency = pd.concat(
        pd.DataFrame({"cut": name, "line": "TopK", "vanished": vanished} | counts)
        for name, vanished in cuts.items()
    )
    classes = by_class(by_frequency, "64").set_index("frequency")
    assert classes["mean"].to_dict() == {1e-2: 0, 1.0: 0.25}
    assert classes["firings"].tolist() == [10, 20]
    firings = [
        {"part": "1024", "line": "TopK", "cut": name, "seed": seed, "document": document}
        | {"firings": 10, "vanished": vanished[1], "appeared": 1}
        for name, vanished in cuts.items()
        for seed in range(2)
        for document in range(3)
    ]
    rows = tabulated(pd.DataFrame(firings), by_frequency, ("64", "256", "1024"))
    assert rows["evaluate"].eq("1024").all()
    where = {"line": "TopK", "cut": OWN}
    assert interval_of(rows.assign(n=2), contrast="1024", **where).mean == pytest.approx(0)
    assert rows.loc[rows["frequency"] == 1.0, ["contrast", "cut", "mean"]].to_numpy().tolist() == [
        [ALL, OWN, 0.25]
    ]
    assert rows.loc[rows["latents"].notna(), "mean"].eq(0.25).all()
    assert len(rows) == 4 + 2 + 3


def test_the_control_is_taken_off() -> None:
    vanished = {"64": (4, 4, 4), "256": (1, 1, 1), CONTROL: (2, 3, 1)}
    rows = [
        {"part": "1024", "line": "TopK", "cut": name, "seed": seed, "document": document}
        | {"firings": 10, "vanished": counts[seed], "appeared": 1}
        for name, counts in vanished.items()
        for seed in range(3)
        for document in range(12)
    ]
    found = shares(pd.DataFrame(rows), "64").set_index("cut")
    assert found["share"].to_dict() == pytest.approx(
        {"64": 0.4, "256": 0.1, CONTROL: 0.2, OWN: 0.2}
    )
    assert found.loc[OWN, ["low", "high"]].tolist() == pytest.approx([0.2, 0.2])  # documents alike
    assert found.loc["64", ["seeds_low", "seeds_high"]].tolist() == pytest.approx([0.4, 0.4])
    assert found.loc[OWN, "seeds_low"] < 0.2 < found.loc[OWN, "seeds_high"]
    assert found.loc[OWN, "appeared"] == pytest.approx(0)
    bounds = {(0.1, 0.3): "Yes", (0.01, 0.015): "Yes, but by less than 2 points"}
    bounds |= {(-0.01, 0.01): "No", (-0.01, 0.3): "Not decided"}
    for (low, high), word in bounds.items():
        assert elicits_other(found.reset_index().assign(low=low, high=high), "1024") == word
    assert elicits_other(found.reset_index(), "64") == "Not decided"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    cache = lm_cache(tiny_model("llama"), tmp_path_factory.mktemp("cache"))
    assert cache.held_out is not None
    return cache.held_out


def test_tokens_are_read_after_the_texts_they_should_be(
    evaluation: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_vanishing, "TOKENS", 40)
    read: list[list[np.ndarray]] = []

    def keep(lm: object, site: object, texts: list[np.ndarray]) -> torch.Tensor:
        read.append(texts)
        return last_activations(lm, site, texts)  # type: ignore[arg-type]

    monkeypatch.setattr(_vanishing, "last_activations", keep)
    found = readings.__wrapped__(evaluation, 6, 12)
    assert found is not None
    assert len(found.documents) == 40
    lm = evaluation.language_model()
    assert lm is not None
    middle, short, foreign = read
    rows = _vanishing.drawn(evaluation, 12)
    columns, contexts = evaluation.columns(), list(evaluation.contexts())
    wholes = []
    for index, row in enumerate(rows):
        context, end = contexts[columns.context[row]], columns.position[row] + 1
        wholes.append(context.ids[:end])
        assert len(set(context.documents[end - 12 : end])) == 1
        assert [len(each[index]) for each in (short, middle, foreign)] == [6, 12, end]
        for each in (short, middle, foreign):
            assert each[index][0] == lm.bos_id
            assert each[index][-5:].tolist() == context.ids[end - 5 : end].tolist()
        assert middle[index][1:].tolist() == context.ids[end - 11 : end].tolist()
        assert foreign[index][-6] == lm.eos_id
    assert [len(each) for each in wholes] != sorted(len(each) for each in wholes)
    again = last_activations(lm, resolve_site(lm, "layers.1.resid_post"), wholes)
    torch.testing.assert_close(found.whole, again, atol=1e-4, rtol=1e-4)
    alone = [
        last_activations(lm, resolve_site(lm, "layers.1.resid_post"), [text]) for text in foreign
    ]
    torch.testing.assert_close(found.foreign, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_without_a_language_model_nothing_is_read() -> None:
    assert readings(ActivationCache.from_tensor(torch.randn(50, 4)), 6, 12) is None


def test_what_is_published_says_the_same(results: Results, tmp_path: Path) -> None:
    results.publish("context_length", tmp_path)
    again = Results.published("context_length", tmp_path)
    assert context_length.answer(again) == context_length.answer(results)


def test_fvu_and_loss_that_disagree_are_named() -> None:
    rows = [
        {"outcome": outcome.name, "line": BOTH, "evaluate": where, "contrast": "64", "n": 3}
        | {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
        for where, means in {
            "64": (-0.05, 0.02),
            "256": (0.05, 0.02),
            "1024": (-0.05, 0.005),
        }.items()
        for outcome, mean in zip((FVU, LOSS), means, strict=True)
    ]
    assert list(opposed(pd.DataFrame(rows), ["64"], ["64", "256", "1024"])) == [("64", "64")]
