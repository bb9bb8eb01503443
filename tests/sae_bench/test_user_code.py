"""What counts as the code of a user's class, and what does not."""

import textwrap
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from architectures import ReLUSAE
from sae_bench.loading import load_sae
from sae_bench.modules import load_file
from sae_bench.penalties import L1
from sae_bench.sae import SparseAutoencoder
from sae_bench.user_code import source_digest

CODE = '''
"""A module."""

import math

import torch

import beside
from architectures import ReLUSAE
from beside import shift

ALPHA, UNUSED = 3.0, 1
MASK = torch.ones(3)
TABLE = {"a": [1, 2]}


def inner(f):
    """Doc."""
    return f * ALPHA


def helper(f, power=2):
    return inner(f) ** power + math.pi + beside.OFFSET


def stranger(f):
    return f


class Base(ReLUSAE):
    width = 4

    @property
    def doubled(self):
        return helper(self.width)


class MySAE(Base):
    """Doc."""

    rate: float = 0.5

    def loss_terms(self, x, latents, reconstruction, sparsity_scale):
        """Doc."""
        # A remark.
        terms = super().loss_terms(x, latents, reconstruction, sparsity_scale)
        return {**terms, "more": shift(terms["sparsity"]) + MASK.sum() + TABLE["a"][0]}
'''
BESIDE = "OFFSET = 1\n\n\ndef shift(x):\n    return x + 1\n"


def of(folder: Path, code: str = CODE, beside: str = BESIDE) -> str | None:
    (folder / "beside.py").write_text(beside)
    (folder / "mine.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(__import__("sys").modules, "beside", raising=False)
        return source_digest([load_file(folder / "mine.py").MySAE])


EDITS = {
    "its own line": ('+ TABLE["a"][0]', '- TABLE["a"][0]'),
    "a base": ("width = 4", "width = 5"),
    "a helper": ("** power +", "** power -"),
    "a default": ("power=2", "power=3"),
    "a helper of the helper": ("return f * ALPHA", "return f / ALPHA"),
    "a constant": ("ALPHA, UNUSED = 3.0", "ALPHA, UNUSED = 3.5"),
    "a tensor": ("torch.ones(3)", "torch.zeros(3)"),
    "a table": ('{"a": [1, 2]}', '{"a": [2, 2]}'),
    "a slot": ("rate: float = 0.5", "rate: float = 0.6"),
}
NO_EDITS = {
    "a docstring": ('"""Doc."""', '"""Another text."""'),
    "no docstring": ('    """Doc."""\n', ""),
    "a comment": ("# A remark.", "# Another one."),
    "layout": ("return f * ALPHA", "return (\n        f * ALPHA\n    )"),
    "an unused constant": ("UNUSED = 3.0, 1", "UNUSED = 3.0, 2"),
    "an unused function": ("return f\n", "return -f\n"),
    "another line": ("ALPHA, UNUSED", "\n\nALPHA, UNUSED"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_counts(edit: tuple[str, str], tmp_path: Path) -> None:
    assert edit[0] in CODE
    assert of(tmp_path) != of(tmp_path, CODE.replace(*edit))


@pytest.mark.parametrize("edit", NO_EDITS.values(), ids=NO_EDITS)
def test_what_does_not_count(edit: tuple[str, str], tmp_path: Path) -> None:
    assert edit[0] in CODE
    assert of(tmp_path) == of(tmp_path, CODE.replace(*edit))


def test_other_modules_of_the_user_count(tmp_path: Path) -> None:
    assert of(tmp_path) != of(tmp_path, beside=BESIDE.replace("x + 1", "x + 2"))
    assert of(tmp_path) != of(tmp_path, beside=BESIDE.replace("OFFSET = 1", "OFFSET = 2"))


def made(alpha: float, beta: float = 0.0) -> type[SparseAutoencoder]:
    """Two values: one in the closure of a method, one in the class."""

    class MadeSAE(ReLUSAE):
        kept = beta

        def decode(self, f):  # type: ignore[no-untyped-def]
            return alpha * super().decode(f)

    return MadeSAE


def test_values_in_closures_count() -> None:
    assert source_digest([made(1)]) == source_digest([made(1)])
    assert len({source_digest([made(*given)]) for given in ((1,), (10,), (1, 2))}) == 3


def test_classes_without_text_count_by_their_instructions() -> None:
    def typed(factor: int, name: str = "f") -> type:
        module = ModuleType("typed")
        code = f"class T:\n    def a(self, {name}):\n        return {factor} * {name}\n"
        exec(code, vars(module))
        return vars(module)["T"]

    assert source_digest([typed(1)]) == source_digest([typed(1)])
    assert source_digest([typed(1)]) != source_digest([typed(2)])


def test_the_projects_own_classes_and_libraries_have_none() -> None:
    assert source_digest([ReLUSAE, L1, Path, pytest.Item]) is not None  # pytest was asked for
    assert source_digest([ReLUSAE, L1, Path, SparseAutoencoder]) is None


def test_a_file_edited_after_its_first_use_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(textwrap.dedent("class T:\n    a = 1\n"))
    cls = load_file(tmp_path / "mine.py").T
    before = source_digest([cls])
    (tmp_path / "mine.py").write_text("class T:\n    a = 2\n")
    assert source_digest([cls]) == before


def test_loading_warns_of_other_code(tmp_path: Path) -> None:
    older = made(1)
    older(4, 8).save(tmp_path / "saved")
    plain = ReLUSAE(4, 8)
    plain.save(tmp_path / "plain")
    assert plain.provenance == load_sae(tmp_path / "plain").provenance == {}
    same, other = made(1), None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(load_sae(tmp_path / "saved")) is same
    other = made(2)
    with pytest.warns(UserWarning, match="the code of MadeSAE or of its parts has changed") as seen:
        assert type(load_sae(tmp_path / "saved")) is other
    assert len(seen) == 1
    assert "\n" not in str(seen[0].message)
