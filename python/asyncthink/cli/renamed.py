"""Renamed options: the error for an old name gives the new one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

RENAMED = {
    "--budget": "--max-tokens",
    "--cached": "--cache-tokens",
    "--group": "--group-size",
    "--length": "--batch-tokens",
    "--no-std": "--scale none",
    "--prompts": "--questions",
    "--std": "--scale group",
    "--tensorboard": "--log-to tensorboard",
}


class Command(TyperCommand):
    """A command that fails for an option of :data:`RENAMED` and names the new one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for argument in args:
            option = argument.partition("=")[0]
            if option in RENAMED:
                ctx.fail(f"No such option: {option}. It is now {RENAMED[option]}.")
        return super().parse_args(ctx, args)
