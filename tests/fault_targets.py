"""What can be damaged: every target of tests/faults.py under its name."""

from __future__ import annotations

import fault_checkpoints
import fault_data
from faults import Target

TARGETS: dict[str, Target] = {**fault_checkpoints.TARGETS, **fault_data.TARGETS}
