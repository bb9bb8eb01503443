"""Text sources by name: the one door through which users' `text=` comes in."""

import os
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sae_bench.documentation import Documentation
from sae_bench.documents import Document, Text, is_held_out
from sae_bench.errors import InputError
from sae_bench.excerpts import After, Excerpts
from sae_bench.hub_text import OFFLINE, HubText
from sae_bench.local_text import READERS, LocalText

__all__ = [
    "After",
    "Document",
    "Documentation",
    "Excerpts",
    "HubText",
    "LocalText",
    "Text",
    "is_held_out",
    "resolve_text",
]


def resolve_text(spec: str | Path | Text) -> Text:
    """The text source that `spec` means.

    A `Text` is itself; `"documentation"` is the default corpus; a path, or a string that exists as
    one or ends like one, is local text; any other string is a data set on the hub.

    Raises:
        InputError: a path to nothing, or a string that can be none of these.
    """
    if isinstance(spec, Text):
        return spec
    if spec == "documentation":
        return Documentation()
    exists = os.path.exists(os.path.expanduser(spec))  # noqa: PTH110, PTH111 (they never raise)
    if exists or isinstance(spec, Path) or spec.lower().endswith(tuple(READERS)):
        local = LocalText(spec)
        local.files()
        return local
    try:
        validate_repo_id(spec)
    except HFValidationError:
        raise InputError(
            f"text: {spec!r:.80} is no file or folder here and no data set's name; {OFFLINE}"
        ) from None
    return HubText(spec)
