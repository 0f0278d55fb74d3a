"""A finished checkpoint folder to the Hugging Face hub, by huggingface_hub's own client. No jax."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from chopjax import __version__
from chopjax.checkpoint import hub_requests
from chopjax.errors import UserError

# Weights of an earlier upload under other names would be loaded in place of, or beside, the new.
REPLACED = ["*.safetensors", "*.safetensors.index.json"]
TOKEN = "log in with `hf auth login` or set HF_TOKEN to a token that may write"


def check_upload(repo_id: str, private: bool) -> None:
    """Ask the hub whether an upload has a chance, before the long work that comes first.

    Raises UserError: no hub id, offline, no token, one that may not write, a repository that is
    public where a private one is wanted.
    """
    try:
        validate_repo_id(repo_id)
        named = repo_id.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise UserError(f"--push-to-hub {repo_id}: OWNER/NAME is needed, such as me/my-model")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"--push-to-hub {repo_id}: HF_HUB_OFFLINE does not allow asking the hub; unset it, "
            "or leave --push-to-hub out and upload the folder later"
        )
    if get_token() is None:
        raise UserError(f"--push-to-hub {repo_id}: there is no token; {TOKEN}")
    api = _api()
    try:
        me = api.whoami()
        role = ((me.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise UserError(
                f"--push-to-hub {repo_id}: the token of {me.get('name')} may only read; {TOKEN}"
            )
        try:
            public = not api.model_info(repo_id).private
        except RepositoryNotFoundError:
            return
    except HTTPError as error:
        raise UserError(f"--push-to-hub {_explain(error, repo_id)}") from error
    _check_private(repo_id, private, public)


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Make the repository if there is none and upload the folder's files; returns its address.

    Weight files of an earlier upload that are not among the new ones are removed from the newest
    revision; the repository's history keeps them. Raises UserError; the folder stays.
    """
    api = _api()
    whole = f"{folder} is whole; once that is mended, `hf upload {repo_id} {folder}` uploads it"
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        _check_private(repo_id, private, not api.model_info(repo_id).private)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Upload from chopjax {__version__}",
            delete_patterns=REPLACED,
        )
    except HTTPError as error:
        raise UserError(f"--push-to-hub {_explain(error, repo_id)}. {whole}") from error
    except (OSError, RuntimeError, ValueError) as error:  # of the transfer library, too
        said = hub_requests.in_one_line(error)
        raise UserError(f"--push-to-hub {repo_id}: {said}. {whole}") from error
    return str(url)


def _api() -> HfApi:
    return HfApi(library_name="chopjax", library_version=__version__)


def _check_private(repo_id: str, private: bool, public: bool) -> None:
    if private and public:
        raise UserError(
            f"--private: {constants.ENDPOINT}/{repo_id} exists already and is public; make it "
            "private in its settings, name another repository, or leave --private out"
        )


def _explain(error: Exception, repo_id: str) -> str:
    """huggingface_hub's words for a fault of the hub or the network, and what to do."""
    said = hub_requests.in_one_line(error)
    if getattr(error, "response", None) is None:
        return f"{repo_id}: {constants.ENDPOINT} cannot be reached ({said}); check the connection"
    owner = repo_id.partition("/")[0]
    return f"{repo_id}: {said}. If {owner} is spelled right, {TOKEN} there"
