"""Finished SAEs beside trained arms of a run."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from architectures import JumpReLUSAE, ReLUSAE, TopKSAE
from sae_bench.activations import TopK
from sae_bench.arm import Arm, grid
from sae_bench.cache import ActivationCache
from sae_bench.cli import main
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.loading import load_sae, save_sae
from sae_bench.penalties import L1
from sae_bench.released import Released, by_part, released_at
from sae_bench.run import run
from sae_bench.store import RunFolder
from sae_bench.train import Trainee
from tests.foreign import D_IN, K, random_sae
from tests.grids import RECIPE, SITE, tensor_cache
from tests.runs import MODULE, forbidden

ARMS = grid(ReLUSAE, d_sae=20, penalty=[L1(0.01), L1(0.1)], recipe=RECIPE)


@pytest.fixture(scope="module")
def cache() -> ActivationCache:
    return tensor_cache(d_in=D_IN)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_sae(random_sae(JumpReLUSAE), tmp_path / "params.npz", "gemma-scope")
    return tmp_path / "params.npz"


def start(arms: list[Any], cache: ActivationCache, out: Path) -> pd.DataFrame:
    return run(arms, cache, out=out, device="cpu")


def test_a_row_beside_trained_arms(file: Path, cache: ActivationCache, tmp_path: Path) -> None:
    released = Released(file, "Gemma Scope")
    table = start([*ARMS, released], cache, tmp_path / "run")
    assert list(table["status"]) == ["trained", "trained", "released"]
    row = table.iloc[-1]
    assert row["arm"] == released.key
    assert row["series"] == "Gemma Scope"
    assert row["architecture"] == "JumpReLU"
    assert row["d_sae"] == released.sae.d_sae
    assert row["reason"] == ""
    assert cache.held_out is not None
    measured = evaluate(load_sae(file), cache.held_out).iloc[0]
    for name in ("l0", "fvu", "gamma", "dead", "tokens"):
        assert row[name] == measured[name]
    assert 1 < row["l0"] < released.sae.d_sae - 1
    arm = json.loads((tmp_path / "run" / "arms" / released.key / "arm.json").read_text())
    assert arm["released"] == str(file)


def test_a_released_sae_alone(file: Path, cache: ActivationCache, tmp_path: Path) -> None:
    (status,) = start([Released(file)], cache, tmp_path / "run")["status"]
    assert status == "released"


def test_a_second_call_measures_nothing(
    file: Path, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start([*ARMS, Released(file)], cache, tmp_path / "run")
    for name in ("evaluate", "train_arms"):
        monkeypatch.setattr(MODULE, name, forbidden)
    second = start([*ARMS, Released(file)], cache, tmp_path / "run")
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_it_may_join_a_finished_run(
    file: Path, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(ARMS, cache, tmp_path / "run")
    monkeypatch.setattr(MODULE, "train_arms", forbidden)
    table = start([*ARMS, Released(file)], cache, tmp_path / "run")
    assert list(table["status"]) == ["trained", "trained", "released"]
    assert table["l0"].notna().all()


def test_a_run_killed_before_its_evaluation(
    file: Path, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The process ended here."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    arms = [*ARMS, Released(file)]
    expected = start(arms, cache, tmp_path / "other").drop(columns="seconds")
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "evaluate", killed)
        with pytest.raises(Killed):
            start(arms, cache, tmp_path / "run")
    file.unlink()  # what was adopted is in the folder
    monkeypatch.setattr(MODULE, "train_arms", forbidden)
    table = start(arms, cache, tmp_path / "run").drop(columns="seconds")
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


@pytest.mark.parametrize("arms", [ARMS, []])
def test_another_width_is_refused_before_training(
    arms: list[Arm], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainee, "step", forbidden)
    with pytest.raises(InputError, match=f"^{file}: reads activations of width 16, these have 8$"):
        start([*arms, Released(file)], tensor_cache(d_in=8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sites_must_agree(tmp_path: Path) -> None:
    sae = random_sae(JumpReLUSAE)
    sae.provenance = {"site": SITE}
    sae.save(tmp_path)
    released = Released(tmp_path)
    for site in (SITE, None):
        released.check_source(D_IN, {"site": site})
    other = "layers.0.resid_post"
    with pytest.raises(InputError, match=f"belongs to {SITE}, the activations are of {other}$"):
        released.check_source(D_IN, {"site": other})


def of_model(tmp_path: Path, name: str | None, fingerprint: str | None = None) -> Released:
    sae = random_sae(JumpReLUSAE)
    sae.provenance = {"model": name, "model_fingerprint": fingerprint}
    sae.save(tmp_path)
    return Released(tmp_path)


HERE = {"model": {"name": "google/gemma-2-2b", "fingerprint": "a"}}


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("google/gemma-2-2b", None),
        ("Gemma-2-2B", None),
        ("mirror/gemma-2-2b", None),
        ("my-folder", "a"),  # the very weights
        (None, None),
    ],
)
def test_the_same_model_under_any_name(
    tmp_path: Path, name: str | None, fingerprint: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    of_model(tmp_path, name, fingerprint).check_source(D_IN, HERE)
    of_model(tmp_path, name, fingerprint).check_source(D_IN, {})
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("name", "fingerprint"), [("google/gemma-2-2b-it", None), ("my-folder", "b")]
)
def test_another_model_is_refused(tmp_path: Path, name: str, fingerprint: str | None) -> None:
    released = of_model(tmp_path, name, fingerprint)
    said = f"belongs to the model {name}, the activations are of google/gemma-2-2b; if that is"
    with pytest.raises(InputError, match=said):
        released.check_source(D_IN, HERE)
    target = ["convert", str(tmp_path), str(tmp_path / "meant"), "--to", "sae-ablations"]
    assert main([*target, "--model", "google/gemma-2-2b"]) == 0
    Released(tmp_path / "meant").check_source(D_IN, HERE)


@pytest.mark.parametrize(
    ("name", "fingerprint", "said"),
    [
        ("gemma", None, "belongs to the model gemma, .* which may be another one"),
        ("google/gemma-2-2b", "b", "with other weights, or of another dtype"),
    ],
)
def test_what_may_be_another_model_is_warned_about(
    tmp_path: Path, name: str, fingerprint: str | None, said: str
) -> None:
    released = of_model(tmp_path, name, fingerprint)
    with pytest.warns(UserWarning, match=said):
        released.check_source(D_IN, HERE)


def test_keys_follow_the_content(file: Path, tmp_path: Path) -> None:
    assert Released(file, "one").key == Released(file.parent, "other").key
    keys = {Released(file).key}
    for k in (K, K + 1):  # the same weights
        save_sae(random_sae(TopKSAE, activation=TopK(k)), tmp_path / str(k), "saelens")
        keys.add(Released(tmp_path / str(k)).key)
    save_sae(random_sae(ReLUSAE), tmp_path / "relu", "saelens")
    keys.add(Released(tmp_path / "relu").key)
    assert len(keys) == 4


def test_the_same_sae_twice(file: Path, cache: ActivationCache, tmp_path: Path) -> None:
    said = f"given twice: 'released' \\({file}\\) and 'again' \\({file}\\) are one SAE$"
    with pytest.raises(InputError, match=said):
        start([Released(file), Released(file, "again")], cache, tmp_path / "run")


def test_a_new_name(
    file: Path, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start([Released(file, "old")], cache, tmp_path / "run")
    monkeypatch.setattr(MODULE, "evaluate", forbidden)
    moved = file.rename(tmp_path / "moved.npz")
    released = Released(moved, "new")
    (series,) = start([released], cache, tmp_path / "run")["series"]
    assert series == "new"
    for record in (
        json.loads((tmp_path / "run" / "arms" / released.key / "arm.json").read_text()),
        json.loads((tmp_path / "run" / "grid.json").read_text())["arms"][released.key],
    ):
        assert (record["name"], record["released"]) == ("new", str(moved))
    assert RunFolder(tmp_path / "run").is_evaluated(released)


def test_no_such_sae(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        Released(tmp_path / "nowhere")


# -- folders of them ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, an SAE of a folder, and one in a hidden folder."""
    place = tmp_path / "many"
    for index in (0, 1):
        save_sae(random_sae(JumpReLUSAE, index), place / f"layer_{index}" / "a.npz", "gemma-scope")
        save_sae(random_sae(JumpReLUSAE, 2 + index), place / f"{index}.npz", "gemma-scope")
    save_sae(random_sae(TopKSAE), place / "topk", "saelens")
    save_sae(random_sae(ReLUSAE), place / ".hidden", "saelens")
    return place


def test_a_folder_stands_for_all_in_it(folder: Path) -> None:
    found = released_at(folder)
    names = [Path(each.path).relative_to(folder).as_posix() for each in found]
    assert names == ["0.npz", "1.npz", "layer_0/a.npz", "layer_1/a.npz", "topk"]
    jump, topk = "many: JumpReLU, 48 latents", "many: TopK, 48 latents"
    assert [each.name for each in found] == [jump] * 4 + [topk]
    for each in found:
        assert each.key == Released(each.path).key


def test_one_sae_is_itself(folder: Path) -> None:
    for path in (folder / "topk", folder / "0.npz", str(folder / "topk")):
        (found,) = released_at(path)
        assert (found.path, found.name) == (path, "released")


def test_a_folder_of_none(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.txt").write_text("x")
    with pytest.raises(InputError, match="no SAE in a known format") as caught:
        released_at(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_one_among_them_is_named(folder: Path) -> None:
    (folder / "1.npz").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"many/1\.npz"):
        released_at(folder)


def sited(file: Path, site: str | None) -> Released:
    released = Released(file, f"of {site}")
    released.sae.provenance = {"site": site}
    return released


def test_each_part_has_those_of_its_site(file: Path) -> None:
    one, other, nowhere = (sited(file, site) for site in ("a", "b", None))
    assert by_part([one, other], {"first": "a", "second": "b", "again": "a", "third": "c"}) == {
        "first": [one],
        "second": [other],
        "again": [one],
        "third": [],
    }
    assert by_part([one, nowhere], {"": "a"}) == {"": [one, nowhere]}
    assert by_part([one, nowhere], {"": None}) == {"": [one, nowhere]}  # a tensor


def test_no_part_for_it(file: Path) -> None:
    parts = {"first": "a", "second": "c"}
    with pytest.raises(InputError, match=f"^{file}: belongs to b, the activations are of a, c; "):
        by_part([sited(file, "b")], parts)
    with pytest.raises(InputError, match=f"^{file}: does not say its site, and the parts have 2; "):
        by_part([sited(file, None)], parts)
