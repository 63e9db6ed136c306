"""What lies beside the weights and says where they come from: the model card's front matter, the lock file's name."""

from __future__ import annotations

import re
from typing import Any

from eutectic.weights.checkpoint import read_json
from eutectic.weights.files import Place, open_file

__all__ = ["CARD", "LOCK", "front_matter", "locked_names", "stated_base"]

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


def stated_base(card: Place) -> list[str]:
    """The models that a model card names under base_model."""
    stated = front_matter(card).get("base_model")
    return [name for name in (stated if isinstance(stated, list) else [stated]) if isinstance(name, str)]


def locked_names(lock: Place) -> list[str]:
    """The sources that a lock file names, an adapter apart from its model.

    Raises:
        FormatError: it is no JSON object.
    """
    sources = read_json(lock).get("sources")
    entries = [entry for entry in sources if isinstance(entry, dict)] if isinstance(sources, list) else []
    return [part for entry in entries if isinstance(entry.get("name"), str) for part in entry["name"].split("+")]
