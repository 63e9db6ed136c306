"""Average the checkpoints of a training run, the better ones with more weight.

python examples/average.py [FOLDER]
"""

import json
import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.recipes.average import average_recipe
from eutectic.recipes.run_metrics import read_trainer_state
from eutectic.recipes.schedules import ema_weights, metric_weights, uniform_weights
from eutectic.recipes.training_run import find_checkpoints
from eutectic.weights.safetensors import write_safetensors
from eutectic.zoo.digits import build_digits
from eutectic.zoo.training import Schedule, train

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")
base = eutectic.open(family.base)
images = family.split("train")

# A run as transformers' Trainer leaves it: a folder every 20 steps, and a log of the metric.
tensors, log = {name: ref.to_numpy() for name, ref in base.items()}, []
for step in range(20, 140, 20):
    tensors = train(tensors, base.config, images, Schedule(20, 0.05, optimiser="momentum"), key=f"step {step}")
    saved = folder / "run" / f"checkpoint-{step}"
    saved.mkdir(parents=True)
    write_safetensors(saved / "model.safetensors", tensors, {"format": "pt"})
    log.append({"step": step, "eval_accuracy": family.measure(tensors, "validation").views["upright"].value})
    (saved / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))

checkpoints = find_checkpoints(folder / "run")
accuracy = read_trainer_state(checkpoints, "eval_accuracy")
ways = {
    "uniform": uniform_weights(len(checkpoints)),
    "by accuracy, p 50": metric_weights(accuracy, p=50, lower=False),
    "ema, decay 0.8": ema_weights(len(checkpoints), decay=0.8),
}
last = family.measure(tensors).views["upright"].value
print(f"the last checkpoint  test accuracy {last:.1%}")
for name, weights in ways.items():
    planned = eutectic.plan(average_recipe(checkpoints, weights))  # measured without being written
    found = family.measure(planned).views["upright"].value
    print(f"{name:<19}  test accuracy {found:.1%}  weights {' '.join(f'{w:.2f}' for w in weights)}")

out = eutectic.merge(average_recipe(checkpoints, ways["by accuracy, p 50"]), folder / "average", force=True)
print(f"{out.name}: {', '.join(sorted(path.name for path in out.iterdir()))}")
