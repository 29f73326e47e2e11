"""Options with a new name: the old one is an error that says the new one, on every command that had it."""

from __future__ import annotations

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from asyncthink.cli.app import app
from asyncthink.cli.renamed import RENAMED
from asyncthink.cli.train import app as train_app

COMMANDS = {
    "eval": ["--budget"],
    "train sft": ["--budget", "--length"],
    "train grpo": ["--budget", "--length", "--cached", "--prompts", "--group", "--std", "--no-std"],
    "train memory": ["--length", "--cached"],
}


@pytest.mark.parametrize(("command", "option"), [(command, old) for command in COMMANDS for old in COMMANDS[command]])
@pytest.mark.parametrize("form", ["{} 7", "{}=7"])
def test_an_old_name_is_refused_with_the_new_one(command: str, option: str, form: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), *form.format(option).split()])
    assert result.exit_code == 2
    assert option in result.stderr and RENAMED[option] in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_new_names_exist(command: str) -> None:
    *group, name = command.split()
    parameters = get_command(train_app if group else app).commands[name].params  # type: ignore[attr-defined]
    options = {option for parameter in parameters for option in parameter.opts}
    assert {RENAMED[old].partition(" ")[0] for old in COMMANDS[command]} <= options
    assert not options & RENAMED.keys()
