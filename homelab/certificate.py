"""The certificate that `front: {tls: {certificate: …, key: …}}` names: read on this machine, and looked at
before anything is changed."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import SecretStr

from homelab.errors import InventoryError
from homelab.inventory import Certificate, Inventory, line_of


def read(inventory: Inventory, path: Path, text: str) -> tuple[str, SecretStr] | None:
    """The PEM of the certificate and of its key, None where the inventory names none. `path` and `text`
    are the inventory's.

    Raises InventoryError, with the line, for a file that cannot be read, a key that is another one's, names
    that it is not for, and a certificate that is over."""
    front = inventory.front
    if not front or not isinstance(front.tls, Certificate):
        return None
    folder = Path.cwd() if str(path) == "-" else path.parent
    files = {
        "certificate": (folder / Path(front.tls.certificate).expanduser()),
        "key": (folder / Path(front.tls.key).expanduser()),
    }
    mistakes: list[str] = []

    def mistake(key: str, what: str) -> None:
        line = line_of(text, "front", *(("tls", key) if key in files else (key,)))
        dotted = f"front.tls.{key}" if key in files else f"front.{key}"
        mistakes.append(f"{path}:{line}: {dotted}: {what}")

    found = {}
    for name, file in files.items():
        try:
            found[name] = file.read_text()
        except (OSError, UnicodeDecodeError) as e:
            mistake(name, f"`{file}` cannot be read: {e.strerror if isinstance(e, OSError) else e}")
    if not mistakes:
        _look(found["certificate"], files, front.hostnames, mistake)
    if mistakes:
        raise InventoryError(
            "The certificate of `front` cannot be used",
            mistakes=mistakes,
            hint="`front: {tls: internal}` needs no files: homelab's own authority signs then",
        )
    return found["certificate"], SecretStr(found["key"])


def _look(
    pem: str, files: dict[str, Path], hostnames: Sequence[str], mistake: Callable[[str, str], None]
) -> None:
    from cryptography import x509  # 40 ms that only a house with a certificate of its own spends

    try:
        leaf = x509.load_pem_x509_certificates(pem.encode())[0]
    except ValueError as e:
        mistake("certificate", f"`{files['certificate']}` holds no certificate in PEM: {e}")
        return
    try:
        # A key that asks for a password would stop a server; here it must not stop the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            files["certificate"], files["key"], password=lambda: ""
        )
    except (ssl.SSLError, ValueError, OSError) as e:
        mistake(
            "key", f"`{files['key']}` is not the key of `{files['certificate']}`, or needs a password ({e})"
        )
    if leaf.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        mistake("certificate", f"it ended on {leaf.not_valid_after_utc:%Y-%m-%d}")
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        mistake("certificate", "it is for no name: clients look at its `subjectAltName`, and it has none")
        return
    known = [n.lower() for n in names.get_values_for_type(x509.DNSName)]
    addresses = [str(a) for a in names.get_values_for_type(x509.IPAddress)]
    for name in hostnames:
        if not any(_covers(k, name) for k in known) and name not in addresses:
            is_for = ", ".join([*known, *addresses])
            mistake("hostnames", f"the certificate is not for `{name}`, but for {is_for}")


def _covers(pattern: str, name: str) -> bool:
    """`*.` stands for one label (RFC 6125)."""
    if pattern.startswith("*."):
        return "." in name and name.partition(".")[2] == pattern[2:]
    return pattern == name
