"""Collect statistics of two experts on their own data, and merge by least squares of their layers' outputs.

python examples/collect_statistics.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.evaluation.collecting.collect import collect_statistics
from eutectic.evaluation.evaluator import Evaluator
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")
names = ["flip", "invert"]

with Evaluator(family.suite) as evaluator:
    for name in names:
        model, task = evaluator.subject(family.experts[name]), evaluator.suite.tasks[name]
        found = collect_statistics(model, task, folder / "stats" / name, split="train", limit=300)
        print(f"{name}: {', '.join(found.kinds)} of {found.facts['data']['samples']} samples")

    models = [{"model": str(family.experts[name])} for name in names]
    known = [{**model, "statistics": str(found.path.parent / name)} for model, name in zip(models, names, strict=True)]
    recipes = {
        "linear": {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}},
        "fisher": {"merge_method": "fisher", "models": known},
        "regmean": {"merge_method": "regmean", "models": known},
    }
    for method, recipe in recipes.items():
        scores = evaluator.measure(recipe, tasks=names)
        print(f"{method:8}", ", ".join(f"{name} {scores[name].value:.3f}" for name in names))

merged = eutectic.merge(recipes["regmean"], folder / "regmean", force=True)
print(f"{merged.name}:", ", ".join(sorted(file.name for file in merged.iterdir())))
