"""The entry point: `eutectic` and its table of commands. A command's module is imported when it is called."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from eutectic import __version__
from eutectic.cli.interrupts import INTERRUPTED, allow, arm, leave, settle
from eutectic.cli.output import JSON_ASKED, JSON_LINES, emit_event, emit_json, printable
from eutectic.errors import EutecticError, RecipeError, nearest

__all__ = ["COMMANDS", "main"]

# name: (where the click command lives, one line of help), in the order in which `--help` lists them
COMMANDS = {
    "merge": ("eutectic.cli.merge:merge", "Merge checkpoints as a recipe says."),
    "plan": ("eutectic.cli.plan:plan", "Foretell a merge: tensors, bytes, memory; reads headers only."),
    "inspect": ("eutectic.cli.inspect:inspect", "Show what a checkpoint holds; reads headers only."),
    "diff": ("eutectic.cli.diff:diff", "Compare two checkpoints: names, shapes, types, values."),
    "trace": ("eutectic.cli.trace:trace", "Find what a checkpoint was merged from, among candidates."),
    "average": ("eutectic.cli.average:average", "Average the checkpoints of a training run, weighed by a metric."),
    "extract-lora": ("eutectic.cli.extract_lora:extract_lora", "Write the change of a fine-tune as a LoRA adapter."),
    "evaluate": ("eutectic.cli.evaluate:evaluate", "Measure models, recipes and endpoints on a suite of tasks."),
    "blame": ("eutectic.cli.blame:blame", "Find which expert and which layers made a merge worse."),
    "bisect": ("eutectic.cli.bisect:bisect", "Find by halving what made a merge worse."),
    "pool": ("eutectic.cli.pool:pool", "Keep a base and many experts in one folder, each to be had back."),
    "route": ("eutectic.cli.route:route", "Choose experts of a pool for each input, by a learned router."),
    "stats": ("eutectic.cli.stats:stats", "Collect statistics of models on data, for methods that need them."),
    "fit": ("eutectic.cli.fit:fit", "Learn a recipe's weights from data, by gradients through the merge."),
    "study": ("eutectic.cli.study:study", "Compare merge methods on families of experts, by a protocol."),
    "verify": ("eutectic.cli.verify:verify", "Check a merged folder against its recorded hashes."),
    "new": ("eutectic.cli.new:new", "Write a commented recipe to start from."),
    "schema": ("eutectic.cli.schema:schema", "Print the JSON schema of recipes, for editors."),
    "list": ("eutectic.cli.list:list_", "List the merge methods and their parameters."),
    "report": ("eutectic.cli.report:report", "Write the report of a study: a page of HTML, a table."),
    "zoo": ("eutectic.cli.zoo:zoo", "Build small real experts to try things on."),
    "demo": ("eutectic.cli.demo:demo", "Build, merge, measure and draw experts, in one go."),
}

EXIT_CODES = """\b
Exit codes:
  0    success; diff: identical
  1    diff: the two differ
  2    the command line is wrong
  3    the recipe is wrong
  4    a source is missing or malformed
  5    the output exists, is locked or cannot be written
  6    too little memory or disk
  7    verify: bytes differ from what was recorded
  8    an optional library is missing
  70   a fault of Eutectic itself
  130  interrupted
"""
GARBAGE = 100_000  # importing makes many objects and no garbage: collecting at 700 costs a tenth of the start-up
INTERNAL = 70
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


class LazyGroup(click.Group):
    """A group whose commands stay unimported until one is invoked, and which turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            hint = nearest(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {printable(name)!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every exception ends here as a message and an exit code."""
        gc.set_threshold(GARBAGE)
        try:
            try:
                allow()
                result = super().invoke(ctx)
                sys.stdout.flush()  # a reader that has gone away shows now, not at interpreter exit
                return result
            finally:
                settle()
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            if JSON_LINES in ctx.meta:
                report_json(ctx, {"type": "KeyboardInterrupt", "message": "interrupted", "exit_code": INTERRUPTED})
            leave()
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            silence_stdout()
            ctx.exit(BROKEN_PIPE)
        except Exception as error:
            fail(ctx, error)


def fail(ctx: click.Context, error: Exception) -> NoReturn:
    """Report `error` on stderr (and as JSON on stdout if --json was given), then exit with its code."""
    if os.environ.get("EUTECTIC_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, EutecticError):
        label, message, code = "error", str(error), error.exit_code
    else:
        text = " ".join(str(error).split())
        label, message, code = "internal error", f"{type(error).__name__}: {text}".rstrip(": "), INTERNAL
    shown = "\n".join(printable(line) for line in message.split("\n"))
    click.echo(f"{click.style(f'{label}:', fg='red', bold=True)} {shown}", err=True)
    if label == "internal error":
        click.echo("Set EUTECTIC_TRACEBACK=1 to see where; please report it with that text.", err=True)
    if JSON_ASKED in ctx.meta:
        report: dict[str, Any] = {"type": type(error).__name__, "message": message, "exit_code": code}
        if isinstance(error, RecipeError):
            report["problems"] = error.problems
        report_json(ctx, report)
    ctx.exit(code)


def report_json(ctx: click.Context, report: dict[str, Any]) -> None:
    """Print an error as the command's JSON has it: as an object, or as the last event."""
    try:
        if JSON_LINES in ctx.meta:
            emit_event(ctx.meta[JSON_ASKED], "error", {"error": report})
        else:
            emit_json(ctx.meta[JSON_ASKED], {"error": report})
    except BrokenPipeError:  # the exit code still tells
        silence_stdout()


def silence_stdout() -> None:
    """Point stdout at the null device, so that the flush at exit cannot fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a descriptor, as in tests
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@click.group(
    cls=LazyGroup,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="eutectic", message="%(prog)s %(version)s")
def main() -> None:
    """Compose neural models that already exist: merge, measure and trust checkpoints.

    `eutectic COMMAND --help` explains one command; most take --json for output that programs read.
    """


if __name__ == "__main__":
    arm()
    main(prog_name="eutectic")
