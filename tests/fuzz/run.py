"""Coverage-guided fuzzing of the readers with atheris.

    python tests/fuzz/run.py [--seconds 20] [TARGET ...]

Starts from the corpus in the tree. A finding is printed with its traceback and left in benchmarks/.work/fuzz; add it to
the corpus once it is mended.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
FOUND = Path(__file__).resolve().parents[2] / "benchmarks" / ".work" / "fuzz"


def main() -> None:
    """Every target in a process of its own: libFuzzer ends its process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("targets", nargs="*", help="default: all")
    options = parser.parse_args()
    FOUND.mkdir(parents=True, exist_ok=True)
    bad = []
    for name in options.targets or sorted(folder.name for folder in CORPUS.iterdir()):
        with tempfile.TemporaryDirectory() as grown:
            shutil.copytree(CORPUS / name, grown, dirs_exist_ok=True)
            command = [sys.executable, __file__, "--one", name, grown, f"-max_total_time={options.seconds}"]
            command += ["-max_len=4096", "-timeout=20", "-print_final_stats=1", f"-artifact_prefix={FOUND}/{name}-"]
            run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        runs = next((line.split()[-1] for line in run.stderr.splitlines() if "executed_units" in line), "?")
        print(f"{name}: {runs} inputs, {'a finding' if run.returncode else 'no finding'}", flush=True)
        if run.returncode:
            print(run.stdout[-6000:], run.stderr[-3000:])
            bad.append(name)
    sys.exit(1 if bad else 0)


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one target, in this process."""
    import atheris

    with atheris.instrument_imports(include=["eutectic"]):
        from targets import TARGETS, check
    atheris.Setup([sys.argv[0], *arguments], lambda data: check(TARGETS[name], data))
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3:])
    else:
        main()
