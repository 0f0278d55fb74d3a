"""The settings that most tests of tpu.sh start from."""

from pathlib import Path

import pytest
from tpu_scripts.cloud import Cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(
        tmp_path,
        ("gcloud",),
        NAME="llama",
        PROJECT="my-project",
        ZONE="us-east5-a",
        WORKDIR="/mnt/share/llama",
        MOUNT_COMMAND="sudo mount share /mnt/share",
        TRAIN_COMMAND="chopjax train --config 'my config.py' --workdir /mnt/share/llama",
        POLL_SECONDS="0.01",
        MAX_FAILURES="3",
    )
