"""Places that an SAE cannot be written to: named before anything is written."""

from pathlib import Path

import pytest

from sae_bench.cli import main
from sae_bench.errors import InputError
from sae_bench.formats import FORMATS
from sae_bench.loading import load_sae, save_sae
from tests.foreign import SAES, same_sae

FOLDERS = [name for name in FORMATS if name != "gemma-scope"]
every = pytest.mark.parametrize("format", FORMATS)


def complaint(path: Path, format: str) -> str:
    """What is said against writing there; nothing must have changed."""
    root = next(place for place in path.parents if place.is_dir())
    before = sorted(root.rglob("*"))
    sae = SAES["TopKSAE" if format == "sparsify" else "BatchTopKSAE"]
    with pytest.raises(InputError) as caught:
        save_sae(sae, path, format)
    assert sorted(root.rglob("*")) == before
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize("there", [True, False])
def test_folders_are_not_called_like_files(
    format: str, suffix: str, there: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"v{suffix}"
    if there:
        path.mkdir()
    text = complaint(path, format)
    assert text.startswith(f"{path}: cannot be written (a name in {suffix} means a file")
    assert text.endswith(f"choose a name without {suffix}")


def test_a_folder_where_an_archive_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    path.mkdir()
    assert complaint(path, "gemma-scope").startswith(
        f"{path}: cannot be written (a folder is there, gemma-scope needs a file)"
    )


@every
def test_a_file_where_a_folder_is_needed(format: str, tmp_path: Path) -> None:
    (tmp_path / "v").write_text("hello")
    expected = f"{tmp_path}/v: cannot be written (a file is there, {format} needs a folder for "
    assert complaint(tmp_path / "v", format).startswith(expected)
    assert complaint(tmp_path / "v" / "more" / "x", format).startswith(f"{tmp_path}/v/more/x: can")
    assert (tmp_path / "v").read_text() == "hello"


@every
def test_folders_in_place_of_the_files(format: str, tmp_path: Path) -> None:
    for part in FORMATS[format].parts:
        (tmp_path / "v" / part).mkdir(parents=True)
        assert "cannot be written (a folder is there" in complaint(tmp_path / "v", format)
        (tmp_path / "v" / part).rmdir()


@every
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have(format: str, name: str, tmp_path: Path) -> None:
    assert "cannot be used" in complaint(tmp_path / name, format)
    with pytest.raises(InputError, match="cannot be used"):
        load_sae(tmp_path / name)


def test_folders_called_like_files_are_read(tmp_path: Path) -> None:
    """Other libraries may call theirs as they like."""
    for format, name in (("dictionary-learning", "v.npz"), ("gemma-scope", "v.pt")):
        save_sae(SAES["ReLUSAE"], tmp_path / "v", format)
        (tmp_path / "v").rename(tmp_path / name)
        same_sae(load_sae(tmp_path / name), SAES["ReLUSAE"])


def test_the_command_says_so_before_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("hello")
    for target, words in (("file/x", "Not a directory"), ("v.pt", "means a file")):
        arguments = ["convert", "nowhere", str(tmp_path / target), "--to", "saelens"]
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
