"""What the controller remembers of a cluster: its keys, what its nodes last said, how long its services took.
0600 files under the user's state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets as random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr, ValidationError

from homelab.errors import DeployError, HomelabError
from homelab.nodes.local import aside
from homelab.secrets import Secrets

if TYPE_CHECKING:
    from homelab.facts import Measurement, Survey


CA_FILE = "ca.crt"


def directory(cluster: str) -> Path:
    """The cluster's folder on the controller.

    Raises HomelabError where the user has no home."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise HomelabError(
            "It is not known where your home is",
            cause=f"HOME is `{home}`"
            if home != "~"
            else "HOME is not set, and this user has no entry in passwd",
            hint="Say where: export HOME=/home/YOU",
        )
    return platformdirs.user_state_path("homelab") / cluster


def key_file(cluster: str) -> Path:
    """Where the gateway's key lies by itself, for `$(cat …)` and clients."""
    return directory(cluster) / "gateway.key"


def ca_file(cluster: str) -> str | None:
    """Where the certificate of the house's own authority lies, None where it has none."""
    path = directory(cluster) / CA_FILE
    return str(path) if path.exists() else None


def save_ca(cluster: str, pem: str | None) -> None:
    """Keep the authority's certificate for clients; None takes it away.

    Raises HomelabError."""
    path = directory(cluster) / CA_FILE
    if pem is not None:
        _write(path, pem)
    else:
        path.unlink(missing_ok=True)


def new_secrets() -> Secrets:
    # LiteLLM refuses to start with an empty or well-known master key.
    return Secrets(
        gateway_key=SecretStr(f"sk-{random.token_hex(32)}"), engine_secret=SecretStr(random.token_hex(32))
    )


def load_secrets(cluster: str) -> Secrets | None:
    """The saved keys, or None if this controller has none.

    Raises HomelabError when the file is damaged or not ours to read: making new keys silently would lock
    every client out."""
    path = directory(cluster) / "secrets.json"
    try:
        return Secrets.from_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise HomelabError(
            f"The keys in `{path}` cannot be read",
            cause=str(e),
            hint=f"Take them back from the gateway's node by removing the file: rm {path}",
        ) from e
    except OSError as e:
        raise HomelabError(
            f"The keys in `{path}` cannot be read", cause=str(e), hint=f"Look whose it is: ls -l {path}"
        ) from e


def save_secrets(cluster: str, secrets: Secrets) -> None:
    """Keep the keys, each file 0600 from its first byte."""
    _write(directory(cluster) / "secrets.json", secrets.to_json())
    _write(key_file(cluster), _key_text(secrets))


def mend_key_file(cluster: str, secrets: Secrets) -> bool:
    """Write the gateway's key by itself again where that file is missing or says something else; whether
    that was so.

    Raises HomelabError when it cannot be written."""
    try:
        if key_file(cluster).read_text() == _key_text(secrets):
            return False
    except (OSError, UnicodeDecodeError):
        pass
    _write(key_file(cluster), _key_text(secrets))
    return True


def _key_text(secrets: Secrets) -> str:
    return secrets.gateway_key.get_secret_value() + "\n"


def load_survey(cluster: str) -> Survey | None:
    """What the nodes last said; None if never asked or unreadable (it is a memory, not a truth)."""
    from homelab.facts import Survey

    try:
        return Survey.model_validate_json((directory(cluster) / "survey.json").read_text())
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def save_survey(cluster: str, survey: Survey) -> None:
    _write(directory(cluster) / "survey.json", survey.model_dump_json())


def load_measurements(cluster: str) -> tuple[Measurement, ...]:
    """What was measured so far; nothing where there is no record or it cannot be read."""
    from homelab.facts import Survey

    try:
        return Survey.model_validate_json(_measurements(cluster).read_text()).measured
    except (OSError, ValidationError, UnicodeDecodeError):
        return ()


def save_measurements(cluster: str, measured: tuple[Measurement, ...]) -> None:
    from homelab.facts import Survey

    _write(
        _measurements(cluster),
        Survey(measured=measured).model_dump_json(include={"schema_version", "measured"}),
    )


def _measurements(cluster: str) -> Path:
    return platformdirs.user_cache_path("homelab") / "measured" / f"{cluster}.json"


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Time(BaseModel):
    """How long a service took when it was last started. `what` it was then: its engine and source."""

    model_config = ConfigDict(frozen=True)

    what: str
    seconds: Seconds
    load_seconds: Seconds


class _Times(RootModel[dict[str, Time]]):
    """By node/service."""


def load_times(cluster: str) -> dict[str, Time]:
    """How long the services last took, by `node/service`; nothing where there is no record or it cannot be
    read."""
    try:
        return _Times.model_validate_json((directory(cluster) / "times.json").read_text()).root
    except (OSError, ValidationError, UnicodeDecodeError):
        return {}


def save_times(cluster: str, times: dict[str, Time]) -> None:
    """Remember these with the ones of other services.

    Raises HomelabError when they cannot be written."""
    if times:
        _write(
            directory(cluster) / "times.json",
            _Times(load_times(cluster) | times).model_dump_json(indent=1) + "\n",
        )


def forget(cluster: str) -> None:
    """Remove what is kept of a cluster that is gone, under its lock. What was measured stays in the cache:
    it is true of the machines, not of the cluster."""
    folder = directory(cluster)
    try:
        for name in ("secrets.json", "gateway.key", "survey.json", "times.json", CA_FILE, "lock"):
            (folder / name).unlink(missing_ok=True)
    except OSError as e:
        raise HomelabError(
            "What is kept here of the cluster cannot be removed",
            cause=str(e),
            hint=f"Remove it: rm -r {folder}",
        ) from e
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def lock(cluster: str) -> Iterator[None]:
    """One deploy or remove at a time from this controller.

    Raises DeployError when another one is under way, HomelabError where nothing can be locked."""
    path = directory(cluster) / "lock"
    try:
        descriptor = _locked(path, cluster)
    except OSError as e:
        raise HomelabError(f"Cannot lock `{path}`", cause=str(e)) from e
    try:
        with contextlib.suppress(OSError):  # only said to others; a full disk must not keep us from `remove`
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path, cluster: str) -> int:
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed it (`forget`) between our opening and our locking.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError as e:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise DeployError(
                f"Another homelab is changing cluster `{cluster}`",
                cause=f"process {holder or 'unknown'}",
                hint="Wait for it to end, then run this again",
            ) from e
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with aside(path, 0o600) as file:
            file.write(text.encode())
    except OSError as e:
        raise HomelabError(f"Cannot write `{path}`", cause=str(e)) from e
