"""The text of `eutectic inspect`: a summary, then one line per pattern of names, or per tensor."""

from __future__ import annotations

from typing import Any

import click

from eutectic.cli.output import format_bytes, format_count, format_share, print_fields, print_table, printable
from eutectic.cli.patterns import collapse
from eutectic.cli.sizes import plural

__all__ = ["print_inspection", "print_members"]

LARGEST = 3  # patterns named as having the largest tensors
MOST_STACKS = 4
MOST_FILES = 12
MOST_PATTERNS = 60  # rows of the pattern table; --json has all
MOST_PARTS = 6
MOST_VALUES = 12  # tensors with the largest values
_KINDS = {
    "model": "model", "merged": "merged model, with its recipe", "weights": "weights without a config.json",
    "planned": "recipe, not merged", "adapter": "adapter", "pipeline": "diffusion pipeline",
}  # fmt: skip


def print_inspection(facts: dict[str, Any]) -> None:
    """Print what `inspect.describe` found; its tensors one by one if `facts` lists them, else by pattern."""
    _print_summary(facts)
    _print_hazards(facts["hazards"])
    if "kinship" in facts:
        _print_kinship(facts["kinship"])
    if "values" in facts:
        _print_values(facts["values"])
    if "tensors" in facts:
        _print_tensors(facts["tensors"])
    else:
        _print_patterns(facts)


def print_members(facts: dict[str, Any]) -> None:
    """Print what `inspect.describe_members` found."""
    click.secho(printable(facts["path"]), bold=True)
    known = [(key, _listed(value)) for key, value in facts["facts"].items() if value not in (None, [])]
    print_fields([("kind", facts["title"]), *known])
    cells = [
        [m["name"], "-", "-", m["error"]] if "error" in m
        else [m["name"], format_count(m["parameters"]), format_bytes(m["bytes"]), ", ".join(m["dtypes"])]
        for m in facts["members"]
    ]  # fmt: skip
    if cells:
        print_table(["model", ">parameters", ">size", "types"], cells, title="Models in it")


def _print_summary(facts: dict[str, Any]) -> None:
    click.secho(printable(facts["path"] or "planned checkpoint"), bold=True)
    kind = f" ({facts['model_type']})" if facts["model_type"] else ""
    dtypes = [f"{d['dtype']} {plural(d['tensors'], 'tensor')}, {format_bytes(d['bytes'])}" for d in facts["dtypes"]]
    stacks = [f"{s['count']} in {s['prefix'] or 'the top level'}" for s in facts["layers"]]
    declared = [f"{entry['name']} ({entry['file']})" for entry in facts["declared"]]
    fields = [
        ("kind", _KINDS[facts["kind"]]),
        *((key, _listed(value)) for key, value in facts.get("adapter", {}).items() if value is not None),
        ("model", f"{', '.join(facts['architectures']) or 'unknown, no config.json names it'}{kind}"),
        ("parameters", _exactly(format_count(facts["parameters"]), f"{facts['parameters']:,}")),
        ("size", _exactly(format_bytes(facts["bytes"]), f"{facts['bytes']:,} bytes")),
        ("tensors", f"{facts['tensor_count']:,}"),
        ("types", "; ".join(dtypes)),
        *([("quantised", _quantised_words(facts["quantisation"]))] if facts["quantisation"] else []),
        ("layers", "; ".join(_shorten(stacks, MOST_STACKS)) or "none numbered"),
        ("parts", "; ".join(_shorten(_part_lines(facts), MOST_PARTS))),
        ("declared", "; ".join(_shorten(declared, MOST_STACKS)) or "no base or source"),
        ("tied", _tied_words(facts["tied_embeddings"], facts["output_head"])),
        ("files", "; ".join(_shorten(_file_lines(facts["files"]), MOST_FILES)) or "none: not written yet"),
    ]
    by_size = sorted(facts["patterns"], key=lambda row: -row["bytes"] / row["count"])
    for position, row in enumerate(by_size[:LARGEST]):
        each = " each" if row["count"] > 1 else ""
        largest = f"{row['pattern']} {row['shape']}, {format_bytes(row['bytes'] // row['count'])}{each}"
        fields.append(("" if position else "largest", largest))
    print_fields(fields)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _print_hazards(hazards: list[dict[str, Any]]) -> None:
    if not hazards:
        return
    click.secho("\nBeware when merging", bold=True)
    for hazard in hazards:
        names = [pattern.text for pattern in collapse(hazard["tensors"])]
        where = f" ({'; '.join(_shorten(names, 2))})" if names else ""
        click.echo(printable(f"  - {hazard['message']}{where}"))


def _print_kinship(kinship: dict[str, Any]) -> None:
    cells = [
        [
            kin["name"] + (" (base)" if kin["name"] == kinship["base"] else ""),
            "-" if kin["distance"] is None else f"{kin['distance']:.4g}",
            "equal" if kin["equal"] else "related" if kin["related"] else "not related",
            "-" if kin["delta_cosine"] is None else f"{kin['delta_cosine']:.4f}",
            format_share(kin["share"]),
        ]
        for kin in kinship["candidates"]
    ]
    columns = ["candidate", ">distance", "relation", ">cosine of deltas", ">compared"]
    print_table(columns, cells, title=f"Likely base: {kinship['verdict']}")


def _print_values(values: list[dict[str, Any]]) -> None:
    worst = sorted(values, key=lambda v: (-v["nonfinite"], -v["largest"]))[:MOST_VALUES]
    cells = [
        [v["name"], f"{v['largest']:.4g}", format_share(v["zeros"] / v["elements"]), f"{v['nonfinite']:,}"]
        for v in worst
    ]
    print_table(["tensor", ">largest", ">zeros", ">NaN or infinite"], cells, title="Values, the largest first")


def _exactly(rounded: str, exact: str) -> str:
    return exact if rounded == exact else f"{rounded} ({exact})"


def _quantised_words(found: dict[str, Any]) -> str:
    bits = f", {found['bits']} bits" if found["bits"] and "bits" not in found["words"] else ""
    use = "a merge reads it as dense" if found["understood"] else "a merge refuses it"
    return printable(f"{found['words']}{bits}; {use}")


def _tied_words(tied: bool | None, head: str | None) -> str:
    stored = f"{head} is stored" if head else "no lm_head is stored"
    if tied is None:
        return f"not stated; {stored}"
    if tied:
        return f"yes, says config.json; yet {stored} too" if head else "yes, says config.json"
    return f"no, says config.json; {stored}"


def _part_lines(facts: dict[str, Any]) -> list[str]:
    """Shares of the parameters by what they are for, the kinds of attention together."""
    groups: dict[str, int] = {}
    for part in facts["parts"]:
        group = part["role"].partition(".")[0]
        groups[group] = groups.get(group, 0) + part["parameters"]
    ranked = sorted(groups.items(), key=lambda item: -item[1])
    return [f"{group} {format_share(n / max(facts['parameters'], 1))}" for group, n in ranked]


def _file_lines(files: list[dict[str, Any]]) -> list[str]:
    size = {file["name"]: file["bytes"] for file in files}
    return [
        f"{pattern.text}{f' x{len(pattern.names)}' if len(pattern.names) > 1 else ''}, "
        f"{format_bytes(sum(size[name] for name in pattern.names))}"
        for pattern in collapse(size)
    ]


def _shorten(texts: list[str], most: int) -> list[str]:
    return texts if len(texts) <= most else [*texts[:most], f"and {len(texts) - most} more"]


def _print_patterns(facts: dict[str, Any]) -> None:
    rows, total = facts["patterns"], max(facts["bytes"], 1)
    mixed = len(facts["dtypes"]) > 1  # one type for all is named in the summary, and the line is short enough
    cells = [
        [
            row["pattern"],
            str(row["count"]) if row["count"] == row["span"] else f"{row['count']} of {row['span']}",
            str(row["shape"]),
            *([row["dtype"]] if mixed else []),
            format_bytes(row["bytes"]),
            format_share(row["bytes"] / total),
        ]
        for row in rows[:MOST_PATTERNS]
    ]
    columns = ["tensors", ">count", "shape", *(["type"] if mixed else []), ">size", ">share"]
    print_table(columns, cells, title="Tensors by pattern")
    if len(rows) > MOST_PATTERNS:
        click.echo(f"  ... and {len(rows) - MOST_PATTERNS} more patterns; --json has them, --tensors has every tensor")


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    columns = ["tensor", "shape", "type", ">size", "file"]
    cells = [[t["name"], str(t["shape"]), t["dtype"], format_bytes(t["bytes"]), t.get("file", "")] for t in tensors]
    print_table(columns, cells, title="Tensors")
