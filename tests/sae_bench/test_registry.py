from importlib.metadata import EntryPoint

import pytest

from sae_bench import registry
from sae_bench.errors import InputError
from sae_bench.registry import architecture, architectures
from sae_bench.sae import SparseAutoencoder


class NotebookSAE(SparseAutoencoder):
    """A class of the user's own: imported, never registered."""


def test_built_ins_come_through_the_entry_points() -> None:
    found = architectures()
    assert {"ReLUSAE", "TopKSAE", "GatedSAE", "JumpReLUSAE"} <= found.keys()
    for name, cls in found.items():
        assert issubclass(cls, SparseAutoencoder)
        assert cls.__name__ == name
        assert architecture(name) is cls
    from architectures import ReLUSAE

    assert found["ReLUSAE"] is ReLUSAE


def test_an_imported_subclass_is_found_without_registration() -> None:
    assert architecture("NotebookSAE") is NotebookSAE
    assert architectures()["NotebookSAE"] is NotebookSAE


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"file: unknown SparseAutoencoder 'FooSAE'; known: .*TopK"
    ):
        architecture("FooSAE", "file")


def test_two_classes_under_one_name_are_an_error() -> None:
    class RivalSAE(SparseAutoencoder):
        pass

    def another() -> type[SparseAutoencoder]:
        class RivalSAE(SparseAutoencoder):
            pass

        return RivalSAE

    rival = another()
    with pytest.raises(InputError, match=r"'RivalSAE' is defined twice, in .*; rename one of them"):
        architecture("RivalSAE")
    with pytest.raises(InputError, match="defined twice"):
        architectures()
    rival.__name__ = "RenamedSAE"
    assert architectures()["RivalSAE"] is RivalSAE


@pytest.mark.parametrize("value", ["sae_bench.sae:squared_error", "sae_bench.penalties:L1"])
def test_an_entry_point_to_something_else_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("odd", value, registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(InputError, match=rf"entry point 'odd' \({value}\) is no SparseAutoencoder"):
        architectures()
