"""What the report says about the machine and the software: nothing that names the host or its folders."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import peers
from paths import REPOSITORY, WORK

OURS = ("eutectic", "numpy", "numba", "llvmlite", "torch", "pydantic", "click", "blake3")


def cpu_model() -> str:
    """Model name of the processor."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def slug(text: str) -> str:
    """Lower-case letters and digits joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def filesystem(path: Path) -> str:
    """Type of the filesystem that holds a path."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [m for m in mounts if path == Path(m[1]) or Path(m[1]) in path.parents]
    return max(above, key=lambda mount: len(mount[1]))[2]


def features() -> str:
    """The vector extensions that matter to a merge."""
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    return ", ".join(f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags)


def describe() -> dict[str, str]:
    """Machine facts, name -> value."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": f"{cpu_model()} ({features()})",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "kernel": platform.release().split("-")[0],
        "filesystem": filesystem(WORK),
    }


def load() -> str:
    """One-minute load average, as text."""
    return f"{os.getloadavg()[0]:.2f}"


def versions(used: list[str]) -> dict[str, dict[str, str]]:
    """Versions of everything, per environment."""
    found = {"eutectic": peers.installed(REPOSITORY / ".venv" / "bin" / "python", OURS)}
    found["eutectic"] |= {"commit": commit()}
    return found | {p: peers.installed(peers.python(p), peers.REPORTED[p]) for p in used}


def commit() -> str:
    """Short hash of the checkout, with a mark when the package's files differ from it."""
    git = ["git", "--no-optional-locks", "-C", str(REPOSITORY)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "none"
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True).stdout
    return head.stdout.strip() + (" with local changes" if changed.strip() else "")
