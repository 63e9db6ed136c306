"""`eutectic schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import click

__all__ = ["schema"]


@click.command()
def schema() -> None:
    """Print the JSON schema of recipes, for completion and checks in an editor.

    Write it to a file, and name that file in a recipe's first line, as the YAML language server reads it:
    "# yaml-language-server: $schema=recipe.schema.json".
    """
    from eutectic.recipes.schema import schema_json

    click.echo(schema_json(), nl=False)
