"""The record of what a result was made with."""

import subprocess
from pathlib import Path

import pytest
import torch

from sae_bench import environment as module
from sae_bench.environment import commit, determinism, environment


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *who, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_it_names_what_decides_the_bits() -> None:
    found = environment(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
    assert found["memory_gb"] > 0
    assert found["device"] == "cpu"
    assert "same bits" in found["determinism"]


def test_no_bits_are_promised_on_an_accelerator() -> None:
    assert "bits may differ" in determinism(torch.device("cuda"))


def test_the_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    file = tmp_path / "environment.py"
    file.write_text("1\n")
    monkeypatch.setattr(module, "__file__", str(file))
    assert commit(tmp_path) is None  # a repository that does not hold the code
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head
    file.write_text("2\n")
    assert commit(tmp_path) == f"{head}-modified"
