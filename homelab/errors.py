"""The failures an operator can act on. The class of an error fixes the exit code; nothing here imports
anything of ours.

HomelabError          1   deploy failed or cancelled
├── InventoryError    2   what you wrote
├── DoesNotFit        3   what you have
├── NodeError         4   what could not be reached or asked
└── DeployError       1   what failed while changing things
"""

from __future__ import annotations

from collections.abc import Sequence


class HomelabError(Exception):
    """What happened, why in the other tool's own words, and what to type next."""

    exit_code = 1

    def __init__(self, message: str, *, cause: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint


class InventoryError(HomelabError):
    """All mistakes of an inventory at once, each as `file:line: path: what`."""

    exit_code = 2

    def __init__(
        self, message: str, *, mistakes: Sequence[str] = (), cause: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, cause=cause or "\n".join(mistakes), hint=hint)
        self.mistakes = tuple(mistakes)


class DoesNotFit(HomelabError):
    """What was asked for and is not placed, with the arithmetic."""

    exit_code = 3


class NodeError(HomelabError):
    """A node that could not be reached or asked. `kind` names the reason for code that must tell them
    apart."""

    exit_code = 4

    def __init__(self, message: str, *, cause: str = "", hint: str = "", kind: str = "unreachable") -> None:
        super().__init__(message, cause=cause, hint=hint)
        self.kind = kind


class DeployError(HomelabError):
    """A change that failed on a machine."""

    exit_code = 1
