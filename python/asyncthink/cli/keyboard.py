"""The keyboard of a conversation: lines that are typed, and keys that are pressed while an answer is shown."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def lines(prompts: bool) -> Iterator[str]:
    """Lines of stdin until its end. At a terminal there is a prompt, and the arrow keys recall earlier lines."""
    if prompts:
        with suppress(ImportError):  # readline is not on every platform; importing it is all that input() needs
            import readline  # noqa: F401
    while True:
        try:
            yield input("> " if prompts else "")
        except EOFError:
            if prompts:
                print()
            return
        except KeyboardInterrupt:
            if not prompts:
                raise
            print("\n(Ctrl-D or /quit ends)")


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields a list that Ctrl-C fills, so that a step is never torn; a second Ctrl-C is a KeyboardInterrupt."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def no_echo() -> Iterator[None]:
    """At a terminal, keys that are pressed meanwhile (Ctrl-C too) are not written into the lanes."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import termios
    except ImportError:  # a platform whose terminals are no such files
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
