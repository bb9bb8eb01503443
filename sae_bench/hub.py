"""The Hugging Face hub: the shape of its names, and its refusals in one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import validate_repo_id

from sae_bench.errors import InputError

REVISION = r"refs/pr/[0-9]+|(?!\.)[\w.+-]+"
"""A commit, tag or branch whose name has no slash, or a pull request."""

SEGMENT = r"(?!\.)[\w.+=,~-]+"
"""A folder's or file's name: nothing hidden, and so neither `.` nor `..`."""

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def is_repo(name: str) -> bool:
    """Whether `name` has the shape `owner/name` of the hub's repositories."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def is_revision(name: str) -> bool:
    """Whether `name` can be a revision."""
    return bool(re.fullmatch(REVISION, name))


def is_folder(path: str) -> bool:
    """Whether `path` can be a folder in a repository; the empty path is its root."""
    return not path or all(re.fullmatch(SEGMENT, part) for part in path.split("/"))


@contextmanager
def hub_errors(where: str, repo: str) -> Iterator[None]:
    """Turns what goes wrong inside into an `InputError` of one line that begins with `where`."""
    try:
        yield
    except InputError:
        raise
    except GatedRepoError:
        reason = f"{repo!r} is gated: accept its terms on its page, then {LOG_IN}"
    except RepositoryNotFoundError:
        reason = f"the hub has no repository {repo!r} that you may read; if it is private, {LOG_IN}"
    except RevisionNotFoundError:
        reason = f"{repo!r} has no such revision"
    except HfHubHTTPError as error:
        advice = f"; {LOG_IN}" if error.response.status_code in (401, 403) else ""
        reason = f"the hub refuses ({_first_line(error)}){advice}"
    except (RevisionResolutionError, OfflineModeIsEnabled, HTTPError) as error:
        reason = f"the hub cannot be reached ({_first_line(error.__cause__ or error)})"
    except (OSError, ValueError) as error:
        reason = _first_line(error)
    else:
        return
    raise InputError(f"{where}: {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
