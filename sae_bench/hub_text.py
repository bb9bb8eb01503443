"""Text from the Hugging Face hub, streamed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sae_bench.components import digest
from sae_bench.documents import Document, Text
from sae_bench.errors import InputError
from sae_bench.local_text import files_below, hash_files

OFFLINE = 'local .txt, .jsonl and .parquet files and "documentation" need no hub'


@dataclass(frozen=True)
class HubText(Text):
    """A split of a data set on the hub, streamed in its own order; nothing of it is kept.

    Args:
        name: `owner/name` on the hub (or a local folder laid out like one).
        config: configuration of the data set, where it has several.
        split: the split to stream. The suite's own training and evaluation splits are drawn from
            it by document (`is_held_out`).
        field: the column that holds the text.
        revision: branch, tag or commit; the hub is asked once which commit that is, and both the
            documents and the fingerprint are that commit's. A full commit hash is not asked about.

    Raises:
        InputError: when read: the hub cannot be reached, or it knows no such data set,
            configuration, split or field.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None

    def read(self) -> Iterator[Document]:
        """All documents, named `name/config/split:row` with rows counted from 1."""
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HTTPError

        revision = None if self._folder else self._commit
        try:
            rows = load_dataset(
                self.name, self.config, split=self.split, revision=revision, streaming=True
            )
        except (OSError, ValueError, DatasetsError, HTTPError) as error:
            raise self._unreadable(error) from None
        place = "/".join(part for part in (self.name, self.config, self.split) if part)
        for number, row in enumerate(rows, start=1):
            yield Document.from_row(f"{place}:{number}", row, self.field)

    def fingerprint(self) -> str:
        """Hash of name, configuration, split, field and commit (of the files, for a folder)."""
        content = hash_files(files_below(self._folder)) if self._folder else self._commit
        return digest([self.name, self.config, self.split, self.field, content], 32)

    @property
    def _folder(self) -> Path | None:
        """The local folder that `name` is, as `datasets` understands it too."""
        return Path(self.name) if Path(self.name).is_dir() else None

    @cached_property
    def _commit(self) -> str:
        """The commit that `revision` is. Failing here costs no time; `datasets` would first try
        again for half a minute."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        try:
            commit = HfApi().dataset_info(self.name, revision=self.revision, timeout=20).sha
        except (OSError, ValueError, HTTPError) as error:
            raise self._unreadable(error) from None
        if commit is None:
            raise InputError(f"text {self.name!r}: the hub names no commit; give revision=")
        return commit

    def _unreadable(self, error: Exception) -> InputError:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return InputError(f"text {self.name!r} cannot be had from the hub: {reason}; {OFFLINE}")
