from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from sae_bench import extract as extraction
from sae_bench import reading as reading_module
from sae_bench.contexts import Packed, PerDocument, Settled, VariableLength, ordinary
from sae_bench.documents import is_held_out
from sae_bench.errors import InputError
from sae_bench.extract import extract
from sae_bench.manifest import Manifest
from sae_bench.reading import Reading
from sae_bench.sites import capture, resolve_site
from tests.corpus import Letters
from tests.tiny import tiny_model

SITES = ["layers.0.mlp_out", "layers.1.resid_post"]
LLAMA = tiny_model("llama")


def run(
    root: Path, shards: int = 3, sites: list[str] = SITES, **changes: object
) -> dict[str, Path]:
    options: dict[str, object] = {"held_out": False, "shard_tokens": 500, "dtype": "float32"}
    reading = Reading(
        LLAMA,
        changes.pop("text", Letters()),  # type: ignore[arg-type]
        changes.pop("context", PerDocument(32)),  # type: ignore[arg-type]
        changes.pop("batch_tokens", 256),  # type: ignore[arg-type]
    )
    places = [resolve_site(LLAMA, name) for name in sites]
    return extract(reading, places, shards=shards, root=root, **{**options, **changes})  # type: ignore[arg-type]


def files(folders: dict[str, Path]) -> dict[str, bytes]:
    """Content of all files but the lock, by site and name."""
    return {
        f"{site}/{path.name}": path.read_bytes()
        for site, folder in folders.items()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry, the number of contexts, with each pass of the model."""
    passes: list[int] = []

    def counted(lm, ids, mask, sites):  # type: ignore[no-untyped-def]
        passes.append(len(ids))
        return capture(lm, ids, mask, sites)

    monkeypatch.setattr(reading_module, "capture", counted)
    return passes


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
@pytest.mark.parametrize(
    "context", [Packed(20), PerDocument(20), VariableLength(4, 40), Settled(Packed(20), 3)]
)
def test_rows_are_the_model_s_activations(tmp_path: Path, family: str, context) -> None:
    """The stored contexts, run one at a time without padding, give the stored rows."""
    model, site_name = tiny_model(family), "layers.1.resid_post"
    site = resolve_site(model, site_name)
    reading = Reading(model, Letters(), context, batch_tokens=200)
    folder = extract(
        reading, [site], held_out=False, shards=2, shard_tokens=400, dtype="float32", root=tmp_path
    )[site_name]
    documents = list(Letters().documents())
    for shard in Manifest.load(folder).shards:
        columns, stored, contexts = shard.columns(), shard.activations(), shard.contexts()
        wanted = 0
        for number, found in enumerate(contexts):
            ids = torch.from_numpy(found.ids)[None]
            run_alone = capture(model, ids, torch.ones_like(ids, dtype=torch.bool), [site])
            here = np.flatnonzero(columns.context == number)
            position = columns.position[here]
            kept = ordinary(found, model.special_ids)
            assert sorted(position) == np.flatnonzero(kept).tolist()
            assert np.array_equal(columns.token[here], found.ids[position])
            assert np.array_equal(columns.document[here], found.documents[position])
            assert torch.allclose(stored[here], run_alone[site_name][0, position], atol=2e-5)
            wanted += int(kept.sum())
            for document in set(found.documents[kept].tolist()):
                assert not is_held_out(documents[document])
        assert shard.rows == wanted >= 400
        assert not set(columns.token.tolist()) & model.special_ids
        assert columns.position.min() == getattr(context, "first", 1)  # 0 is the BOS


def test_several_sites_equal_one_by_one(tmp_path: Path) -> None:
    together = files(run(tmp_path / "together"))
    for site in SITES:
        alone = files(run(tmp_path / "alone", sites=[site]))
        assert alone == {name: content for name, content in together.items() if site in name}


def test_longer_and_extended_caches_begin_alike(tmp_path: Path) -> None:
    whole = files(run(tmp_path / "whole", shards=4))
    run(tmp_path / "extended", shards=1)
    run(tmp_path / "extended", shards=3)
    assert files(run(tmp_path / "extended", shards=4)) == whole
    short = files(run(tmp_path / "short", shards=2))
    assert all(whole[name] == short[name] for name in short if "manifest" not in name)


def test_padding_does_not_matter(tmp_path: Path) -> None:
    one, many = (
        run(tmp_path / str(tokens), context=VariableLength(4, 60), batch_tokens=tokens)
        for tokens in (1, 4000)
    )
    for site in SITES:
        pairs = zip(Manifest.load(one[site]).shards, Manifest.load(many[site]).shards, strict=True)
        for left, right in pairs:
            assert np.array_equal(left.columns().token, right.columns().token)
            assert torch.allclose(left.activations(), right.activations(), atol=2e-5)


def test_what_exists_is_not_computed_again(tmp_path: Path, forward_passes: list[int]) -> None:
    run(tmp_path)
    forward_passes.clear()
    before = files(run(tmp_path))
    assert files(run(tmp_path, shards=1)) == before
    assert forward_passes == []


@pytest.mark.parametrize("at", [0, 3, 8])
def test_a_killed_extraction_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = files(run(tmp_path / "whole", shards=4))
    passes = iter(range(100))

    def killed(lm, ids, mask, sites):  # type: ignore[no-untyped-def]
        if next(passes) == at:
            raise KeyboardInterrupt
        return capture(lm, ids, mask, sites)

    with monkeypatch.context() as patch:
        patch.setattr(reading_module, "capture", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", shards=4)
    assert files(run(tmp_path / "killed", shards=4)) == whole


def test_a_kill_between_shard_and_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files(run(tmp_path / "whole"))

    def killed(self: Manifest, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    lock = next((tmp_path / "killed").rglob(".lock"))
    (lock.parent / ".000000.safetensors.1.partial").write_bytes(b"half")
    assert files(run(tmp_path / "killed")) == whole


def test_a_deleted_shard_alone_is_computed_again(tmp_path: Path, forward_passes: list[int]) -> None:
    folders = run(tmp_path)
    before = files(folders)
    per_shard = len(forward_passes) / 3
    forward_passes.clear()
    (folders[SITES[0]] / "000001.safetensors").unlink()
    assert files(run(tmp_path)) == before
    assert 0 < len(forward_passes) <= per_shard + 2


def test_the_end_of_the_text(tmp_path: Path, forward_passes: list[int]) -> None:
    folders = run(tmp_path, shards=1000)
    manifest = Manifest.load(folders[SITES[0]])
    assert manifest.end_of_text
    assert 1 < len(manifest.shards) < 20
    assert all(shard.rows >= 500 for shard in manifest.shards[:-1])
    contexts = [context for shard in manifest.shards for context in shard.contexts()]
    reading = Reading(LLAMA, Letters(), PerDocument(32))
    wanted = list(reading.contexts(held_out=False))
    assert [context.ids.tolist() for context in contexts] == [c.ids.tolist() for c in wanted]
    forward_passes.clear()
    run(tmp_path, shards=2000)
    assert forward_passes == []


def test_the_sides_share_no_document(tmp_path: Path) -> None:
    def documents(held_out: bool) -> set[int]:
        folder = run(tmp_path, shards=1000, held_out=held_out)[SITES[0]]
        shards = Manifest.load(folder).shards
        return set(np.concatenate([shard.columns().document for shard in shards]).tolist())

    training, held_out = documents(False), documents(True)
    assert training | held_out == set(range(80))
    assert not training & held_out
    assert held_out


CHANGES: list[dict[str, object]] = [
    {"text": Letters(seed=1)},
    {"context": PerDocument(31)},
    {"context": Packed(32)},
    {"dtype": "bfloat16"},
    {"shard_tokens": 501},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_other_inputs_have_another_folder(tmp_path: Path, changes: dict[str, object]) -> None:
    assert run(tmp_path, 1, SITES[:1]) != run(tmp_path, 1, SITES[:1], **changes)
    assert run(tmp_path, 1, SITES[:1]) == run(tmp_path, 2, SITES[:1], batch_tokens=99)


def test_folders_have_readable_names(tmp_path: Path) -> None:
    folder = run(tmp_path, 1)["layers.0.mlp_out"]
    assert folder.parent.name.startswith("tiny-llama-layers.0.mlp_out-")
    assert folder.name == "train"


def test_two_processes_do_not_extract_into_one_folder(tmp_path: Path) -> None:
    folder = run(tmp_path, 1)[SITES[1]]
    with FileLock(folder / ".lock"):
        run(tmp_path, 1)  # nothing to do: no lock is needed
        with pytest.raises(InputError, match="another process"):
            run(tmp_path, 2)
    run(tmp_path, 2)


def test_too_little_disk_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forward_passes: list[int]
) -> None:
    class Usage:
        free = 2 * 3 * 500 * 32 * 4  # just short of two sites of three shards

    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(InputError, match="GB are free"):
        run(tmp_path)
    assert forward_passes == []
    run(tmp_path, shards=2)


def test_a_folder_of_other_inputs(tmp_path: Path) -> None:
    folder = run(tmp_path, 1)[SITES[0]]
    Manifest({"other": 1}, {}).save(folder)
    with pytest.raises(InputError, match="other inputs"):
        run(tmp_path, 1)


def test_contexts_longer_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Packed\(300\).*128 positions"):
        run(tmp_path, context=Packed(300))
