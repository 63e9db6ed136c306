"""Merge torch modules in memory, without files; and a method on plain tensors, with gradients.

python examples/state_dicts.py
"""

import torch

import eutectic
from eutectic.methods import task_arithmetic

torch.manual_seed(0)
base, *experts = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in range(3))

merged = eutectic.merge_state_dicts(
    {"first": experts[0].state_dict(), "second": experts[1].state_dict()},
    "ties",
    base=base.state_dict(),
    parameters={"weight": {"first": 0.7, "second": 0.3}, "density": 0.5},
)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
print(model.load_state_dict(merged))

# A method is a function on tensors of one shape; PyTorch differentiates through it.
origin = torch.zeros(3)
delta = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
loss = task_arithmetic([delta], base=origin, weight=0.5, lambda_=2.0).square().sum()
loss.backward()
print(delta.grad)
