"""The examples of the README and of docs/ run as they stand, at a smaller scale; links exist."""

import re
from pathlib import Path

import pytest
import torch

from sae_bench.cache import ActivationCache
from sae_bench.conformance import ARCHITECTURE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "README.md"]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(
        r"<!-- tests run this block -->\n```python\n(.*?)```", page.read_text(), flags=re.DOTALL
    )
]


def test_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real text of the block; only the model gives way to a tensor, and numbers shrink."""
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0)) + 1
    cache = ActivationCache.from_tensor(x)
    monkeypatch.setattr(
        ActivationCache, "build", lambda model, sites, text, tokens: {sites[0]: cache}
    )
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[0].replace("d_sae=1152", "d_sae=96").replace("tokens=200_000", "tokens=10_000")
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 20
    scope: dict[str, object] = {}
    exec(
        code.replace("40, lr_decay=150, penalty_warmup=200", "4, lr_decay=9, penalty_warmup=9"),
        scope,
    )
    table = scope["table"]
    assert list(table["status"]) == ["trained"] * 14  # type: ignore[index]
    assert table["series"].nunique() == 4  # type: ignore[index]


def test_the_architecture() -> None:
    scope: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[1], scope)
    assert len([line for line in BLOCKS[1].splitlines() if line]) <= 15
    assert ARCHITECTURE.failures(scope["BoostedSAE"]) == {}  # type: ignore[arg-type]


def test_the_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs its own check."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "readme"}
    for block in BLOCKS[2:]:
        assert len([line for line in block.splitlines() if line]) <= 15
        exec(block, scope)
    assert {"L2", "Cosine", "SignGate"} <= set(scope)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page: Path) -> None:
    links = re.findall(r'(?:src="|\]\()([^")#:]*)(?:#([^")]*))?(?:"|\))', page.read_text())
    for link, anchor in links:
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), (link, anchor)
    assert links or page.parent.name != "docs"
