import pytest

from sae_bench import documentation
from sae_bench.docstrings import module_text
from sae_bench.documentation import Documentation
from sae_bench.errors import InputError
from sae_bench.folders import cache_root

LINEAR = '''
"""Linear algebra."""
import os
try:
    import nothing_of_that_name
except ImportError:
    def solve(a, b):
        """Solve a x = b."""
        def pivot():
            """Find the pivot."""

class Matrix:
    """A matrix.

    Of numbers.
    """
    async def multiply(self): "Multiply."
    def plain(self): return "not a docstring"
'''

LINEAR_TEXT = """tiny.linear

Linear algebra.

solve

Solve a x = b.

solve.pivot

Find the pivot.

Matrix

A matrix.

Of numbers.

Matrix.multiply

Multiply."""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """An installed library called tiny, whose import would fail."""
    site = tmp_path / "site"
    files = {
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny/__init__.py": f'"""{"About tiny. " * 40}"""\nraise RuntimeError("imported")\n',
        "tiny/linear.py": LINEAR,
        "tiny/short.py": '"""Too short to keep."""\n',
        "tiny/broken.py": f'"""{"Never parsed. " * 40}"""\ndef (:\n',
        "tiny/sub/__init__.py": f'"""{"A subpackage. " * 40}\\ud800"""\n',
        "tiny/tests/test_linear.py": f'"""{"Left out. " * 40}"""\n',
    }
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(documentation, "SHORTEST", 100)
    return site


TINY = Documentation(libraries=("tiny",))


def only_file():
    (file,) = (cache_root() / "text").iterdir()
    return file


def test_a_module_reads_as_text_in_source_order(tmp_path):
    (tmp_path / "linear.py").write_text(LINEAR)
    assert module_text("tiny.linear", str(tmp_path / "linear.py")) == LINEAR_TEXT


def test_modules_are_read_without_importing_tests_left_out(library):
    found = {document.id: document.text for document in TINY.documents()}
    assert set(found) == {"tiny", "tiny/linear", "tiny/sub"}
    assert found["tiny/linear"] == LINEAR_TEXT
    assert found["tiny/sub"].startswith("tiny.sub\n\nA subpackage.")
    assert found["tiny/sub"].endswith("?")


def test_the_result_is_kept(library, monkeypatch):
    first, name = list(TINY.documents()), TINY.fingerprint()
    only_file()
    monkeypatch.setattr(documentation, "_extract", None)  # calling it would fail
    assert list(TINY.documents()) == first
    assert TINY.fingerprint() == name


@pytest.mark.parametrize("process_files", [1, 2])
def test_processes_do_not_change_the_result(library, monkeypatch, process_files):
    name = TINY.fingerprint()
    only_file().unlink()
    monkeypatch.setattr(documentation, "FILES_A_PROCESS", process_files)
    assert TINY.fingerprint() == name


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"x"])
def test_a_damaged_file_is_made_again(library, damage):
    name = TINY.fingerprint()
    file = only_file()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert TINY.fingerprint() == name
    assert only_file().read_bytes() == whole


def test_documents_that_are_not_those_written_are_made_again(library):
    name = TINY.fingerprint()
    other = documentation._load(only_file())[:1]
    documentation._save(other, only_file(), {})
    assert TINY.fingerprint() != name  # rightly recorded, so believed
    table = documentation.pyarrow.parquet.read_table(only_file())
    notes = {**table.schema.metadata, b"content_hash": b"another"}
    documentation.pyarrow.parquet.write_table(table.replace_schema_metadata(notes), only_file())
    assert TINY.fingerprint() == name


def test_another_version_is_another_file(library):
    TINY.fingerprint()
    metadata = library / "tiny-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    TINY.fingerprint()
    assert len(list((cache_root() / "text").iterdir())) == 2


def test_a_missing_library_is_one_line_with_its_remedy(library):
    text = Documentation(libraries=("tiny", "nosuchlibrary"))
    with pytest.raises(InputError, match=r"'nosuchlibrary'.*sae-ablations\[documentation\]"):
        text.fingerprint()
    assert not cache_root().exists()


def test_an_unusable_cache_folder_is_named_before_the_work(library, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(documentation, "_extract", None)
    with pytest.raises(InputError, match="set SAE_BENCH_CACHE"):
        TINY.fingerprint()


def test_a_full_disk_leaves_nothing_behind(library, monkeypatch):
    def write_table(table, path, compression):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(documentation.pyarrow.parquet, "write_table", write_table)
    with pytest.raises(InputError, match="No space left"):
        TINY.fingerprint()
    assert not list((cache_root() / "text").iterdir())
