"""`eutectic` and `python -m eutectic`: Ctrl-C is in order before anything that takes time is imported."""

from __future__ import annotations

from eutectic.cli.interrupts import arm

__all__ = ["main"]


def main() -> None:
    """Run the command line in a process of its own."""
    arm()
    from eutectic.cli.main import main as command_line

    command_line(prog_name="eutectic")


if __name__ == "__main__":
    main()
