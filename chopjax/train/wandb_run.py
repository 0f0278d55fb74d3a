"""A training run in Weights & Biases, where log.wandb names a project.

    WORKDIR/wandb_run.json    which run of the project this is: resumed, it goes on there
    WORKDIR/wandb/            what wandb itself writes

Where, offline or not, and as whom it logs is wandb's own to know (WANDB_MODE, WANDB_ENTITY,
WANDB_API_KEY). A step that is done again after a kill is sent again, and wandb keeps the first.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chopjax.disk.atomic import new_file
from chopjax.disk.files import read_json_object
from chopjax.errors import UserError, first_line
from chopjax.train.same_run import differences

RECORD = "wandb_run.json"
FILES = (RECORD, "wandb")


def check_wandb(project: str) -> None:
    """Raises UserError where a project is named and wandb is not installed. For the beginning."""
    if project:
        _import()


@contextlib.contextmanager
def wandb_run(
    project: str, workdir: Path, config: Mapping[str, Any], start_step: int
) -> Iterator[Any]:
    """wandb's run, None without a project; it is finished when the block ends, as failed where an
    exception ends it.

    start_step: the step that the training run goes on after. Raises UserError where wandb refuses.
    """
    if not project:
        yield None
        return
    wandb = _import()
    try:
        run = wandb.init(
            project=project,
            id=_run_id(project, workdir, config, start_step),
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
            allow_val_change=True,
        )
    except Exception as error:  # of the network, of the account: wandb has a dozen kinds
        reason = first_line(error).rstrip(".")
        raise UserError(
            f"log.wandb: {project}: {reason}. Log in with `wandb login`, set WANDB_MODE=offline to "
            f"log to {workdir} alone, or leave log.wandb empty"
        ) from error
    failed = True
    try:
        yield run
        failed = False
    finally:
        run.finish(exit_code=int(failed))


def _run_id(project: str, workdir: Path, config: Mapping[str, Any], start_step: int) -> str:
    """The id that this training run has had since it began; a new one for another in its place."""
    path = workdir / RECORD
    if path.is_file():
        record = read_json_object(path)
        began, same = record.get("config"), record.get("project") == project
        if not isinstance(record.get("id"), str) or not isinstance(began, dict):
            raise UserError(f"{path}: not what a training run writes; move it away")
        if same and (start_step or not differences(began or {}, config)):
            return str(record["id"])
    run_id = secrets.token_hex(4)
    with new_file(path, overwrite=True) as temporary:
        record = {"project": project, "id": run_id, "config": dict(config)}
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return run_id


def _import() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"log.wandb: wandb cannot be imported here ({error}); `pip install wandb`, or leave "
            "log.wandb empty"
        ) from error
    return wandb
