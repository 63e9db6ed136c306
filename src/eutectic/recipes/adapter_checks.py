"""What must hold before adapters are merged without their base: one base, one layout, nothing that only it knows."""

from __future__ import annotations

from collections.abc import Sequence

from eutectic.errors import RecipeError, SourceError
from eutectic.methods.method import Method
from eutectic.recipes.adapter_sums import coefficients, pairs_of
from eutectic.recipes.match import Step
from eutectic.weights.adapter_delta import Changes

__all__ = ["base_of", "check_alike", "check_factors", "check_whole"]

UNIT = 1e-6  # how far from 1 the coefficients of an average may sum to


def check_alike(adapters: Sequence[tuple[str, Changes]], *, allow_mismatch: bool) -> None:
    """Refuse adapters that cannot be of one base, by what their configurations say.

    Raises:
        SourceError: other bases, other layouts of the weights, or tensors saved whole by some of them only.
    """
    (first, origin), *others = adapters
    for label, changes in others:
        for module, pair in changes.adapter.pairs.items():
            known = origin.adapter.pairs.get(module, pair)
            if (known.turned, known.embeds) != (pair.turned, pair.embeds):
                raise SourceError(
                    f"{label}: fan_in_fan_out differs from that of {first} ({module}): one of the two takes the "
                    "weight as transposed; correct its adapter_config.json"
                )
        here, there = base_of(changes), base_of(origin)
        if here and there and here != there and not allow_mismatch:
            raise SourceError(
                f"{label} is an adapter of {here}, {first} of {there} (base_model_name_or_path): a change of one model "
                "means nothing in another. If they are one model under two names, accept it with --allow-mismatch."
            )
    whole = {name: label for label, changes in adapters for name in changes.trained}
    for name, holder in whole.items():
        lacking = [label for label, changes in adapters if name not in changes]
        if lacking and not allow_mismatch:
            raise SourceError(
                f"{lacking[0]}: has no {name}, which {holder} saved whole (modules_to_save, biases), and the base's is "
                "not here. Write the model in front of both, as ./base+./adapter; or take it as it is with "
                "--allow-mismatch."
            )


def base_of(changes: Changes) -> str:
    """The name of the model that an adapter was trained on, or an empty text."""
    name = changes.adapter.config.get("base_model_name_or_path")
    return name.rstrip("/") if isinstance(name, str) else ""


def check_whole(whole: Sequence[Step], method: Method) -> None:
    """Refuse to merge tensors saved whole by a method that needs the base's.

    Raises:
        SourceError: the method works on changes or is no average, and the base, which tells them, is not here.
    """
    for step in whole:
        if step.action == "copy":
            continue
        found = coefficients(step)
        if found is None and all(merge.method.space == "weight" for merge in step.merges):
            continue
        if found is not None and abs(sum(found.values()) - 1) <= UNIT:
            continue
        why = "it works on changes" if found is None else f"its weights sum to {sum(found.values()):g}"
        raise SourceError(
            f"{step.name} is saved whole (modules_to_save, biases), so what changed in it depends on the base; "
            f"{method.name} cannot merge it alone, for {why}. Write the model in front of the adapters, as "
            "./base+./adapter, or take weights that sum to 1."
        )


def check_factors(changes: Sequence[Step], method: Method, adapters: int) -> None:
    """Refuse to average A and B apart where not even their shapes or scales agree.

    Raises:
        RecipeError: no average. SourceError: a module that not all have, or with other ranks or scales.
    """
    for step in changes:
        found, pairs = coefficients(step), pairs_of(step)
        if found is None or abs(sum(found.values()) - 1) > UNIT:
            raise RecipeError(
                f"adapter: space: factors averages A and B apart, and {method.name} with these weights is no average; "
                "use space: product"
            )
        kinds = {(pair.rank, pair.scale) for pair in pairs.values()}
        if len(pairs) < adapters or len(kinds) > 1:
            shown = ", ".join(f"rank {rank} scaled by {scale:g}" for rank, scale in sorted(kinds))
            raise SourceError(
                f"{step.name}: {len(pairs)} of {adapters} adapters have it ({shown}), and factors that are averaged "
                "apart need one rank and one scale. Even then mean(B) mean(A) is not the mean of the products B A, "
                "the average of the changes; space: product is."
            )
