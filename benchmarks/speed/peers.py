"""The peers, each in a virtual environment of its own: `python benchmarks/speed/peers.py [NAME]` builds them.

They run only as processes; nothing of theirs is imported or copied here. torch is installed first, so that the
local CPU build is found and nothing with CUDA is pulled in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from paths import WORK

TORCH = "torch==2.13.0"
PEERS = {"mergekit": "mergekit==0.1.5", "sd-mecha": "sd-mecha==1.1.8"}
REPORTED = {"mergekit": ("mergekit", "torch", "transformers"), "sd-mecha": ("sd-mecha", "torch")}


def environment(peer: str) -> Path:
    """Folder of a peer's virtual environment."""
    return WORK / f"venv-{peer}"


def python(peer: str) -> Path:
    """The interpreter of a peer's virtual environment."""
    return environment(peer) / "bin" / "python"


def build(peer: str) -> None:
    """Create the peer's environment unless it holds the wanted version already."""
    name, _, version = PEERS[peer].partition("==")
    if installed(python(peer), (name,)).get(name) == version:
        return
    subprocess.run([sys.executable, "-m", "venv", environment(peer)], check=True)
    pip = [python(peer), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, PEERS[peer]], check=True)


def installed(interpreter: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the named distributions as that interpreter sees them (absent ones are left out)."""
    if not interpreter.exists():
        return {}
    code = (
        "import sys, importlib.metadata as m\n"
        "print('python', sys.version.split()[0])\n"
        "for n in sys.argv[1:]:\n"
        "    try: print(n, m.version(n))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    run = subprocess.run([interpreter, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in run.stdout.splitlines())


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PEERS:
        build(wanted)
        print(wanted, installed(python(wanted), REPORTED[wanted]))
