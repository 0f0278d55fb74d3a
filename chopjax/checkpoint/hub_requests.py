"""Requests to the Hugging Face hub: a model's files, byte ranges, and errors made plain.

Sessions, tokens, HF_ENDPOINT, proxies, retries and waits are huggingface_hub's own. Ranges are
checked here. HfFileSystem, which reads ranges as well, looks neither at the status nor at
Content-Range: from a server that ignores the range it hands out bytes of another place. No jax.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    http_stream_backoff,
    validate_repo_id,
)

from chopjax import __version__
from chopjax.errors import UserError
from chopjax.progress import say

LOOK_UP_RETRIES = 2  # few: without a connection, what was seen last serves
BODY_RETRIES = 5  # of answers that end early, without one byte between them


class _AboveBars(logging.Handler):
    """Where huggingface_hub's remarks on its retries go; its own handler writes into our bars."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"hub: {record.getMessage()}")


logging.getLogger("huggingface_hub").handlers = [_AboveBars()]


class RangeRefused(Exception):
    """The server does not answer range requests as the standard says (RFC 9110, section 14)."""


def headers() -> dict[str, str]:
    """The user's token and our name; no compression, since offsets are those of the file."""
    return build_hf_headers(library_name="chopjax", library_version=__version__) | {
        "Accept-Encoding": "identity"
    }


def model_info(model: str, revision: str) -> dict[str, Any]:
    """What the hub says of a revision. HfApi.model_info does not retry.

    Empty where what answers is no hub.
    """
    validate_repo_id(model)
    response = http_backoff(
        "GET",
        f"{constants.ENDPOINT}/api/models/{model}/revision/{quote(revision, safe='')}",
        headers=headers(),
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=LOOK_UP_RETRIES,
    )
    hf_raise_for_status(response)
    try:
        found = response.json()
    except ValueError:  # a portal's page that wants a login, perhaps
        found = None
    return found if isinstance(found, dict) else {}


def download(
    url: str, start: int, end: int, nbytes: int, take: Callable[[int, bytes], None]
) -> None:
    """Bytes start..end-1 of a file of `nbytes`, however often the connection drops.

    take: called with position and bytes, in order. The hub may redirect to a signed address that
    expires, so every request begins at the hub. Raises RangeRefused for anything but the range.
    """
    position, failures = start, 0
    while position < end:
        before = position
        fault: HTTPError | None = None
        asked = headers() | {"Range": f"bytes={position}-{end - 1}"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff(
            "GET", url, headers=asked, timeout=timeout, follow_redirects=True
        ) as response:
            try:
                hf_raise_for_status(response)
                _check(response, position, end, nbytes)
                for chunk in response.iter_raw():  # a chunk size would hold bytes back
                    if len(chunk) > end - position:
                        raise RangeRefused("more bytes came than were asked for")
                    take(position, chunk)
                    position += len(chunk)
            except HTTPError as error:  # http_stream_backoff must not see it: it would ask again
                fault = error
        failures = 1 if position > before else failures + 1
        if getattr(fault, "response", None) is not None or failures > BODY_RETRIES:
            raise fault or RangeRefused("empty answers")
        if position < end:
            say(f"hub: {fault or 'the answer ended early'}; going on from byte {position:,}")
            time.sleep(1)


def _check(response: Any, start: int, end: int, nbytes: int) -> None:
    """Fewer bytes than asked for may come; never others."""
    if response.status_code != 206:
        raise RangeRefused(f"status {response.status_code} instead of 206")
    content = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content.strip())
    if not found or int(found[1]) != start or int(found[2]) >= end:
        raise RangeRefused(f"Content-Range {content!r} for bytes {start}-{end - 1}")
    if found[3] not in ("*", str(nbytes)):
        raise RangeRefused(f"the file now has {found[3]} bytes, not {nbytes}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RangeRefused("the answer is compressed")


@contextlib.contextmanager
def users_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Faults of the hub and the network, as messages that say what to do."""
    try:
        yield
    except (
        HTTPError,
        RangeRefused,
        OfflineModeIsEnabled,
        HFValidationError,
        EntryNotFoundError,
    ) as error:
        raise UserError(f"{repo_id}: {_explain(error, repo_id, revision)}") from error
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.ENOTDIR,
        ):
            raise
        raise UserError(
            f"{repo_id}: downloads are kept in {constants.HF_HOME}: {error.strerror}. Mend that or "
            "set HF_HOME to another folder; what has been downloaded is kept"
        ) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    """huggingface_hub's own words, except where they do not say what to do."""
    endpoint, token = constants.ENDPOINT, "log in with `hf auth login` or set HF_TOKEN"
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    response: Any = getattr(cause, "response", None)
    status = response.status_code if response is not None else None
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            "no such folder here, not in the cache either, and HF_HUB_OFFLINE forbids to ask the "
            "hub; unset it, or give the path of a local checkpoint"
        )
    if isinstance(cause, HFValidationError):
        return f"no such folder, and not a hub id either ({cause})"
    if isinstance(cause, RangeRefused):
        return (
            f"{endpoint} does not serve parts of files ({cause}). Download the whole model with "
            f"`hf download {repo_id}` and try again, or give its folder"
        )
    if isinstance(cause, RevisionNotFoundError):
        return f"no revision {revision or 'main'!r} at {endpoint}/{repo_id}; check --revision"
    if isinstance(cause, GatedRepoError) or status == 403:
        gated = isinstance(cause, GatedRepoError)
        refused = f"{endpoint} refuses access (status 403), so the model may be gated"
        return (
            f"{'a gated model' if gated else refused}. Accept its licence at {endpoint}/{repo_id}, "
            f"then {token} to a token of the same account that may read gated models"
        )
    missing = status in (401, 404) and not isinstance(cause, EntryNotFoundError)
    if missing or isinstance(cause, RepositoryNotFoundError):
        return (
            f"no such folder here, and {endpoint} has no such model that you may read (status "
            f"{status}). Check the spelling; if the model is private or gated, {token}"
        )
    if status is not None:
        said = " ".join(str(cause).split())
        return f"{said} Run the same command again later; what has been downloaded is kept"
    reason = str(cause) or type(cause).__name__
    return (
        f"no such folder here, and {endpoint} cannot be reached ({reason}). Check the connection, "
        "proxies and HF_ENDPOINT; what has been downloaded is kept"
    )
