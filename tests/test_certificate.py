"""A certificate of one's own: what is wrong with it is said with its line, before anything is changed."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from homelab import certificate, front
from homelab.endpoints import entrance_url, gateway_url
from homelab.errors import InventoryError
from homelab.inventory import load
from homelab.placement import place
from homelab.render import render
from tests.machines import KEYS, deployed, machine, survey, tiny_gguf

INVENTORY = """\
gateway: {node: n}
nodes: {n: {host: 192.168.1.10}}
models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}
front:
  hostnames: [gateway.example.org]
  tls:
    certificate: gw.pem
    key: gw.key
"""


def made(folder: Path, *names: str, days: int = 30, name: str = "gw") -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address("192.168.1.10"))]
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, names), *addresses]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def mistakes(folder: Path, text: str = INVENTORY) -> list[str]:
    path = folder / "inventory.yml"
    with pytest.raises(InventoryError) as e:
        certificate.read(load(text, str(path)), path, text)
    return [m.removeprefix(f"{path}:") for m in e.value.mistakes]


def test_a_certificate_that_is_right_goes_to_the_node_its_key_for_nobody_else(tmp_path: Path) -> None:
    made(tmp_path, "*.example.org")
    path = tmp_path / "inventory.yml"
    inventory = load(INVENTORY, str(path))
    found = certificate.read(inventory, path, INVENTORY)
    assert found is not None
    there = survey(n=machine("n", weights=(tiny_gguf(),)))
    layout = place(inventory, there)

    services = render(inventory, layout, there, KEYS, {}, certificate=found)
    service = next(s for s in services if s.role == "front")
    files = {f.path.rpartition("/")[2]: f for f in service.files}
    secret = found[1].get_secret_value()
    assert files[front.KEY].content == secret and files[front.KEY].mode == 0o600
    assert [n for n, f in files.items() if secret in f.content] == [front.KEY]
    assert secret not in repr(service)
    assert f"tls /app/{front.CERTIFICATE} /app/{front.KEY}" in files["Caddyfile"].content
    # Clients are told the name that it is for.
    after = survey(n=machine("n", weights=(tiny_gguf(),), services=deployed((service,), "n")))
    assert gateway_url(inventory, after) == "https://gateway.example.org:4000"
    [seen] = deployed((service,), "n")
    assert entrance_url(inventory, seen) == "https://gateway.example.org:4000"
    # Another certificate is another front.
    before = service.spec
    made(tmp_path, "*.example.org")
    again = certificate.read(inventory, path, INVENTORY)
    assert again is not None
    other = render(inventory, layout, there, KEYS, {}, certificate=again)
    assert next(s for s in other if s.role == "front").spec != before


def test_another_certificates_key_is_a_mistake(tmp_path: Path) -> None:
    made(tmp_path, "gateway.example.org")
    made(tmp_path, "gateway.example.org", name="other")
    (tmp_path / "other.key").replace(tmp_path / "gw.key")
    [said] = mistakes(tmp_path)
    assert said.startswith("8: front.tls.key: ") and "is not the key of" in said


def test_a_name_that_it_is_not_for_is_a_mistake(tmp_path: Path) -> None:
    made(tmp_path, "other.example.org", "*.deep.example.org")
    [said] = mistakes(tmp_path)
    assert said.startswith("5: front.hostnames: the certificate is not for `gateway.example.org`")
    assert "other.example.org" in said


def test_one_that_is_over_is_a_mistake(tmp_path: Path) -> None:
    made(tmp_path, "gateway.example.org", days=-1)
    [said] = mistakes(tmp_path)
    assert said.startswith("7: front.tls.certificate: it ended on ")


def test_files_that_are_not_there_or_hold_something_else_are_named(tmp_path: Path) -> None:
    assert [m.partition(": `")[0] for m in mistakes(tmp_path)] == [
        "7: front.tls.certificate",
        "8: front.tls.key",
    ]
    made(tmp_path, "gateway.example.org")
    (tmp_path / "gw.pem").write_text("no certificate")
    assert "holds no certificate in PEM" in mistakes(tmp_path)[0]
