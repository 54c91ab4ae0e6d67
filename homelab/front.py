"""What stands before the gateway: Caddy, which owns the port that clients know. It stays when the gateway is
replaced, and lets through what asks a model, nothing else. Pure.

Every directive was seen to work on Caddy 2.11.7."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Literal

from homelab.errors import InventoryError
from homelab.facts import Facts
from homelab.inventory import Front, Inventory, is_ip
from homelab.program import Offer, PythonEnvironment
from homelab.service import Service, cluster_directory, host_in_url

SERVICE = "front"
OFFER = Offer(
    name="caddy",
    images={"cpu": "caddy:2.11.7"},
    environment=PythonEnvironment(name="caddy", program="caddy", compiled=True),
)
# Caddy's own answer: whether it is there, whatever the gateway does.
HEALTH = "/homelab/front"
CONFIGURATION = "Caddyfile"
# Where it takes orders: a socket that its own user alone can use, relative to its folder, for a path may have
# some 100 characters only.
ADMIN, ADMIN_IN_CONTAINER = "unix/admin.sock", "unix//run/admin.sock"
CERTIFICATE, KEY = "certificate.pem", "key.pem"
# Beside the front's revisions and part of none: which gateway it sends to. A folder, for a container does not
# see a file that is put in the place of another.
UPSTREAM_FOLDER = "upstream"
UPSTREAM_FILE = "gateway.caddy"
BODY_LIMIT_BYTES = 32 * 1024**2
# Requests wait so long for a gateway that starts. LiteLLM takes 7 to 40 s.
WAIT_SECONDS = 60
# A gateway that was replaced has so long to end its streams: LiteLLM itself gives an answer 600 s.
DRAIN_SECONDS = 600
# One that is started again has less: what comes meanwhile waits until it is there again.
RESTART_DRAIN_SECONDS = 30
# What people ask of models (templates/homelab_auth.py has the same for keys of people), Gemini's way of
# asking, counters for a key that opens them, and whether the gateway lives. All else that LiteLLM answers,
# with a key or without, stays inside.
ROUTES = {
    "POST": r"(/v1)?/(chat/completions|completions|embeddings|rerank|responses|messages(/count_tokens)?"
    r"|audio/(speech|transcriptions)|images/generations|moderations)|/v2/rerank|/v1beta/models/.+",
    "GET": r"(/v1)?/models(/.+)?|/v1beta/models(/.+)?|/metrics/?|/health/liveliness",
}
CLOSED = (
    '{"error": {"message": "There is no such page here: this address answers for models only", '
    '"type": "invalid_request_error"}}'
)
# Nobody on the internet has these: RFC 1918, RFC 4193, of a link, Tailscale and other carriers' (RFC 6598).
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "100.64.0.0/10",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)
Way = Literal["internal", "acme", "files"]


def wanted(inventory: Inventory) -> Front | None:
    """The front that the house should have, None for none: there is one where the inventory has `front:`."""
    return inventory.front or None


def refuse_plain_http(inventory: Inventory, facts: Facts, address: str, front: Front | None) -> None:
    """Raises InventoryError where keys and prompts would go over the internet as they are, and nobody wrote
    that this is meant."""
    if front is not None and (front.tls or front.http):
        return
    if not any(is_public(a) for a in ([address] if is_ip(address) else facts.resolved.get(address, ()))):
        return
    raise InventoryError(
        f"The gateway would answer at {address} by plain HTTP, and that is no address of a private network",
        cause="who is on the way reads the keys and the prompts",
        hint="`front: {tls: internal}` encrypts; `front: {http: true}` says that it is meant; or give node "
        f"`{inventory.gateway.node}` the `address` of your LAN or VPN",
    )


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return not any(ip in network for network in PRIVATE if network.version == ip.version)


def names(front: Front, address: str) -> tuple[str, ...]:
    """What the front's certificate is for. Let's Encrypt knows no private address."""
    return front.hostnames if front.tls == "acme" else (address, *front.hostnames)


def settings(
    front: Front, address: str, port: int, *, in_container: bool, loopback: bool
) -> Mapping[str, object]:
    """What `Caddyfile.j2` asks for. `loopback`: a container without a network of its own."""
    way = front.way
    if way is None:
        sites = [f"http://:{port}"]
    elif way == "files":
        sites = [f"https://:{port}"]
    else:
        sites = [f"https://{host_in_url(name)}:{port}" for name in names(front, address)]
    own = ("127.0.0.0/8", "::1", address) if is_ip(address) else ("127.0.0.0/8", "::1")
    return {
        "admin": ADMIN_IN_CONTAINER if in_container else ADMIN,
        "data": "/data" if in_container else "../data",
        "upstream": f"/app/{UPSTREAM_FOLDER}/{UPSTREAM_FILE}"
        if in_container
        else f"../{UPSTREAM_FOLDER}/{UPSTREAM_FILE}",
        "way": way,
        "default_sni": front.hostnames[0] if way == "acme" else address,
        "health": HEALTH,
        "allow": [*own, *front.allow] if front.allow else [],
        "routes": ROUTES,
        "closed": CLOSED,
        "body_limit_bytes": int(front.body_limit or BODY_LIMIT_BYTES),
        "wait_seconds": WAIT_SECONDS,
        "sites": sites,
        "port": port,
        "bind": address if loopback or not in_container else "",
        "certificate": f"/app/{CERTIFICATE}" if in_container else CERTIFICATE,
        "key": f"/app/{KEY}" if in_container else KEY,
    }


def health_command(front: Front, port: int, host: str) -> str:
    """A line for sh that succeeds when the front is there, whatever its certificate is for: its image has
    wget only, machines have curl or python3."""
    url = f"http{'s' if front.tls else ''}://{host_in_url(host)}:{port}{HEALTH}"
    python = (
        "import ssl, urllib.request as r; "
        f"r.urlopen({url!r}, timeout=4, context=ssl._create_unverified_context())"
    )
    return (
        f"wget -q --no-check-certificate -O /dev/null {url} || curl -kfsS -o /dev/null {url} || "
        f'python3 -c "{python}"'
    )


AUTHORITY_IN_CONTAINER = "/data/pki/authorities/local/root.crt"


def authority_path(cluster: str) -> str:
    """Where Caddy keeps the certificate of its own authority, relative to the home, without Docker."""
    return f"{cluster_directory(cluster)}/{SERVICE}/data/pki/authorities/local/root.crt"


def upstream_path(cluster: str) -> str:
    """The file that says which gateway answers, relative to the home."""
    return f"{cluster_directory(cluster)}/{SERVICE}/{UPSTREAM_FOLDER}/{UPSTREAM_FILE}"


def upstream(gateway: Service) -> str:
    """Its content. In the cluster's network a revision's container has a name of its own."""
    unit = gateway.unit
    host = f"{gateway.project}-{unit.name}-1" if unit.joins_network else "127.0.0.1"
    return f"to {host}:{unit.port}\n"
