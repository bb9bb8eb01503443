"""SAEs in hub repositories: `owner/repo[@revision][/folder][/file]`."""

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from sae_bench.errors import InputError
from sae_bench.hub import REVISION, SEGMENT, hub_errors, is_repo

CONFIGS = ("config.json", "cfg.json")
WEIGHTS = ("sae.safetensors", "sae_weights.safetensors", "ae.pt", "params.npz")
FILES = (*CONFIGS, *WEIGHTS)
"""What the known formats consist of: no other file is ever fetched, whatever a repository holds."""

CANONICAL, CANONICAL_L0 = "canonical", 100
"""In Gemma Scope's repositories, the SAE of a site and width whose average L0 is nearest to 100."""


@dataclass(frozen=True)
class HubPath:
    """Where an SAE lies on the hub.

    Args:
        repo: `owner/name`.
        revision: commit, tag, branch or `refs/pr/N`; None: the newest of the main branch.
        folder: the folder in the repository; empty: its root. A last part `canonical` stands for
            the folder `average_l0_N` beside it whose N is nearest to 100.
        file: one of `FILES`, if a file was named and not a folder.
    """

    repo: str
    revision: str | None = None
    folder: str = ""
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return "/".join(part for part in (self.repo + revision, self.folder, self.file) if part)

    def fetch(self) -> tuple[Path, dict[str, str]]:
        """Downloads the files of the SAE, and nothing else, into the hub's own cache. What is there
        already is not asked for again, and can be had without network.

        Returns:
            The folder, or the file if one was named; and repo, commit and folder, for provenance.

        Raises:
            InputError: the hub cannot be reached, or has no such repository, revision or SAE.
        """
        api = HfApi()
        with hub_errors(f"{self}: no such file or folder here", self.repo):
            commit = api.resolve_revision(self.repo, revision=self.revision).resolved
            folder = self._folder(api, commit)
            names = self._kept(folder, commit)
            if not _is_sae(names):
                listed = list_folder(api, self.repo, folder, commit)
                names = {name for name in FILES if _join(folder, name) in listed}
            if not _is_sae(names) or (self.file and self.file not in names):
                raise self._nothing_there(api, commit)
            paths = [
                Path(api.hf_hub_download(self.repo, _join(folder, name), revision=commit))
                for name in sorted(names)
            ]
        origin = {"repo": self.repo, "commit": commit, "folder": folder}
        return paths[0].parent / (self.file or ""), origin

    def _folder(self, api: HfApi, commit: str) -> str:
        """The folder itself, or the one that `canonical` stands for. Of what the listing says only
        numbers are used."""
        parent, _, last = self.folder.rpartition("/")
        if last != CANONICAL:
            return self.folder
        listed = list_folder(api, self.repo, parent, commit)
        if self.folder in listed:
            return self.folder
        pattern = re.escape(_join(parent, "average_l0_")) + "([0-9]+)"
        found = [int(match[1]) for path in listed if (match := re.fullmatch(pattern, path))]
        if not found:
            raise self._nothing_there(api, commit)
        nearest = min(found, key=lambda l0: (abs(l0 - CANONICAL_L0), l0))
        return _join(parent, f"average_l0_{nearest}")

    def _kept(self, folder: str, commit: str) -> set[str]:
        """The files of the folder that the cache holds already."""

        def kept(name: str) -> bool:
            path = _join(folder, name)
            return isinstance(try_to_load_from_cache(self.repo, path, revision=commit), str)

        return {name for name in FILES if kept(name)}

    def _nothing_there(self, api: HfApi, commit: str) -> InputError:
        folders = _sae_folders(api.list_repo_files(self.repo, revision=commit))
        near = difflib.get_close_matches(self.folder, folders, cutoff=0.3) or folders[:3]
        known = ", ".join(f"{folder or '(its root)'!r:.100}" for folder in near)
        others = f"{len(folders)} elsewhere, such as in {known}" if near else "nor anywhere else"
        return InputError(f"{self}: no SAE in a known format there ({others})")


def hub_path(path: str | Path) -> HubPath | None:
    """What a string means on the hub, or None if it is a local path: a `Path`, something that
    exists here, something in a local folder `owner/repo`, or no name that the hub could have."""
    pattern = rf"({SEGMENT}/[\w.-]+)(?:@({REVISION}))?((?:/{SEGMENT})*)"
    if isinstance(path, Path) or not (match := re.fullmatch(pattern, path)):
        return None
    repo, revision, rest = match.groups()
    here = any(os.path.exists(place) for place in (path, repo))  # noqa: PTH110 (it never raises)
    if here or not is_repo(repo):
        return None
    folder, _, last = rest.rpartition("/")
    if last in FILES:
        return HubPath(repo, revision, folder.lstrip("/"), last)
    return HubPath(repo, revision, rest.lstrip("/"))


def list_folder(api: HfApi, repo: str, folder: str, revision: str | None) -> set[str]:
    """The paths of what lies in a folder of a repository; nothing, if there is no such folder."""
    try:
        return {entry.path for entry in api.list_repo_tree(repo, folder or None, revision=revision)}
    except RemoteEntryNotFoundError:
        return set()


def _is_sae(names: Collection[str]) -> bool:
    """Whether files make an SAE: weights that need no config, or weights and a config."""
    present = set(names)
    return "params.npz" in present or (
        not present.isdisjoint(WEIGHTS) and not present.isdisjoint(CONFIGS)
    )


def _sae_folders(paths: Iterable[str]) -> list[str]:
    """The folders in which an SAE lies, sorted."""
    folders: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, _, name = path.rpartition("/")
        folders[folder].add(name)
    return sorted(folder for folder, names in folders.items() if _is_sae(names))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
