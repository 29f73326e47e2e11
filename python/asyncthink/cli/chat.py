"""The command ``asyncthink chat``: a conversation on a terminal, or questions through a pipe, one a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from asyncthink.cli.keyboard import interruptible, lines, no_echo
from asyncthink.cli.options import (
    Context,
    Device,
    Dtype,
    Fallback,
    JoinMode,
    NumStates,
    Pool,
    Revision,
    Weights,
    loading,
)
from asyncthink.cli.remote import Servers, connect
from asyncthink.episode.options import Mode, Options, default_forms
from asyncthink.files import check_writable
from asyncthink.protocol.chat import prompts_for
from asyncthink.view.report import print_texts
from asyncthink.view.terminal import printable, watcher

if TYPE_CHECKING:
    from asyncthink.engine.loaded import LoadedModel
    from asyncthink.engine.remote.loaded import RemoteModel
    from asyncthink.engine.remote.sampler import RemoteSampler
    from asyncthink.engine.sampler import ForkJoinSampler
    from asyncthink.episode.params import SamplingParams
    from asyncthink.episode.records import Episode

_HELP = """\
/new          begin another conversation
/mode [MODE]  asyncthink, sequential or parallel
/pool [N]     agents alive at the same time
/save [FILE]  write the last episode as JSON, for `asyncthink view` (episode.json)
/help         these lines
/quit         end; so does Ctrl-D
Ctrl-C stops an answer. What has no answer is left out of the conversation."""


def converse(
    model: Annotated[str, typer.Option(help="Folder or hub id of any causal language model.")],
    system: Annotated[str | None, typer.Option(help="System prompt of every conversation.")] = None,
    mode: Annotated[str, typer.Option(help="asyncthink, sequential or parallel.")] = "asyncthink",
    join: JoinMode = "exact",
    context: Context = "shared",
    pool: Pool = 4,
    max_tokens: Annotated[int, typer.Option(help="Tokens that one agent may draw.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random streams.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    num_states: NumStates = None,
    fallback: Fallback = None,
    revision: Revision = None,
    server: Servers = None,
) -> None:
    """Talk with a model, and watch its agents work. In a pipe every line is a question, and answers are plain text."""
    agents: dict[str, Any] = {"mode": mode, "pool": pool, "context": context, "join": join}
    Options(**agents)  # refused before a model is loaded
    with loading(quiet=False, here=not server) as progress:
        from asyncthink.episode.params import SamplingParams

        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        loaded: LoadedModel | RemoteModel
        placed: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights}
        placed |= {"num_states": num_states, "fallback": fallback}
        if server:
            loaded = connect(server, model, revision, progress, **placed)
        else:
            from asyncthink.engine.loaded import LoadedModel

            loaded = LoadedModel.load(model, **placed, revision=revision, progress=progress)
        chat = Chat(loaded, agents, params, Console(), system)
    chat.greet(model)
    for line in lines(prompts=sys.stdin.isatty()):
        if not chat.take(line):
            break


class Chat:
    """A conversation: every answered question and its answer are messages of the next prompt.

    Args:
        loaded: the model. Every mode and pool gets a sampler on it.
        agents: the sampler's ``mode``, ``pool``, ``context``, ``join``.
        params: of every question.
        console: a terminal shows lanes and figures; anything else gets the answers alone, and stderr the rest.
        system: begins every conversation.

    Raises:
        ValueError: options that the model or the sampler refuses.
    """

    def __init__(
        self,
        loaded: LoadedModel | RemoteModel,
        agents: dict[str, Any],
        params: SamplingParams,
        console: Console,
        system: str | None = None,
    ) -> None:
        self.loaded, self.agents, self.params, self.console = loaded, agents, params, console
        self.sampler = self._sampler(agents)
        self.system = [{"role": "system", "content": system}] if system is not None else []
        self.messages: list[dict[str, str]] = []
        self.last: Episode | None = None
        self.holds = _holds_conversations(loaded)
        if system is not None and not self.holds:
            raise ValueError("system: expected none for this model, whose prompts hold one question alone")
        self._notes = console if console.is_terminal else Console(stderr=True)

    def greet(self, model: str) -> None:
        """One line for a person."""
        if self.console.is_terminal:
            kept = "" if self.holds else " Its prompts hold one question: every question stands alone."
            self._note(f"{model}.{kept} /help lists the commands.")

    def take(self, line: str) -> bool:
        """A question or a command. Returns False for the last one. Errors of either are printed."""
        words = line.split()
        if not words:
            return True
        if words[0] in ("/quit", "/exit"):
            return False
        try:
            if words[0].startswith("/"):
                self._command(words[0], " ".join(words[1:]))
            else:
                self._answer(line.strip())
        except (ValueError, OSError) as error:
            self._note(" ".join(str(error).split()), style="red")
        return True

    def _command(self, name: str, argument: str) -> None:
        if name == "/help":
            self._note(_HELP)
        elif name == "/new":
            self.messages.clear()
            self._note("a new conversation")
        elif name == "/mode":
            self._change("mode", argument)
        elif name == "/pool":
            if argument and not argument.isdecimal():
                raise ValueError(f"pool: expected a number of agents, got {argument!r}")
            self._change("pool", int(argument) if argument else "")
        elif name == "/save":
            self._save(Path(argument or "episode.json"))
        else:
            raise ValueError(f"{name}: expected a command of /help, or a question that does not begin with a slash")

    def _sampler(self, agents: dict[str, Any]) -> ForkJoinSampler | RemoteSampler:
        """A model that was not trained on tags organizes by a plan, or answers with its whole reply."""
        return self.loaded.sampler(**agents, **default_forms(self.loaded.prompts is not None, agents["mode"]))

    def _change(self, name: str, value: str | int) -> None:
        if value != "":
            agents = self.agents | {name: value}
            self.sampler = self._sampler(agents)
            self.agents = agents
        self._note(f"{name}: {self.agents[name]}")

    def _save(self, path: Path) -> None:
        if self.last is None:
            raise ValueError("save: expected an episode, got none yet")
        check_writable(path)
        self.last.save(path)
        self._note(f"saved: {path}")

    def _answer(self, question: str) -> None:
        asked = {"role": "user", "content": question}
        conversation = [*self.system, *self.messages, asked]
        given = question if len(conversation) == 1 else conversation
        # What is no terminal is not told of events: its console is quiet for them.
        shown = self.console if self.console.is_terminal else Console(quiet=True)
        first = "organizer" if self.agents["mode"] == Mode.ASYNCTHINK else "agent 1"
        screen = watcher(shown, texts=True, first=first)
        with self.sampler.stream(given, self.params) as stream, no_echo(), interruptible() as interrupted, screen:
            for event in stream:
                screen.show(event)
                if interrupted:
                    break
        episode = self.last = stream.episode
        episode.meta["model"] = self.loaded.name
        if interrupted:
            self._note("stopped")
            return
        self._print(episode)
        if episode.answer is not None and self.holds:
            self.messages += [asked, {"role": "assistant", "content": episode.answer.strip()}]

    def _print(self, episode: Episode) -> None:
        if self.console.is_terminal:
            self._note(summary(episode))
        if episode.answer is not None:
            self.console.print(Text(printable(episode.answer.strip())), soft_wrap=not self.console.is_terminal)
        else:
            self._note(f"no answer ({episode.finish})", style="red")
            if self.console.is_terminal:
                print_texts(self.console, episode)
        for error in [*episode.failures, *episode.format_errors]:
            self._note(f"error: {printable(error)}", style="red")

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(Text(text, style=style), soft_wrap=not self.console.is_terminal)


def summary(episode: Episode) -> str:
    """An episode in one line.

    >>> from asyncthink.episode.records import Episode
    >>> summary(Episode("1 + 1?", "asyncthink", wall_seconds=0.5))
    '0 agents, 0 of 0 tokens on the critical path, 0 forks, 0 joins, 0.50 s'
    """
    agents = len(episode.traces)
    return (
        f"{agents} agent{'' if agents == 1 else 's'}, {episode.critical_path_tokens} of {episode.total_tokens} tokens "
        f"on the critical path, {episode.forks} forks, {episode.joins} joins, {episode.wall_seconds:.2f} s"
    )


def _holds_conversations(loaded: LoadedModel | RemoteModel) -> bool:
    """Whether the model's templates can hold more than one question."""
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    prompts = loaded.prompts or prompts_for(loaded.tokenizer)
    try:
        prompts.parts("organizer", question=turns)
    except ValueError:
        return False
    return True
