"""`eutectic list`: what there is to choose from."""

from __future__ import annotations

from typing import Any

import click

from eutectic.cli.output import emit_json, json_option, print_fields, print_table, printable

__all__ = ["list_"]


@click.group("list")
def list_() -> None:
    """List what there is to choose from."""


@list_.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain the one called NAME with its parameters."""
    from eutectic.methods import broken_methods, get_method, list_methods

    found = {name: get_method(name)} if name else list_methods()
    broken = {} if name else broken_methods()
    facts = [_facts(method) for method in found.values()]
    if as_json:
        emit_json("list methods", {"methods": facts, "broken": broken})
        return
    if name is None:
        rows = [(f["name"], f["scope"], f["base"], f["sources"], f["summary"]) for f in facts]
        print_table(("method", "scope", "base", "sources", "what it does"), rows)
        if broken:
            click.echo("\nPlug-ins that cannot be used:")
        for fault in broken.values():
            click.echo(f"  - {printable(fault)}")
        click.echo("\n`eutectic list methods NAME` shows a method's parameters.")
        return
    _explain(facts[0])


def _facts(method: Any) -> dict[str, Any]:
    parameters = [
        {
            "name": p.name,
            "expects": p.expected,
            "range": None if str(p.range) == "-inf to inf" else str(p.range),
            "per_source": p.per_source,
            "required": p.required,
            "default": None if p.required else p.default,
            "paper": method.paper.get(p.name),
            "meaning": p.meaning,
        }
        for p in method.parameters.values()
    ]
    return {
        "name": method.name, "summary": method.summary, "reference": method.reference, "space": method.space,
        "scope": method.scope, "base": method.base, "sources": method.count_in_words().replace(" sources", "")
        .replace(" source", ""), "symmetric": method.symmetric, "stochastic": method.stochastic,
        "sparsifies": method.sparsifies, "needs": method.needs, "fast_twin": method.lower is not None,
        "ignored": list(method.ignored), "departures": list(method.departures), "parameters": parameters,
    }  # fmt: skip


def _explain(facts: dict[str, Any]) -> None:
    click.echo(f"{facts['name']}: {facts['summary']}")
    print_fields([
        ("source", facts["reference"] or "-"),
        ("works on", f"{facts['space']}s, {facts['scope']} by {facts['scope']}"),
        ("base", facts["base"]),
        ("sources", facts["sources"]),
        *([("needs", f"{facts['needs']}, from `eutectic stats collect`")] if facts["needs"] else []),
        ("random", "yes, from --seed" if facts["stochastic"] else "no"),
    ])  # fmt: skip
    rows = []
    for p in facts["parameters"]:
        default = (
            "required"
            if p["required"]
            else str(p["default"]).lower()
            if p["default"] in (True, False)
            else p["default"]
        )
        expects = p["expects"] + (f", {p['range']}" if p["range"] else "") + (", per source" if p["per_source"] else "")
        paper = f"; the paper's: {p['paper']}" if p["paper"] is not None else ""
        rows.append((p["name"], str(default), expects, p["meaning"] + paper))
    if rows:
        click.echo()
        print_table(("parameter", "default", "takes", "meaning"), rows)
    if facts["ignored"]:
        click.echo(f"\nAccepted without effect: {', '.join(facts['ignored'])}.")
    for line in facts["departures"]:
        click.echo(f"Note: {line}.")
