"""Where the benchmark keeps its things (everything under `.work` is ignored by git)."""

from __future__ import annotations

import os
from pathlib import Path

SPEED = Path(__file__).resolve().parent
BENCHMARKS = SPEED.parent
REPOSITORY = BENCHMARKS.parent
WORK = BENCHMARKS / ".work"
REPORTS = BENCHMARKS / "reports"
# Another build can be measured by naming its executable.
EUTECTIC = Path(os.environ.get("EUTECTIC_BIN", REPOSITORY / ".venv" / "bin" / "eutectic"))
