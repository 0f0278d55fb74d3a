"""Requests to the Hugging Face hub: byte ranges, patience with faults, and errors made plain.

Sessions, tokens, HF_ENDPOINT and proxies are huggingface_hub's own. No jax.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from chopjax import __version__
from chopjax.errors import UserError
from chopjax.progress import say

Result = TypeVar("Result")

ATTEMPTS = 6  # failures in a row, without one byte between them
FIRST_WAIT = 1.0  # seconds; doubles with every failure
LONGEST_WAIT = 30.0
PATIENCE = 300.0  # a server that asks for a longer wait ends the run
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class RangeRefused(Exception):
    """The server does not answer range requests as the standard says (RFC 9110, section 14)."""


def headers() -> dict[str, str]:
    """The user's token and our name; no compression, since offsets are those of the file."""
    return build_hf_headers(library_name="chopjax", library_version=__version__) | {
        "Accept-Encoding": "identity"
    }


def range_bytes(url: str, start: int, end: int, nbytes: int) -> Iterator[bytes]:
    """One request for bytes start..end-1 of a file of `nbytes`; yields them as they come.

    The hub may redirect to a signed address that expires, so every request begins at the hub.
    Fewer bytes than asked for may come; never others: anything but the range asked for raises.
    """
    asked = headers() | {"Range": f"bytes={start}-{end - 1}"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=asked, timeout=timeout, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
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
        left = end - start
        for chunk in response.iter_raw():  # as they come: a chunk size would hold bytes back
            if len(chunk) > left:
                raise RangeRefused("more bytes came than were asked for")
            left -= len(chunk)
            yield chunk


def download(
    url: str,
    start: int,
    end: int,
    nbytes: int,
    take: Callable[[int, bytes], None],
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Bytes start..end-1, however often the connection drops.

    take: called with position and bytes, in order. After a fault the request goes on where the
    bytes ended; the failures of ATTEMPTS are counted anew whenever some have come.
    """
    position, failures = start, 0
    while position < end:
        before = position
        try:
            for chunk in range_bytes(url, position, end, nbytes):
                take(position, chunk)
                position += len(chunk)
            fault: Exception | None = None if position > before else RangeRefused("an empty answer")
        except (HTTPError, RangeRefused) as error:
            fault = error
        if fault:
            failures = 1 if position > before else failures + 1
            sleep(pause(fault, failures, ATTEMPTS))


def patiently(
    action: Callable[[], Result],
    attempts: int = 3,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """Call `action` again after a passing fault."""
    failures = 0
    while True:
        try:
            return action()
        except HTTPError as error:
            failures += 1
            sleep(pause(error, failures, attempts))


def pause(error: Exception, failures: int, attempts: int) -> float:
    """Seconds to wait before the next attempt; raises `error` where another is no use."""
    response: Any = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    # Away from the hub it was a signed address: refused because it expired, the hub gives another.
    away = response is not None and bool(response.history)
    lasting = status is not None and status not in TRANSIENT and not (away and status in (400, 403))
    if isinstance(error, RangeRefused):
        attempts = 2  # a cache on the way may have a bad moment; a server does not change its mind
    if lasting or failures >= attempts:
        raise error
    seconds = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
    asked = _retry_after(response.headers) if response is not None else None
    if asked is not None:
        if asked > PATIENCE:
            raise error
        seconds = max(seconds, asked)
    reason = f"status {status}" if status else str(error) or type(error).__name__
    say(f"hub: {reason}; trying again in {seconds:.3g} s (failure {failures} of {attempts})")
    return seconds


def _retry_after(found: Any) -> float | None:
    """Seconds that the server asks us to wait: Retry-After as a number or a date, or RateLimit."""
    text = found.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    if text:
        with contextlib.suppress(ValueError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", found.get("RateLimit", ""))
    return float(limit[1]) if limit else None


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
        raise UserError(_explain(error, repo_id, revision)) from error
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
    endpoint = constants.ENDPOINT
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"{repo_id}: no such folder here, not in the cache either, and HF_HUB_OFFLINE forbids "
            "to ask the hub; unset it, or give the path of a local checkpoint"
        )
    if isinstance(error, HFValidationError):
        return f"{repo_id}: no such folder, and not a hub id either ({error})"
    response: Any = getattr(cause, "response", None)
    if isinstance(cause, HfHubHTTPError) and response is not None:
        return f"{repo_id}: {_explain_status(cause, response, repo_id, revision)}"
    if isinstance(error, RangeRefused):
        return (
            f"{repo_id}: {endpoint} does not serve parts of files ({error}). Download the whole "
            f"model with `hf download {repo_id}` and try again, or give its folder"
        )
    reason = str(cause) or type(cause).__name__
    return (
        f"{repo_id}: no such folder here, and {endpoint} cannot be reached ({reason}). Check the "
        "connection, proxies and HF_ENDPOINT; what has been downloaded is kept"
    )


def _explain_status(
    error: HfHubHTTPError, response: Any, repo_id: str, revision: str | None
) -> str:
    endpoint, status = constants.ENDPOINT, response.status_code
    token = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return (
            f"a gated model. Accept its licence at {endpoint}/{repo_id}, then {token} to a token "
            "of the same account that may read gated models"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"no revision {revision or 'main'!r} at {endpoint}/{repo_id}; check --revision"
    if isinstance(error, RepositoryNotFoundError) or (
        status == 404 and not isinstance(error, EntryNotFoundError)
    ):
        return (
            f"no such folder here, and {endpoint} has no such model that you may read (status "
            f"{status}). Check the spelling; if the model is private, {token}"
        )
    if isinstance(error, EntryNotFoundError):
        return f"{endpoint} lists a file that it does not have ({response.url}); try again later"
    if status == 401:
        return (
            f"{endpoint} wants another token (status 401). If the spelling is right and the model "
            f"private or gated, {token}"
        )
    if status == 403:
        return (
            f"{endpoint} refuses access (status 403). If the model is gated, accept its licence at "
            f"{endpoint}/{repo_id}; then {token}"
        )
    if status == 429:
        wait = _retry_after(response.headers)
        when = f" and asks to wait {wait:.0f} s" if wait else ""
        return (
            f"{endpoint} limits our requests (status 429){when}. Run the same command again later; "
            "what has been downloaded is kept"
        )
    if status == 416:
        return "the file on the hub is shorter than it was announced (status 416); try again later"
    reason = (getattr(error, "server_message", None) or "").strip()
    return (
        f"{endpoint} answers with status {status}{f' ({reason})' if reason else ''}. Run the same "
        "command again later; what has been downloaded is kept"
    )
