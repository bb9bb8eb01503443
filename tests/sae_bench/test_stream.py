from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench import progress, reading
from sae_bench.cache import ActivationCache
from sae_bench.contexts import Packed, PerDocument
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.stream import ActivationStream
from tests.corpus import Letters
from tests.tiny import tiny_model

SITE = "layers.1.resid_post"
LLAMA = tiny_model("llama")


def stream(**changes: object) -> ActivationStream:
    options: dict[str, object] = {
        "context": PerDocument(32),
        "tokens_in_buffer": 600,
        "batch_tokens": 500,
    }
    return ActivationStream(LLAMA, SITE, Letters(), **{**options, **changes})  # type: ignore[arg-type]


def raw(source: ActivationStream, n: int, size: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.cat(list(islice(source.batches(size, seed), n))) * source.scale


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """All training rows of the text, from a cache."""
    with pytest.warns(UserWarning, match="ended early"):
        cache = ActivationCache.build(
            LLAMA,
            [SITE],
            Letters(),
            100_000,
            held_out_tokens=0,
            context=PerDocument(32),
            root=tmp_path_factory.mktemp("cache"),
        )[SITE]
    return torch.cat(list(cache.chunks(1000)))


def index_in(rows: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """For each of `found`, the first row that equals it up to round-off."""
    equal = torch.cdist(found.double(), rows.double()) < 1e-3
    assert equal.any(dim=1).all()
    return equal.int().argmax(dim=1)


def test_a_stream_serves_what_a_cache_stores(rows: torch.Tensor) -> None:
    """Over one epoch rows are served at most once, and in no order. (Contexts that begin alike
    have equal rows there.)"""
    index = index_in(rows, raw(stream(), len(rows) // 60 - 10))
    copies = index_in(rows, rows).bincount(minlength=len(rows))
    assert (index.bincount(minlength=len(rows)) <= copies).all()
    assert (index[1:] - index[:-1]).eq(1).float().mean() < 0.05


def test_it_goes_on_after_the_end_of_the_text(rows: torch.Tensor) -> None:
    index = index_in(rows, raw(stream(), 3 * len(rows) // 60 + 15))
    copies = index_in(rows, rows).bincount(minlength=len(rows))
    served = index.bincount(minlength=len(rows))
    assert (served <= 4 * copies).all()
    assert (served[copies > 0] >= 1).float().mean() > 0.99


def test_the_same_seed_gives_the_same_batches() -> None:
    one = stream()
    first = raw(one, 30)
    assert torch.equal(raw(one, 30), first)  # also when asked again
    assert torch.equal(raw(stream(), 30), first)
    assert not torch.equal(raw(stream(), 30, seed=1), first)


@pytest.mark.parametrize("start", [1, 4, 5, 12, 63])
def test_a_later_start_gives_the_same_batches(start: int) -> None:
    wanted = list(islice(stream().batches(60, 0), start + 8))
    late = list(islice(stream().batches(60, 0, start=start), 8))
    assert torch.equal(torch.stack(late), torch.stack(wanted[start:]))


def test_the_model_does_not_run_for_what_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the start, only for the first buffer and what a buffer holds, half of which is
    newer than the last refill, a quarter older than that, and so on."""
    passes, capture = list[int](), reading.capture

    def counted(lm: LanguageModel, ids: torch.Tensor, *rest: Any) -> Any:
        passes.append(len(ids))
        return capture(lm, ids, *rest)

    monkeypatch.setattr(reading, "capture", counted)
    ran = []
    for start in (0, 100, 1000):  # of five batches a refill
        source = stream(batch_tokens=60)
        passes.clear()
        next(source.batches(60, 0, start=start))
        ran.append(len(passes))
    assert ran[0] < ran[1] < 8 * ran[0]
    assert ran[2] < 1.5 * ran[1]


def test_skipping_shows_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    next(stream().batches(60, 0, start=50))
    lines = capsys.readouterr().err.splitlines()
    for work in ("filling the buffer: ", "skipping the stream: 10 of 10 refills, ", "filling the "):
        assert any(line.startswith(work) for line in lines)


def test_the_scale_is_the_first_buffer_s() -> None:
    source = stream(context=Packed(31), tokens_in_buffer=600)
    buffer = source.scale * torch.cat(list(islice(source.batches(1, 0), 300)))
    assert source.scale == pytest.approx(buffer.square().sum(1).mean().sqrt().item(), rel=0.05)
    batch = next(source.batches(300, 0))
    assert batch.dtype == torch.float32
    assert batch.square().sum(1).mean().item() == pytest.approx(1, abs=0.1)


def test_a_scale_that_is_given() -> None:
    given, own = stream(scale=3.0), stream()
    assert given.scale == 3
    assert torch.allclose(raw(given, 3), raw(own, 3))
    assert not torch.allclose(next(given.batches(60, 0)), next(own.batches(60, 0)))
    assert given.record() != own.record()


def test_batches_are_not_changed_by_later_ones() -> None:
    batches = stream().batches(60, 0)
    first = next(batches)
    kept = first.clone()
    list(islice(batches, 20))
    assert torch.equal(first, kept)


def test_attributes_and_record(tmp_path: Path) -> None:
    held_out = ActivationCache.from_tensor(torch.randn(10, 32), held_out=0.0)
    source = stream(held_out=held_out, dtype="bfloat16")
    assert (source.d_in, source.held_out, source.language_model()) == (32, held_out, LLAMA)
    assert source.record()["model"]["name"] == "tiny-llama"
    assert source.record()["dtype"] == "bfloat16"
    assert source.record() == stream(dtype="bfloat16").record()
    assert source.record() != stream(dtype="bfloat16", context=Packed(32)).record()
    assert next(source.batches(10, 0)).dtype == torch.float32


@pytest.mark.parametrize(
    "changes",
    [{"tokens_in_buffer": 1}, {"batch_tokens": 0}, {"dtype": "int8"}, {"scale": 0.0}],
)
def test_bad_input(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        stream(**changes)


@pytest.mark.parametrize("size", [0, 301])
def test_batches_of_a_wrong_size(size: int) -> None:
    with pytest.raises(InputError, match="batch_size"):
        stream().batches(size, 0)


def test_a_text_without_training_tokens() -> None:
    source = ActivationStream(LLAMA, SITE, Letters(n=1, seed=5), context=Packed(128))
    with pytest.raises(InputError, match="no training tokens"):
        _ = source.scale
