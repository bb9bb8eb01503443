"""Files and modules of the user's own, and what they can see."""

import sys
from pathlib import Path

import pytest

from sae_bench.errors import InputError
from sae_bench.modules import find, load, load_file


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sibling_of_mine.py").write_text("VALUE = 3\n")
    (tmp_path / "code" / "mine.py").write_text("from sibling_of_mine import VALUE\n")
    (tmp_path / "module_in_cwd.py").write_text("VALUE = 4\n")
    for name in ("sibling_of_mine", "module_in_cwd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_file_sees_its_neighbours() -> None:
    before = list(sys.path)
    assert load_file(Path("code/mine.py")).VALUE == 3
    assert load("code/mine.py").VALUE == 3
    assert sys.path == before


def test_a_module_is_found_in_the_current_folder() -> None:
    assert load("module_in_cwd").VALUE == 4
    assert find("module_in_cwd:VALUE") == 4
    assert find("code/mine.py:VALUE") == 3
    assert find("sae_bench.errors:InputError") is InputError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("code/none.py:A", "code/none.py: no such file"),
        ("no_such_module:A", "'no_such_module': No module named"),
        ("module_in_cwd:A", "module_in_cwd: there is no 'A' in it"),
        ("module_in_cwd", "give module:Name or path/to/file.py:Name"),
        ("module_in_cwd:", "give module:Name or path/to/file.py:Name"),
        ("..:A", "'..': "),
    ],
)
def test_what_is_not_there(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
