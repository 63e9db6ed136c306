"""`eutectic extract-lora`: a LoRA adapter from a fine-tune and its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.candidates import open_model
from eutectic.cli.factored import modules_in_words, modules_json, print_errors
from eutectic.cli.output import emit_json, format_share, json_option, print_fields, progress
from eutectic.cli.sizes import plural

if TYPE_CHECKING:
    from eutectic.recipes.extract_lora import Extraction

__all__ = ["describe", "extract_lora"]

DTYPES = ("float32", "bfloat16", "float16")


@click.command("extract-lora")
@click.argument("finetuned")
@click.argument("out", type=click.Path())
@click.option("--base", required=True, metavar="MODEL", help="The model that FINETUNED was trained from.")
@click.option("--rank", type=click.IntRange(1), default=64, show_default=True, help="Rank of each module, at most.")
@click.option(
    "--max-error", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="E",
    help="Take for each module the smallest rank whose relative error is at most E.",
)  # fmt: skip
@click.option("--exclude", multiple=True, metavar="PART", help="Leave out tensors whose names contain PART.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Type of the factors. Default: the fine-tune's.")
@click.option("--threads", type=click.IntRange(1), help="Modules at a time. Default: the processors.")
@json_option
def extract_lora(
    finetuned: str,
    out: str,
    base: str,
    rank: int,
    max_error: float | None,
    exclude: tuple[str, ...],
    dtype: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write into the folder OUT a LoRA adapter: the low-rank part of what FINETUNED changed in its base.

    \b
      eutectic extract-lora ./finetuned ./adapter --base ./base --rank 32

    Every two-dimensional weight of the layers that changed becomes a pair of factors. What an adapter cannot hold
    (norms, biases, embeddings) is named with its size. PEFT reads the folder, and so does every recipe, as
    ./base+./adapter.
    """
    from eutectic.recipes.extract_lora import extract_lora as extract
    from eutectic.weights.dtypes import dtype_of

    model, origin = (open_model(source) for source in (finetuned, base))
    with progress("extracting", model.nbytes + origin.nbytes) as advance:
        found = extract(
            model, origin, out, rank=rank, max_error=max_error, exclude=exclude,
            dtype=None if dtype is None else dtype_of(dtype), threads=threads, report=advance,
        )  # fmt: skip
    if as_json:
        emit_json("extract-lora", describe(found, out))
    else:
        _print(found, out)


def describe(found: Extraction, out: str) -> dict[str, Any]:
    """An extraction as plain data (the body of the JSON of `extract-lora`)."""
    return {
        "out": out,
        "error": found.error,
        "unchanged": found.unchanged,
        "modules": modules_json(found.modules),
        "lost": [{"tensor": name, "change": norm} for name, norm in found.lost],
    }


def _print(found: Extraction, out: str) -> None:
    fields = [
        ("adapter", f"{out}: {modules_in_words(found.modules)}"),
        ("error", f"{format_share(found.error)} of the model's change is not in it"),
    ]
    if found.unchanged:
        fields.append(("unchanged", plural(found.unchanged, "linear weight")))
    if found.lost:
        names = ", ".join(name for name, _ in sorted(found.lost, key=lambda item: -item[1])[:3])
        fields.append(("lost", f"changes of {plural(len(found.lost), 'tensor')} that are no linear weights: {names}"))
    print_fields(fields)
    print_errors(found.modules)
