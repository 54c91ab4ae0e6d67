"""A conversation on the terminal, or one question from a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Callable

from rich.text import Text

from homelab import terminal, ui
from homelab.chat import Answer, Part
from homelab.errors import HomelabError
from homelab.ui.cells import tokens

# From here on the end of the context is in sight.
FULL = 0.8
# Somebody who waits so long is told that nothing has ended.
QUIET_SECONDS = 3.0
HELP = (
    "^C      stop an answer; at the prompt, leave the line",
    "^D      end",
    "/new    a new conversation, with nothing said before",
    "/model  the models that chat; /model NAME goes on with that one",
    "/help   this",
)


class Words:
    """An answer as it comes: on a terminal with what was thought before, dim; elsewhere the answer alone. No
    white space around it."""

    def __init__(self) -> None:
        self.is_watched = ui.out.is_terminal
        self._part: Part | None = None
        self._held = ""  # white space that more words may follow
        self._line_is_open = self._waits = False

    def write(self, part: Part, text: str) -> None:
        """Raises SystemExit when nobody reads it any more."""
        if part == "thought" and not self.is_watched:
            return
        self.clear()
        if part != self._part:
            self._close()
            if self._part is not None:
                sys.stdout.write("\n")
            self._part, self._held = part, ""
        text = self._held + terminal.harmless(text)
        if not self._line_is_open:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        if shown:
            self._line_is_open = True
            if part == "thought":
                # Its spaces and tabs are its own: rich would expand them.
                style = "\x1b[2m", "\x1b[0m"
                shown = shown.translate(ui.ASCII) if not ui.out.encoding.startswith("utf") else shown
                sys.stdout.write(f"{style[0]}{shown}{style[1]}")
            else:
                sys.stdout.write(shown)
        sys.stdout.flush()
        if terminal.is_output_lost():
            raise SystemExit(0)

    def quiet(self, seconds: float) -> None:
        """That nothing has come for so long. Only where a line is free: words are not written over."""
        if self.is_watched and ui.err.is_terminal and not ui.err.is_dumb_terminal and not self._line_is_open:
            sys.stderr.write(f"\r\x1b[K… {seconds:.0f} s, ^C stops".translate(_ascii()))
            sys.stderr.flush()
            self._waits = True

    def clear(self) -> None:
        """The line of `quiet` goes."""
        if self._waits:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._waits = False

    def stopped(self) -> None:
        """The terminal has shown ^C: what follows begins a line."""
        if not self._waits and not self._line_is_open:
            ui.say("")

    def end(self) -> None:
        self.clear()
        self._close()
        sys.stdout.flush()

    def _close(self) -> None:
        if self._line_is_open:
            sys.stdout.write("\n")
            self._line_is_open = False


def _ascii() -> dict[int, str]:
    return {} if ui.err.encoding.startswith("utf") else {ord("…"): "..."}


async def show(pieces: AsyncGenerator[tuple[Part, str], None], words: Words) -> None:
    """All of an answer, as it comes."""
    heard = time.monotonic()
    async with contextlib.aclosing(pieces):
        coming = asyncio.ensure_future(anext(pieces, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=1)
                silent = time.monotonic() - heard
                if not done:
                    if silent >= QUIET_SECONDS:
                        words.quiet(silent)
                    continue
                piece = coming.result()
                if piece is None:
                    return
                words.write(*piece)
                heard = time.monotonic()
                coming = asyncio.ensure_future(anext(pieces, None))
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, HomelabError, StopAsyncIteration):
                await coming


def told(answer: Answer, context: int | None, *, stopped: bool = False) -> str:
    """Who answered, how fast, and how full the context is, as far as it is known."""
    parts = [answer.served_by or "by whom is not known"]
    if stopped:
        parts.append("stopped")
    if answer.first_token_seconds is not None:
        parts.append(f"first token {answer.first_token_seconds:.2f} s")
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.used_tokens is not None:
        of = f" of {tokens(context)}" if context else " tokens"
        parts.append(f"context {tokens(answer.used_tokens)}{of}")
    return ", ".join(parts)


def warnings(answer: Answer, context: int | None, max_tokens: int | None) -> list[str]:
    """What somebody should know who goes on."""
    used, found = answer.used_tokens, []
    if answer.finish_reason == "length":
        made = answer.completion_tokens
        if max_tokens is not None and (made is None or made >= max_tokens):
            found.append(f"The answer was cut off at {max_tokens} tokens (--max-tokens)")
        else:
            found.append(
                "The answer was cut off: the context is full, or the model's limit of output reached"
            )
    if used is not None and context and used >= FULL * context:
        found.append(
            f"The context is {100 * used / context:.0f} % full. What does not fit any more is refused: "
            "/new begins a new conversation"
        )
    return found


def after(line: str, warned: list[str]) -> None:
    """What stands under an answer."""
    ui.err.print(Text(line, style="dim"))
    for warning in warned:
        ui.say(f"warning: {warning}")


def read(prompt: str) -> str:
    """A line that somebody types, with the keys of readline where it is there; nothing of it is kept.

    Raises EOFError, KeyboardInterrupt."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - `input` has it then

        line = input(prompt)
    else:
        ui.err.print(prompt, end="")
        raw = sys.stdin.buffer.readline()
        if not raw:
            ui.say("")
            raise EOFError
        line = raw.decode(errors="replace")
    # What is not UTF-8 came as halves of surrogate pairs.
    return line.encode(errors="replace").decode().strip()


def talk(
    first: str,
    ask: Callable[[str], None],
    new: Callable[[], None],
    switch: Callable[[str], None],
) -> None:
    """Read questions and commands until the end of the input. What fails is said, and the conversation goes
    on; so it does after ^C, whatever that finds."""
    ui.say(first)
    while True:
        try:
            line = read("> ")
            word, _, rest = line.partition(" ")
            if line == "/help":
                for text in HELP:
                    ui.say(text)
            elif line == "/new":
                new()
            elif word == "/model":
                switch(rest.strip())
            elif line in ("/exit", "/quit", "/bye"):
                return
            elif word.startswith("/") and word[1:].isalpha() and not rest:
                ui.say(f"There is no {word}. /help lists the commands")
            elif line:
                ask(line)
        except EOFError:
            if sys.stdout.isatty():
                ui.say("")
            return
        except KeyboardInterrupt:
            ui.say("")
        except UnicodeDecodeError as e:
            ui.error(HomelabError("That line is not UTF-8", cause=str(e)))
        except HomelabError as e:
            ui.error(e)
