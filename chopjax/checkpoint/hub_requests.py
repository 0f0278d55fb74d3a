"""What the hub says of a model, and its errors made plain.

Sessions, tokens, HF_ENDPOINT, proxies, retries and waits are huggingface_hub's own. No jax.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import (
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    validate_repo_id,
)

from chopjax import __version__
from chopjax.errors import UserError
from chopjax.progress import say

LOOK_UP_RETRIES = 2  # few: without a connection, what was seen last serves


class _AboveBars(logging.Handler):
    """Where huggingface_hub's remarks on its retries go; its own handler writes into our bars."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"hub: {record.getMessage()}")


logging.getLogger("huggingface_hub").handlers = [_AboveBars()]


class RangeRefused(Exception):
    """The server does not answer range requests as the standard says (RFC 9110, section 14)."""


def headers() -> dict[str, str]:
    """The user's token and our name; no compression, since offsets are those of the file."""
    ours = build_hf_headers(library_name="chopjax", library_version=__version__)
    return ours | {"Accept-Encoding": "identity"}


def model_info(model: str, revision: str) -> dict[str, Any]:
    """Commit and files of a revision. HfApi.model_info asks once; this retries."""
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
        info = response.json()
        commit, files = info["sha"], [file["rfilename"] for file in info["siblings"]]
        if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise ValueError(commit)
    except (ValueError, KeyError, TypeError):  # a portal's page that wants a login, perhaps
        raise UserError(f"{model}: {constants.ENDPOINT} does not answer as a hub does") from None
    return {"commit": commit, "files": files}


@contextlib.contextmanager
def users_errors(repo_id: str) -> Iterator[None]:
    """Faults of the hub and the network: huggingface_hub's words in one line, and what to do."""
    try:
        yield
    except LocalEntryNotFoundError as error:  # why is in its cause
        raise UserError(f"{repo_id}: {_explain(error.__cause__ or error, repo_id)}") from error
    except (HTTPError, RangeRefused, OfflineModeIsEnabled, HFValidationError) as error:
        raise UserError(f"{repo_id}: {_explain(error, repo_id)}") from error
    except OSError as error:  # a full disk does not say which; the command line prints it
        error.filename = error.filename or constants.HF_HOME
        raise


def in_one_line(error: BaseException) -> str:
    """Its words, without the number that the hub gave to the request."""
    words = re.sub(r"\(Request ID: [^)]*\)", "", str(error))
    return " ".join(words.split()).rstrip(".") or type(error).__name__


def _explain(error: BaseException, repo_id: str) -> str:
    said = in_one_line(error)
    if isinstance(error, RangeRefused):
        return (
            f"{constants.ENDPOINT} does not serve parts of files ({said}). Download the whole "
            f"model with `hf download {repo_id}` and try again"
        )
    if isinstance(error, HFValidationError):
        return f"no such folder here, and no hub id either ({said})"
    response: Any = getattr(error, "response", None)
    if response is None:
        return (
            f"no such folder here, and {constants.ENDPOINT} cannot be reached ({said}). Check the "
            "connection, proxies and HF_ENDPOINT; what has been downloaded is kept"
        )
    if response.status_code < 429:
        return (
            f"no such folder here, and the hub says: {said}. Check the spelling and --revision; if "
            f"it is private or gated, ask for access at {constants.ENDPOINT}/{repo_id}, then log "
            "in with `hf auth login` or set HF_TOKEN"
        )
    return f"{said}. Run the same command again later; what has been downloaded is kept"
