"""The verb `chat`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from homelab.errors import DeployError, InventoryError
from homelab.verbs import (
    USE,
    InventoryOption,
    access_of,
    app,
    completed,
    deployed_secrets,
    household_of,
    inventory_option,
)

if TYPE_CHECKING:
    from homelab.chat import Answer, Conversation
    from homelab.clients import Model
    from homelab.pipeline import Household
    from homelab.ui.chat import Words

# More text than any model here reads is a mistake: a wrong file.
MOST_QUESTION_BYTES = 16 << 20
# So that it is the gateway who gives up first, and says why.
GIVES_UP_FIRST_SECONDS = 60


@app.command(rich_help_panel=USE, short_help="Talk with a model on the terminal.")
def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model, or another name of one. Default: the first that chats.",
            autocompletion=completed("models", "cloud", "aliases", "tiers"),
        ),
    ] = None,
    inventory: InventoryOption = None,
    system: Annotated[str, typer.Option("--system", help="What the model is told before all else.")] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="The longest answer, thoughts included."),
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(
            "--timeout",
            min=1,
            help="Seconds without a word after which an answer is given up.",
            show_default="60 more than the gateway itself waits",
        ),
    ] = None,
) -> None:
    """Talk with a model through the gateway: ^C stops an answer, ^D ends. From a pipe: one question, and the
    answer alone on stdout. Nothing of it is kept."""
    from homelab import ui
    from homelab.ui import chat as screen

    household = household_of(ctx, inventory)
    key = deployed_secrets(household).gateway_key.get_secret_value()
    talk = _Talk(household, key, model, system, max_tokens, timeout)
    if sys.stdin.isatty():
        screen.talk(talk.greeting(), talk.ask, talk.new, talk.switch)
        return
    raw = sys.stdin.buffer.read(MOST_QUESTION_BYTES + 1)
    if len(raw) > MOST_QUESTION_BYTES:
        raise InventoryError(
            f"The question has more than {MOST_QUESTION_BYTES >> 20} MiB", hint="Is it the right file?"
        )
    question = raw.decode(errors="replace").strip()
    if not question:
        raise InventoryError(
            "There is no question on standard input",
            hint=f"echo 'your question' | homelab chat{inventory_option(household)}; "
            "to talk, from a terminal",
        )
    answer = talk.once(question)
    ui.say(screen.told(answer, talk.model.context))


class _Talk:
    """A conversation and whom it is with. Where the gateway is, its node says: before the first question, and
    again after one that nobody answered."""

    def __init__(
        self,
        household: Household,
        key: str,
        model: str | None,
        system: str,
        max_tokens: int | None,
        timeout: int | None,
    ) -> None:
        from homelab.chat import Conversation

        self.household, self.key, self.max_tokens = household, key, max_tokens
        self.timeout = timeout
        self.conversation: Conversation = Conversation(system=system)
        self.model, self.others = _chosen(household, model)
        self.url: str | None = self._proven()

    def _proven(self) -> str:
        from homelab import pipeline

        return asyncio.run(pipeline.proven_gateway(self.household))

    def greeting(self) -> str:
        from homelab.ui.cells import tokens

        context = f", context {tokens(self.model.context)}" if self.model.context else ""
        return f"{self.model.name} at {self.url}{context}. ^C stops an answer, ^D ends, /help"

    def ask(self, question: str) -> None:
        """On the terminal: ^C keeps what has come."""
        from homelab import ui
        from homelab.chat import Answer, TooLong
        from homelab.ui import chat as screen

        answer, words = Answer(), screen.Words()
        stopped = False
        try:
            self._stream(question, answer, words)
        except KeyboardInterrupt:
            words.stopped()
            stopped = True
        except TooLong as e:
            e.hint = "/new begins a new conversation; /model lists those that may read more"
            raise
        finally:
            words.end()
            self.conversation.add(question, answer)
        warned = screen.warnings(answer, self.model.context, self.max_tokens)
        if not answer.text:
            warned.append("There was no answer. The question is not kept: arrow up brings it back")
        screen.after(screen.told(answer, self.model.context, stopped=stopped), warned)
        ui.say("")

    def once(self, question: str) -> Answer:
        """From a pipe. Raises DeployError where there is no answer, or not all of it."""
        from homelab import ui
        from homelab.chat import Answer
        from homelab.ui import chat as screen

        answer, words = Answer(), screen.Words()
        try:
            self._stream(question, answer, words)
        finally:
            words.end()
        if not answer.text.strip():
            thought = f"its {answer.completion_tokens or ''} tokens are thoughts".replace("  ", " ")
            raise DeployError(
                f"`{self.model.name}` came to no answer",
                cause=thought if answer.thought else "it said nothing",
                hint="A larger --max-tokens" if self.max_tokens else f"homelab logs {self.model.name}",
            )
        for warning in screen.warnings(answer, None, self.max_tokens):
            ui.say(f"warning: {warning}")
        return answer

    def _stream(self, question: str, answer: Answer, words: Words) -> None:
        from homelab import chat as talking
        from homelab import state
        from homelab.ui import chat as screen

        if self.url is None:
            self.url = self._proven()
        pieces = talking.stream(
            self.url,
            self.key,
            self.model.name,
            self.conversation,
            question,
            answer,
            max_tokens=self.max_tokens,
            silence_seconds=self.timeout or self.model.silence_seconds + GIVES_UP_FIRST_SECONDS,
            ca_file=state.ca_file(self.household.inventory.cluster),
        )
        try:
            asyncio.run(screen.show(pieces, words))
        except talking.Away:
            self.url = None
            raise

    def new(self) -> None:
        from homelab import ui
        from homelab.chat import Conversation

        self.conversation = Conversation(system=self.conversation.system)
        ui.say("A new conversation")

    def switch(self, name: str) -> None:
        from homelab import ui
        from homelab.ui.cells import tokens

        if name:
            self.model, self.others = _chosen(self.household, name)
            ui.say(self.greeting())
            return
        for model in self.others:
            here = "  (this one)" if model.name == self.model.name else ""
            ui.say(f"{model.name}  {tokens(model.context) if model.context else '-'}{here}")


def _chosen(household: Household, name: str | None) -> tuple[Model, tuple[Model, ...]]:
    """The model of that name or alias, and all that chat.

    Raises InventoryError."""
    from dataclasses import replace

    from homelab import routes

    meant = routes.names(household.inventory).get(name or "", name)
    reached = access_of(household, meant)
    chosen = reached.model if meant == name else replace(reached.model, name=name or "")
    return chosen, reached.chat
