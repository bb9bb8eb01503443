"""What a refusal looks like: an InputError of one line that begins with the file."""

from pathlib import Path

import pytest

from sae_bench.errors import InputError
from sae_bench.loading import load_sae


def refused(path: Path, file: str | Path, *words: str) -> None:
    """Whether `load_sae(path)` is refused in one line that begins with `path / file` and has these
    words."""
    with pytest.raises(InputError) as caught:
        load_sae(path)
    text = str(caught.value)
    assert text.startswith(str(path / file)), text
    assert all(word in text for word in words), text
    assert "\n" not in text
