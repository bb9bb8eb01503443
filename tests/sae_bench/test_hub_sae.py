"""SAEs to and from a hub: a stand-in on this machine answers. Storage for large files is not stood
in for, and the real hub has not been asked."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from architectures import JumpReLUSAE, TopKSAE
from sae_bench.cli import main
from sae_bench.errors import InputError
from sae_bench.hub_sae import HubPath, hub_path
from sae_bench.hub_upload import push_to_hub
from sae_bench.loading import load_sae
from sae_bench.sae import SparseAutoencoder
from tests.desk import contents
from tests.hub import Files, Repo, StandIn, serving, use
from tests.small import small_batch, small_sae


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The hub, and an empty folder to stand in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    hub = StandIn()
    with serving(hub) as endpoint:
        use(monkeypatch, endpoint, tmp_path / "cache")
        yield hub


@pytest.fixture
def unreachable(hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    """A hub of which only the cache is there: nothing listens at port 9."""
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    return hub


def jump(seed: int = 0) -> SparseAutoencoder:
    return small_sae(JumpReLUSAE, seed).eval()


def files_of(sae: SparseAutoencoder, folder: Path, prefix: str = "") -> Files:
    sae.save(folder)
    return {prefix + name: content for name, content in contents(folder).items()}


def npz(value: float) -> bytes:
    file = io.BytesIO()
    np.savez(file, value=value)
    return file.getvalue()


def same(a: SparseAutoencoder, b: SparseAutoencoder) -> bool:
    x = small_batch()
    return torch.equal(a.encode(x), b.encode(x)) and torch.equal(a(x), b(x))


def kept(repo: Repo, revision: str = "main") -> Files:
    files = repo.files(revision)
    assert files is not None
    return files


def refused(path: str, *messages: str) -> None:
    with pytest.raises(InputError) as caught:
        load_sae(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), text
    assert "\n" not in text
    for message in messages:
        assert message in text, text


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["sae-ablations", "saelens"])
@pytest.mark.parametrize("folder", ["", "layer_3/wide"])
def test_there_and_back(hub: StandIn, format: str, folder: str) -> None:
    sae = jump()
    address = push_to_hub(sae, "me/saes", path_in_repo=folder, format=format)
    repo = hub.repos["me/saes"]
    assert address.endswith(f"/me/saes/commit/{repo.oid()}")
    assert len(repo.commits) == 2  # one for the repository itself
    path = "/".join(part for part in ("me/saes", folder) if part)
    loaded = load_sae(path)
    assert same(loaded, sae)
    assert loaded.provenance["hub"] == {"repo": "me/saes", "commit": repo.oid(), "folder": folder}
    card = kept(repo)[f"{folder}/README.md".lstrip("/")].decode()
    assert f'load_sae("{path}")' in card


def test_what_is_kept_is_not_asked_for_again(hub: StandIn, tmp_path: Path) -> None:
    repo = hub.repo("me/saes", files_of(jump(), tmp_path / "a", "a/"))
    load_sae("me/saes/a")
    assert sorted(hub.sent()) == ["a/config.json", "a/sae.safetensors"]
    load_sae("me/saes/a")
    assert hub.asked == ["GET api/models/me/saes"]
    load_sae(f"me/saes@{repo.oid()}/a")
    assert len(hub.asked) == 1


def test_what_is_half_kept_is_completed(hub: StandIn, tmp_path: Path) -> None:
    hub.repo("me/saes", files_of(jump(), tmp_path / "a"))
    load_sae("me/saes")
    next((tmp_path / "cache").rglob("snapshots/*/config.json")).unlink()
    assert same(load_sae("me/saes"), jump())


def test_only_files_of_formats_are_fetched(hub: StandIn, tmp_path: Path) -> None:
    files = files_of(jump(), tmp_path / "a")
    more = ("model.safetensors", "modeling.py", "pickle.bin", ".gitattributes", "a/config.json")
    hub.repo("me/saes", files | dict.fromkeys(more, b"x"))
    load_sae("me/saes")
    assert sorted(hub.sent()) == ["config.json", "sae.safetensors"]


def test_revisions(hub: StandIn, tmp_path: Path) -> None:
    old, new, branched = jump(0), jump(1), jump(2)
    repo = hub.repo("me/saes", files_of(old, tmp_path / "old", "a/"))
    first = repo.oid()
    push_to_hub(new, "me/saes", path_in_repo="a")
    push_to_hub(branched, "me/saes", path_in_repo="a", revision="try-1.0")
    push_to_hub(branched, "me/saes", path_in_repo="b", revision="try-1.0")
    assert same(load_sae("me/saes/a"), new)
    assert same(load_sae(f"me/saes@{first}/a"), old)
    assert same(load_sae("me/saes@try-1.0/a"), branched)
    assert load_sae("me/saes@try-1.0/b").provenance["hub"]["commit"] == repo.oid("try-1.0")
    assert b'load_sae("me/saes@try-1.0/b")' in kept(repo, "try-1.0")["b/README.md"]
    assert "b/README.md" not in kept(repo)
    repo.branches["refs/pr/7"] = first
    assert same(load_sae("me/saes@refs/pr/7/a"), old)


def test_another_format_replaces_the_former(hub: StandIn) -> None:
    hub.repo("me/saes", {"a/notes.txt": b"mine", "b/cfg.json": b"{}"})
    push_to_hub(jump(), "me/saes", path_in_repo="a", format="saelens")
    push_to_hub(jump(1), "me/saes", path_in_repo="a")
    files = kept(hub.repos["me/saes"])
    names = ["README.md", "config.json", "notes.txt", "sae.safetensors"]
    assert sorted(files) == [*(f"a/{name}" for name in names), "b/cfg.json"]
    assert same(load_sae("me/saes/a"), jump(1))


def test_an_arm_takes_its_metrics_along(hub: StandIn, tmp_path: Path) -> None:
    arm = tmp_path / "run" / "arms" / "key"
    jump().save(arm / "sae")
    rows = {"eval_set": ["held-out"], "l0": [12.5], "fvu": [0.25]}
    pd.DataFrame(rows).to_parquet(arm / "evaluation.parquet")
    options = ["--path", "a", "--private", "--to", "saelens", "--license", "mit"]
    assert main(["upload", str(arm / "sae"), "me/saes", *options]) == 0
    repo = hub.repos["me/saes"]
    assert repo.private
    files = kept(repo)
    assert sorted(files) == ["a/README.md", "a/cfg.json", "a/sae_weights.safetensors"]
    card = files["a/README.md"].decode()
    assert "| held-out | 12.5 | 0.25 |" in card
    assert "license: mit" in card


# -- Gemma Scope ----------------------------------------------------------------------------------


def test_canonical_is_the_one_nearest_to_100(hub: StandIn) -> None:
    site = "layer_12/width_16k"
    l0s = [22, 82, 117, 445]
    files = {f"{site}/average_l0_{n}/params.npz": npz(n) for n in l0s}
    others = ("layer_12/width_65k/average_l0_100", f"{site}/average_l0_100x", f"{site}/l0_100")
    hub.repo("google/scope", files | {f"{name}/params.npz": npz(0) for name in others})
    for asked, file in (("canonical", ""), ("canonical/params.npz", "/params.npz")):
        path = hub_path(f"google/scope/{site}/{asked}")
        assert path is not None
        fetched, origin = path.fetch()
        assert origin["folder"] == f"{site}/average_l0_117"
        assert str(fetched).endswith(origin["folder"] + file)
    assert float(np.load(fetched)["value"]) == 117
    assert hub.sent() == [f"{site}/average_l0_117/params.npz"]


def test_of_two_equally_near_the_sparser(hub: StandIn) -> None:
    hub.repo("a/b", {f"average_l0_{n}/params.npz": npz(n) for n in (105, 95)})
    assert HubPath("a/b", folder="canonical").fetch()[1]["folder"] == "average_l0_95"


def test_a_folder_that_is_called_canonical_is_itself(hub: StandIn, tmp_path: Path) -> None:
    hub.repo("a/b", files_of(jump(), tmp_path / "a", "canonical/"))
    assert same(load_sae("a/b/canonical"), jump())


# -- what may go wrong ----------------------------------------------------------------------------


def test_nothing_there(hub: StandIn, tmp_path: Path) -> None:
    files = files_of(jump(), tmp_path / "a")
    prefixes = ("layer_1/wide/", "layer_2/wide/", "other/")
    hub.repo("me/saes", {p + name: files[name] for p in prefixes for name in files})
    hub.repo("me/model", {"config.json": b"{}", "model.safetensors": b"x"})
    refused("me/saes/layer_3/wide", "no SAE in a known format there", "'layer_1/wide'", "3 elsewh")
    refused("me/saes/layer_3/canonical", "no SAE in a known format there", "'layer_1/wide'")
    refused("me/saes/layer_1/wide/params.npz", "no SAE in a known format there", "'layer_1/wide'")
    refused("me/saes", "no SAE in a known format there (3 elsewhere, such as in ")
    refused("me/model", "no SAE in a known format there (nor anywhere else)")
    assert hub.sent() == []


def test_no_such_repository_or_revision(hub: StandIn, tmp_path: Path) -> None:
    hub.repo("me/saes", files_of(jump(), tmp_path / "a"))
    refused("me/other", "no repository 'me/other' that you may read; if it is private, log in with")
    refused("me/other/deep/folder", "no such file or folder here", "hf auth login", "HF_TOKEN")
    refused("me/saes@v2", "'me/saes' has no such revision")
    refused(f"me/saes@{'0' * 40}", "'me/saes' has no such revision")


def test_a_repository_of_somebody_else(hub: StandIn) -> None:
    with pytest.raises(InputError, match=r"^upload to somebody/saes: the hub refuses \(.*HF_TOKEN"):
        push_to_hub(jump(), "somebody/saes")


def test_without_a_hub_only_what_is_kept(unreachable: StandIn, tmp_path: Path) -> None:
    refused("me/saes/a", "no such file or folder here", "the hub cannot be reached (")
    with pytest.raises(InputError, match=r"^upload to me/saes: the hub cannot be reached \("):
        push_to_hub(jump(), "me/saes")


def test_what_is_kept_needs_no_hub(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push_to_hub(jump(), "me/saes", path_in_repo="a")
    load_sae("me/saes/a")
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert same(load_sae("me/saes/a"), jump())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(load_sae("me/saes/a"), jump())
    refused("me/saes/b", "the hub cannot be reached (", "offline mode")


@pytest.mark.parametrize("evil", ["../x/", "/tmp/x/", "a/../../x/", "..\\x\\", "a/./", "a//"])
def test_names_in_a_repository_are_not_trusted(hub: StandIn, evil: str, tmp_path: Path) -> None:
    good = files_of(jump(), tmp_path / "good", "a/")
    bad = files_of(jump(), tmp_path / "good", evil) | {"../sae.safetensors": b"x"}
    names = {f"{evil}average_l0_100/params.npz": npz(0), "../average_l0_100/params.npz": npz(0)}
    hub.repo("me/saes", good | bad | names)
    hub.repo("me/evil", bad | names)
    before = contents(tmp_path)
    load_sae("me/saes/a")
    assert sorted(hub.sent()) == ["a/config.json", "a/sae.safetensors"]
    for path in ("me/evil", "me/evil/a", "me/evil/canonical", "me/saes/a/canonical"):
        refused(path, "no SAE in a known format there")
    assert hub.sent() == []
    assert all(name.startswith("cache/") for name in contents(tmp_path).keys() - before.keys())


@pytest.mark.parametrize(
    "path",
    [
        *("", "a", "a/", "/a/b", "./a/b", "../a/b", "a/..", "a/b/../c", "a/b/.", "a/b//c", "a/b/"),
        *(
            "a/b@",
            "a/b@../c",
            "a/b@x@y",
            "a/b/c\\d",
            "a/b/*",
            "a b/c",
            "a--b/c",
            "a/b.git",
            "~/a/b",
        ),
        *("a/b/.git/c", "https://a/b", "a/b\n/c", "a/b\0"),
    ],
)
def test_other_strings_are_no_hub_paths(hub: StandIn, path: str) -> None:
    assert hub_path(path) is None
    assert hub.asked == []


def test_local_paths_come_first(hub: StandIn, tmp_path: Path) -> None:
    assert hub_path(Path("me/saes/a")) is None
    assert hub_path("me/saes@v1/a/cfg.json") == HubPath("me/saes", "v1", "a", "cfg.json")
    jump().save("me/saes/a")
    assert same(load_sae("me/saes/a"), jump())
    refused("me/saes/b", "no such file or folder")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo_id": "saes"}, "'saes' is no repository's name; give owner/name"),
        ({"repo_id": "a/b/c"}, "'a/b/c' is no repository's name"),
        ({"repo_id": "a/../b"}, "'a/../b' is no repository's name"),
        ({"path_in_repo": "a/../../b"}, "'a/../../b' is no folder's name"),
        ({"path_in_repo": ".git"}, "'.git' is no folder's name"),
        ({"revision": "a/b"}, "'a/b' is no branch's name"),
        ({"format": "pickle"}, "unknown format 'pickle'"),
        ({"metrics": pd.DataFrame({"a": [1]})}, "metrics must be rows of `evaluate`"),
        ({"sae": "nowhere"}, "nowhere: no such file or folder"),
        ({"sae": "me/other"}, "me/other: no such file or folder"),
    ],
)
def test_input_is_checked_before_anything_is_sent(
    hub: StandIn, changes: dict[str, object], message: str
) -> None:
    given: dict[str, object] = {"sae": jump(), "repo_id": "me/saes", **changes}
    with pytest.raises(InputError) as caught:
        push_to_hub(**given)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.asked == []


def test_an_sae_that_a_format_has_not_is_not_sent(hub: StandIn) -> None:
    class Strange(TopKSAE):
        def decode(self, f):
            return 2 * super().decode(f)

    with pytest.raises(InputError, match="override `plain`"):
        push_to_hub(small_sae(Strange), "me/saes", format="saelens")
    assert hub.asked == []


def test_no_warnings(hub: StandIn) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        push_to_hub(jump(), "me/saes")
        load_sae("me/saes")
