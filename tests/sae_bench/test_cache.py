import json
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.cache import BLOCK, ActivationCache
from sae_bench.contexts import PerDocument
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.placement import DeviceRows, DiskRows, HostRows, Placement
from sae_bench.sites import resolve_site
from tests.corpus import Letters
from tests.tiny import tiny_model, tiny_tokenizer

SITE = "layers.1.resid_post"
LLAMA = tiny_model("llama")


def build(root: Path | None, tokens: int = 1200, **changes: object) -> ActivationCache:
    options: dict[str, object] = {
        "model": LLAMA,
        "sites": [SITE],
        "text": Letters(),
        "context": PerDocument(32),
        "held_out_tokens": 200,
        "shard_tokens": 400,
        "root": root,
    }
    return ActivationCache.build(tokens=tokens, **{**options, **changes})[SITE]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return build(tmp_path_factory.mktemp("cache"))


def first(cache: ActivationCache, n: int, size: int = 100, seed: int = 3) -> torch.Tensor:
    return torch.stack(list(islice(cache.batches(size, seed), n)))


def everything(cache: ActivationCache) -> torch.Tensor:
    return torch.cat(list(cache.chunks(77)))


# --- what a cache is ----------------------------------------------------------------------------


def test_sizes_and_scale(stored: ActivationCache) -> None:
    assert (stored.d_in, stored.site) == (32, SITE)
    assert 1200 <= stored.rows < 1300
    x = everything(stored)
    assert x.shape == (stored.rows, 32)
    assert stored.scale == pytest.approx(x.double().square().sum(1).mean().sqrt().item(), rel=1e-12)


def test_a_scale_that_several_caches_share(stored: ActivationCache) -> None:
    shared = stored.scaled(2 * stored.scale)
    assert torch.equal(2 * first(shared, 3), first(stored, 3))
    assert torch.equal(everything(shared), everything(stored))  # rows are raw
    assert shared.record() == stored.record() | {"scale": 2 * stored.scale}
    assert shared.placed("cpu").scale == shared.scale
    assert stored.scaled(stored.scale).record() == stored.record()
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive number"):
            stored.scaled(wrong)


def test_the_held_out_cache_is_of_other_documents(stored: ActivationCache) -> None:
    assert stored.held_out is not None
    assert 400 <= stored.held_out.rows < 500  # a shard
    assert stored.held_out.held_out is None
    training, held_out = (
        set(cache.columns().document.tolist()) for cache in (stored, stored.held_out)
    )
    assert not training & held_out


def test_columns_belong_to_rows_and_contexts(stored: ActivationCache) -> None:
    columns, contexts = stored.columns(), list(stored.contexts())
    assert len(columns.token) == stored.rows
    assert set(columns.context.tolist()) == set(range(len(contexts)))
    for row in range(0, stored.rows, 50):
        context = contexts[columns.context[row]]
        assert context.ids[columns.position[row]] == columns.token[row]
        assert context.documents[columns.position[row]] == columns.document[row]


def test_contexts_stop_at_the_limit(stored: ActivationCache) -> None:
    lengths = [len(context.ids) for context in stored.contexts()]
    some = [len(context.ids) for context in stored.contexts(limit_tokens=500)]
    assert some == lengths[: len(some)]
    assert sum(some[:-1]) < 500 <= sum(some)
    assert list(stored.contexts(limit_tokens=0)) == []


def test_the_record_is_json_and_names_all(stored: ActivationCache) -> None:
    record = json.loads(json.dumps(stored.record()))
    assert record["model"]["name"] == "tiny-llama"
    assert record["site"] == SITE
    assert record["context"] == {"class": "PerDocument", "length": 32}
    assert record["text"]["class"] == "Letters"
    assert record["rows"] == stored.rows
    assert stored.held_out is not None
    assert stored.held_out.record()["id"] != record["id"]


def test_several_sites(tmp_path: Path) -> None:
    sites = ["layers.0.mlp_out", SITE]
    both = ActivationCache.build(
        LLAMA,
        sites,
        Letters(),
        400,
        shard_tokens=400,
        held_out_tokens=0,
        context=PerDocument(32),
        root=tmp_path,
    )
    assert list(both) == sites
    assert both[SITE].held_out is None
    assert not torch.equal(first(both[SITE], 1), first(both["layers.0.mlp_out"], 1))


# --- found again --------------------------------------------------------------------------------


def test_a_longer_cache_serves_a_shorter_run(tmp_path: Path) -> None:
    short = build(tmp_path / "short", 500)
    batches, record = first(short, 12), short.record()
    build(tmp_path / "long", 2000)
    view = build(tmp_path / "long", 500)
    assert torch.equal(first(view, 12), batches)
    assert view.record() == record
    assert torch.equal(
        first(build(tmp_path / "short", 2000), 12), first(build(tmp_path / "long", 2000), 12)
    )
    assert torch.equal(first(build(tmp_path / "short", 500), 12), batches)


def test_open_finds_everything(stored: ActivationCache) -> None:
    assert stored.folder is not None
    found = ActivationCache.open(stored.folder)
    assert found.record() == stored.record()
    assert torch.equal(first(found, 3), first(stored, 3))
    assert found.held_out is not None
    assert stored.held_out is not None
    assert torch.equal(everything(found.held_out), everything(stored.held_out))


def test_the_default_root_is_in_the_user_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    cache = build(None, 100)
    assert cache.folder is not None
    assert cache.folder.parent == tmp_path / "activations"


def test_damage_is_reported_where_it_is_read(tmp_path: Path) -> None:
    build(tmp_path)
    shard = sorted(tmp_path.rglob("train/*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"000001\.safetensors is damaged"):
        everything(build(tmp_path))
    shard.unlink()
    assert torch.equal(everything(build(tmp_path)), everything(build(tmp_path / "other")))


def test_a_shard_of_another_cache_is_recognised(tmp_path: Path) -> None:
    build(tmp_path / "one")
    build(tmp_path / "two", model=tiny_model("llama", seed=1))
    (mine,) = (tmp_path / "one").rglob("train/000000.safetensors")
    (theirs,) = (tmp_path / "two").rglob("train/000000.safetensors")
    theirs.replace(mine)
    with pytest.raises(InputError, match="belongs to another cache"):
        everything(build(tmp_path / "one"))


def test_the_language_model_is_found_again(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        tiny_model("llama", seed).model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    cache = build(tmp_path / "root", model=str(tmp_path / "a"))
    assert cache.folder is not None
    again = ActivationCache.open(cache.folder)
    model = again.language_model()
    assert isinstance(model, LanguageModel)
    assert model is again.language_model()
    assert resolve_site(model, SITE).d_in == cache.d_in

    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match="not the one"):
        ActivationCache.open(cache.folder).language_model()


def test_a_model_object_is_kept_but_not_found_again(stored: ActivationCache) -> None:
    assert stored.language_model() is LLAMA
    assert stored.folder is not None
    with pytest.raises(InputError, match="given as an object"):
        ActivationCache.open(stored.folder).language_model()


# --- batches ------------------------------------------------------------------------------------


def test_an_epoch_visits_every_block_once_in_random_order(stored: ActivationCache) -> None:
    x = everything(stored)
    blocks = stored.rows // BLOCK
    visited = first(stored, 2 * blocks, size=BLOCK)
    wanted = (x[: blocks * BLOCK].reshape(blocks, BLOCK, 32)) / stored.scale
    index_of = {tuple(block[0].tolist()): index for index, block in enumerate(wanted)}
    order = [index_of[tuple(block[0].tolist())] for block in visited]
    assert torch.equal(visited, wanted[torch.tensor(order)])
    once, twice = order[:blocks], order[blocks:]
    assert sorted(once) == sorted(twice) == list(range(blocks))
    assert once != twice != list(range(blocks)) != once


def test_batches_are_normalised(stored: ActivationCache) -> None:
    usable = stored.rows // BLOCK * BLOCK
    (epoch,) = islice(stored.batches(usable, 0), 1)
    assert epoch.dtype == torch.float32
    assert epoch.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(7, 300), min_size=2, max_size=2), seed=st.integers(0, 9))
def test_any_batch_size_cuts_the_same_stream(sizes: list[int], seed: int) -> None:
    cache = ActivationCache.from_tensor(torch.arange(1.0, 335.0)[:, None], held_out=0.1)
    streams = [
        torch.cat(list(islice(cache.batches(size, seed), 1 + 700 // size))) for size in sizes
    ]
    assert torch.equal(streams[0][:700], streams[1][:700])


@pytest.mark.parametrize("start", [1, 5, 40])
def test_start_resumes(stored: ActivationCache, start: int) -> None:
    late = list(islice(stored.batches(100, 3, start), 3))
    assert torch.equal(torch.stack(late), first(stored, start + 3)[start:])


def test_seeds_choose_the_order(stored: ActivationCache) -> None:
    assert torch.equal(first(stored, 4, seed=1), first(stored, 4, seed=1))
    assert not torch.equal(first(stored, 4, seed=1), first(stored, 4, seed=2))


def test_no_global_random_state_is_used(stored: ActivationCache) -> None:
    before = torch.get_rng_state()
    batches = first(stored, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first(stored, 2), batches)
    torch.set_rng_state(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_placements_give_the_same_batches(tmp_path: Path, dtype: str) -> None:
    cache = build(tmp_path, dtype=dtype)
    placements: list[Placement] = [DeviceRows, HostRows, DiskRows]
    caches = [cache, cache.placed(), *(cache.placed("cpu", placement=p) for p in placements)]
    for other in caches[1:]:
        assert torch.equal(first(other, 30), first(cache, 30))
        assert torch.equal(everything(other), everything(cache))
        assert other.record() == cache.record()
        assert other.held_out is not None
        assert np.array_equal(other.columns().token, cache.columns().token)


def test_storage_rounds_the_activations(tmp_path: Path, stored: ActivationCache) -> None:
    rounded = build(tmp_path, dtype="bfloat16")
    assert torch.equal(everything(rounded), everything(stored).bfloat16().float())
    assert rounded.scale == pytest.approx(stored.scale, rel=1e-2)


@pytest.mark.parametrize("size", [0, -1, 10_000])
def test_batches_of_a_wrong_size(stored: ActivationCache, size: int) -> None:
    with pytest.raises(InputError, match=r"fewer tokens than one batch|must be positive"):
        stored.batches(size, 0)


# --- one's own activations ----------------------------------------------------------------------


def test_a_tensor_is_a_source() -> None:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3
    cache = ActivationCache.from_tensor(x, held_out=0.25, name="mine")
    assert torch.equal(everything(cache), x[:150])
    assert cache.held_out is not None
    assert torch.equal(everything(cache.held_out), x[150:])
    assert cache.scale == pytest.approx(x[:150].square().sum(1).mean().sqrt().item(), rel=1e-6)
    (epoch,) = islice(cache.batches(150, seed=0), 1)
    order = torch.cdist(epoch * cache.scale, x[:150]).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(150)) != order.tolist()
    assert (order[1:] - order[:-1]).eq(1).float().mean() < 0.1  # neighbours are torn apart
    assert cache.record()["name"] == "mine"
    assert cache.language_model() is None
    assert cache.site is cache.folder is None


def test_tensors_are_told_apart_by_content() -> None:
    x = torch.randn(20, 5)
    same, other = x.clone(), x.clone()
    other[0, 0] += 1e-3
    record = ActivationCache.from_tensor(x).record()
    assert ActivationCache.from_tensor(same).record() == record
    assert ActivationCache.from_tensor(other).record() != record
    assert ActivationCache.from_tensor(x.double()).record() == record
    assert ActivationCache.from_tensor(x.bfloat16()).record() != record


def test_a_tensor_has_no_tokens() -> None:
    cache = ActivationCache.from_tensor(torch.randn(20, 5), held_out=0.0)
    assert cache.held_out is None
    for ask in (cache.columns, lambda: list(cache.contexts(10))):
        with pytest.raises(InputError, match="given as a tensor"):
            ask()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_values_that_cannot_be_used(value: float) -> None:
    x = torch.zeros(20, 5)
    x[3, 2] = value
    with pytest.raises(InputError, match="finite"):
        ActivationCache.from_tensor(x)


@pytest.mark.parametrize(("rows", "share"), [(20, 1.0), (20, -0.1), (0, 0.0), (2, 0.1)])
def test_splits_that_leave_a_side_empty(rows: int, share: float) -> None:
    with pytest.raises(InputError, match="side"):
        ActivationCache.from_tensor(torch.ones(rows, 5), held_out=share)


def test_integers_are_no_activations() -> None:
    with pytest.raises((InputError, TypeError)):
        ActivationCache.from_tensor(torch.ones(20, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "positive"),
        ({"shard_tokens": 0}, "positive"),
        ({"held_out_tokens": -1}, "positive"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"sites": []}, "sites must be a list"),
        ({"sites": SITE}, "sites must be a list"),
        ({"sites": ["layers.7.resid_post"]}, r"layers 0\.\.2"),
        ({"device": "abacus"}, "abacus"),
        ({"text": Path("nowhere.txt")}, "nowhere"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path, **changes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_ends_early(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"ended early: \d+ training tokens instead of 100000"):
        cache = build(tmp_path, 100_000)
    assert 1200 < cache.rows < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(tmp_path, cache.rows)


def test_a_text_without_held_out_documents(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no held_out tokens"):
        build(tmp_path, text=Letters(n=2))
    assert build(tmp_path, 50, text=Letters(n=2), held_out_tokens=0).held_out is None


def test_no_cache_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no activation cache here"):
        ActivationCache.open(tmp_path)
