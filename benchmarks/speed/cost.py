"""What a whole process takes, as `measure.py` sees it from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from paths import SPEED, WORK

__all__ = ["Cost", "measured"]


class Cost(NamedTuple):
    """What a process took: seconds by the clock and of the processors, and its largest resident set."""

    wall: float
    cpu: float
    megabytes: float


def measured(command: list[str], threads: int) -> Cost:
    """One whole process."""
    log = WORK / "last.log"
    whole = [sys.executable, "-I", "-S", str(SPEED / "measure.py"), str(log), str(Path.cwd()), *command]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    found = subprocess.run(whole, capture_output=True, text=True, check=True, env=environment).stdout.split()
    if found[0] != "0":
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()}")
    wall, user, system, peak = map(float, found[1:5])
    return Cost(wall, user + system, peak * 1024 / 1e6)
