"""SAEs into hub repositories, with a model card."""

import tempfile
from pathlib import Path

import pandas as pd
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from sae_bench.annotations import typed
from sae_bench.errors import InputError
from sae_bench.hub import hub_errors, is_folder, is_repo, is_revision
from sae_bench.hub_sae import FILES, HubPath, list_folder
from sae_bench.loading import load_sae, save_sae
from sae_bench.model_card import check_metrics, model_card
from sae_bench.sae import SparseAutoencoder
from sae_bench.store import metrics_beside

CARD = "README.md"


@typed("metrics")
def push_to_hub(
    sae: SparseAutoencoder | str | Path,
    repo_id: str,
    *,
    path_in_repo: str = "",
    private: bool = False,
    revision: str | None = None,
    format: str = "sae-ablations",
    metrics: pd.DataFrame | None = None,
    license: str | None = None,
) -> str:
    """Writes an SAE and its model card into a folder of a hub repository, in one commit. Files of
    an SAE that lay there in another format are removed; the card there is written anew.

    Small files go into the commit itself, and this path is tested against a local stand-in of the
    hub. The hub wants large ones in its separate storage: `huggingface_hub` sees to that, and that
    path is untested here.

    Args:
        sae: takes raw activations (saved or loaded ones do); or the folder of a saved one.
        repo_id: `owner/name`; made if it does not exist.
        path_in_repo: a folder in the repository; empty: its root, whose card is the repository's.
        private: whether a repository that has to be made is private.
        revision: a branch, made if it does not exist; None: the main one.
        format: a name in `FORMATS`.
        metrics: rows of `evaluate` for the card; None: those of the arm, for an arm's folder.
        license: the hub's name of a licence, for the card.

    Returns:
        The address of the commit.

    Raises:
        InputError: a name that the hub cannot have, no SAE, a format that has no such SAE, or
            metrics of something else: before anything is sent. Then: the hub cannot be reached or
            refuses.
    """
    path_in_repo = path_in_repo.strip("/")
    _check_names(repo_id, path_in_repo, revision)
    check_metrics(metrics)
    if not isinstance(sae, SparseAutoencoder):
        folder = Path(sae)
        sae = load_sae(folder)
        metrics = metrics_beside(folder) if metrics is None else metrics
    target = HubPath(repo_id, revision, path_in_repo)
    with tempfile.TemporaryDirectory() as written:
        save_sae(sae, Path(written), format)
        card = model_card(sae, metrics, source=str(target), license=license)
        (Path(written) / CARD).write_text(card, encoding="utf-8")
        return _commit(Path(written), target, private)


def _check_names(repo_id: str, path_in_repo: str, revision: str | None) -> None:
    if not is_repo(repo_id):
        raise InputError(f"upload: {repo_id!r:.100} is no repository's name; give owner/name")
    if not is_folder(path_in_repo):
        raise InputError(
            f"upload: {path_in_repo!r:.100} is no folder's name; give names of letters, digits "
            "and . _ - + = ~ with / between them, none beginning with a dot"
        )
    if revision is not None and not is_revision(revision):
        raise InputError(f"upload: {revision!r:.100} is no branch's name; give one without slashes")


def _commit(files: Path, target: HubPath, private: bool) -> str:
    """Sends the files of a folder. The repository is made first, the commit comes last."""
    api, repo = HfApi(), target.repo
    prefix = f"{target.folder}/" if target.folder else ""
    with hub_errors(f"upload to {target}", repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if target.revision and not target.revision.startswith("refs/"):
            api.create_branch(repo, branch=target.revision, exist_ok=True)
        there = list_folder(api, repo, target.folder, target.revision)
        names = sorted(path.name for path in files.iterdir())
        stale = [name for name in FILES if name not in names and prefix + name in there]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(prefix + name, str(files / name)) for name in names),
            *(CommitOperationDelete(prefix + name) for name in stale),
        ]
        commit = api.create_commit(
            repo, operations, commit_message="Upload SAE", revision=target.revision
        )
    return commit.commit_url
