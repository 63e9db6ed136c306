"""What lies beside the weights and says where they come from: the model card's front matter, the lock file's name."""

from __future__ import annotations

import re
from typing import Any

from eutectic.weights.files import Place, open_file

__all__ = ["CARD", "LOCK", "front_matter"]

LOCK = "recipe.lock.json"
CARD = "README.md"


def front_matter(card: Place) -> dict[str, Any]:
    """What the front matter of a model card states; {} where there is no card, or none that can be read."""
    if not card.is_file():
        return {}
    import yaml  # here, because `inspect` starts without it

    file = open_file(card)
    text = file.read(0, min(file.size, 1 << 16)).decode("utf-8", "replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        stated = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError, RecursionError):  # a card that cannot be read states nothing
        return {}
    return stated if isinstance(stated, dict) else {}
