"""The front before the gateway: when there is one, what it lets through (with the real Caddy), and that
nobody notices when the gateway behind it is replaced (with real LiteLLM and llama.cpp)."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from homelab import front, gateway
from homelab.errors import InventoryError
from homelab.inventory import Front, load
from homelab.placement import place
from homelab.plan import Options, Plan, diff
from homelab.render import render
from homelab.service import Service
from homelab.templating import render_template
from tests.machines import KEYS, deployed, machine, survey, tiny_gguf
from tests.test_gateway import LIST_PAGES, OPEN_PAGES
from tests.test_gateway import litellm_python as litellm_python
from tests.test_native_household import CACHE, ROOT, cache_in, environment, free_port

MODEL = "models: {t: {engine: llamacpp, source: /models/tiny.gguf, context: 2048}}\n"
BARE = "gateway: {node: n}\nnodes: {n: {host: 192.168.1.10}}\n" + MODEL
HOUSE = BARE + "front: {}\n"


def planned(text: str, *services: Any, upgrade: bool = False, **facts: Any) -> tuple[Plan, list[Service]]:
    inventory = load(text, "inventory.yml")
    found = survey(n=machine("n", weights=(tiny_gguf(),), services=services, **facts))
    layout = place(inventory, found)
    made = render(inventory, layout, found, KEYS, {}, upgrade=upgrade)
    plan = diff(inventory, layout, made, found, Options(upgrade=upgrade))
    return plan, list(made)


def actions(plan: Plan) -> dict[str, str]:
    return {c.service: c.action for c in plan.changes}


def running(text: str, **facts: Any) -> tuple[Any, ...]:
    return deployed(tuple(planned(text, **facts)[1]), "n")


@pytest.mark.parametrize("runtime", ["docker", "native"])
def test_a_front_has_the_port_and_the_gateway_one_of_its_own_on_loopback(runtime: str) -> None:
    facts: dict[str, Any] = {} if runtime == "docker" else {"docker": None}
    _, made = planned(HOUSE, **facts)
    units = {s.role: s.unit for s in made}
    assert (units["front"].address, units["front"].port) == ("192.168.1.10", 4000)
    assert (units["gateway"].address, units["gateway"].port) == ("127.0.0.1", 4001)
    assert units["front"].after == ("gateway",)
    [gw] = [s for s in made if s.role == "gateway"]
    told = front.upstream(gw)
    assert told == ("to 127.0.0.1:4001\n" if runtime == "native" else f"to {gw.project}-gateway-1:4001\n")
    assert len(told.split(":")[0]) - len("to ") <= 63  # a label of a name


def test_there_is_one_where_somebody_asks_for_it() -> None:
    alone = "gateway: {node: n}\nnodes: {n: {host: localhost}}\n" + MODEL
    for text in (alone, BARE, BARE + "front: false\n"):
        assert "front" not in {s.role for s in planned(text)[1]}
    assert "front" in {s.role for s in planned(alone + "front: {}\n")[1]}


def test_a_house_that_was_deployed_without_one_stays_so_until_somebody_asks() -> None:
    before = running(BARE + "front: false\n")
    plan, _ = planned(BARE, *before)
    assert set(actions(plan).values()) == {"keep"} and "front" not in actions(plan)
    # Also where the gateway is replaced for another reason.
    plan, _ = planned(BARE + "aliases: {coder: t}\n", *before)
    assert actions(plan) == {"t": "keep", "gateway": "replace"}
    plan, made = planned(HOUSE, *before)
    assert actions(plan)["gateway"] == "replace" and actions(plan)["front"] == "create"
    assert not any(c.blocked for c in plan.changes)
    again = deployed(tuple(made), "n")
    assert set(actions(planned(HOUSE, *again)[0]).values()) == {"keep"}


def test_what_is_asked_of_the_gateway_leaves_the_front_alone_and_the_other_way_round() -> None:
    there = running(HOUSE)
    plan, made = planned(HOUSE + "aliases: {coder: t}\n", *there)
    assert actions(plan) == {"t": "keep", "front": "keep", "gateway": "replace"}
    # Beside the one that is there.
    assert {s.role: s.unit.port for s in made}["gateway"] == 4002
    plan, _ = planned(BARE + "front: {allow: [192.168.1.0/24]}\n", *there)
    assert actions(plan) == {"t": "keep", "front": "replace", "gateway": "keep"}
    assert set(actions(planned(HOUSE, *there)[0]).values()) == {"keep"}


PUBLIC = BARE.replace("192.168.1.10", "203.0.113.7")


@pytest.mark.parametrize("more", ["", "front: {}\n", "front: false\n"])
def test_plain_http_on_the_internet_is_refused(more: str) -> None:
    with pytest.raises(InventoryError) as e:
        planned(PUBLIC + more, address="203.0.113.7")
    assert "203.0.113.7" in e.value.message
    assert "front: {tls: internal}" in e.value.hint and "http: true" in e.value.hint
    for said in ("front: {http: true}\n", "front: {tls: internal}\n"):
        assert planned(PUBLIC + said, address="203.0.113.7")[1]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("192.168.1.1", False),
        ("172.31.0.1", False),
        ("172.32.0.1", True),
        ("100.64.0.7", False),
        ("100.128.0.1", True),
        ("fd00::1", False),
        ("fe80::1", False),
        ("2001:db8::1", True),
        ("8.8.8.8", True),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_what_is_of_the_internet(address: str, public: bool) -> None:
    assert front.is_public(address) is public


# With the real Caddy.


@pytest.fixture(scope="module")
def caddy() -> Path:
    """Caddy, as a deploy installs it, in the user's cache."""
    native = ROOT / "templates/native"
    command = [sys.executable, native / "provision.py", "--lock", native / "caddy.lock", "--name", "caddy"]
    done = subprocess.run([*command, "--into", CACHE / "native"], capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "directory" in answer, answer
    return Path(answer["directory"]).absolute() / "bin/caddy"


class Backend(ThreadingHTTPServer):
    """Answers everything, and streams to whoever posts."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Answers)
        self.completed = self.broken_off = 0
        self.bodies: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        said = f"{self.server.server_port} {self.path}".encode()
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_POST(self) -> None:
        try:
            self.server.bodies.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(20):
                piece = f"data: {self.server.server_port} {i}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                time.sleep(0.1)
            self.wfile.write(b"0\r\n\r\n")
            self.server.completed += 1
        except OSError:
            self.server.broken_off += 1
            self.close_connection = True


class Before:
    """A front, as a native deploy writes it, before a backend."""

    def __init__(self, folder: Path, caddy: Path, asks: Front, address: str = "127.0.0.1") -> None:
        self.port, self.backend, self.caddy = free_port(), Backend(), caddy
        self.folder = folder / "front/0123456789ab"
        self.folder.mkdir(parents=True)
        (folder / "front/upstream").mkdir()
        self.upstream = folder / "front/upstream" / front.UPSTREAM_FILE
        self.send_to(self.backend.server_port)
        settings = front.settings(asks, address, self.port, in_container=False, loopback=True)
        (self.folder / "Caddyfile").write_text(render_template("Caddyfile.j2", **settings))
        self.log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            [caddy, "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
            cwd=self.folder,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.tls = bool(asks.tls)
        until = time.monotonic() + 30
        while True:
            with socket.socket() as s:
                if s.connect_ex((address, self.port)) == 0:
                    break
            assert time.monotonic() < until and self.process.poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def send_to(self, port: int) -> None:
        self.upstream.write_text(f"to 127.0.0.1:{port}\n")

    def reload(self) -> None:
        subprocess.run(
            [
                self.caddy,
                "reload",
                "--adapter",
                "caddyfile",
                "--config",
                "Caddyfile",
                "--address",
                front.ADMIN,
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        try:
            connection.request(method, path, body, {**headers})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.backend.close()


@pytest.fixture
def before(tmp_path: Path, caddy: Path) -> Iterator[Before]:
    made = Before(tmp_path, caddy, Front(body_limit=2 * 1024**2))
    yield made
    made.close()


@pytest.mark.native
def test_models_are_let_through_and_every_page_of_litellm_is_closed(
    before: Before,
    litellm_python: Path,
    tmp_path: Path,
) -> None:
    told = {**gateway.ENVIRONMENT, "HOME": str(tmp_path), "LITELLM_DISABLE_LAZY_ROUTES": "True"}
    told["LITELLM_MASTER_KEY"] = "sk-x"
    done = subprocess.run(
        [litellm_python, "-c", LIST_PAGES], capture_output=True, text=True, env=told, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pages = sorted({*json.loads(done.stdout.splitlines()[-1]), *OPEN_PAGES, "/", "/ui/"})
    assert len(pages) > 300
    through = set()
    for page in pages:
        path = page.replace("{", "").replace("}", "")
        code, _, body = before.request("GET", path)
        assert (code, b"answers for models only" in body) in ((200, False), (404, True)), page
        if code == 200:
            through.add(page)
    assert through == {
        page
        for page in pages
        if page.startswith(("/models", "/v1/models", "/v1beta/models"))
        or page in ("/health/liveliness", "/metrics", "/metrics/")  # which no key of a person opens
    }
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "POST"):
        assert before.request(method, "/v1/models")[0] == 404


@pytest.mark.native
@pytest.mark.parametrize(
    "path",
    [
        "/v1/../ui/",
        "/ui/../v1/models",
        "//v1/models",
        "/v1/models/../../ui",
        "/v1/models%2f..%2f..%2fui",
        "/v1/models/%2e%2e/%2e%2e/ui",
        "/V1/models",
        "/v1/models?/ui",
    ],
)
def test_no_path_is_one_thing_to_the_front_and_another_to_the_gateway(before: Before, path: str) -> None:
    code, _, _ = before.request("GET", path)
    assert code == (200 if "?" in path else 404)


@pytest.mark.native
def test_a_body_over_the_limit_is_refused_and_the_gateway_never_has_it(before: Before) -> None:
    large = b"x" * (3 * 1024**2)
    code, _, body = before.request("POST", "/v1/chat/completions", large)
    assert (code, b"body_limit" in body) == (413, True)
    assert before.backend.bodies in ([], [2 * 1024**2]) or max(before.backend.bodies) <= 2 * 1024**2
    assert before.request("POST", "/v1/chat/completions", b"x" * 1024**2)[0] == 200


@pytest.mark.native
def test_no_web_page_may_read_what_it_answers(before: Before) -> None:
    _, headers, _ = before.request("GET", "/v1/models", Origin="http://evil.example")
    assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.native
def test_a_stream_comes_as_it_is_made_and_outlives_the_change_of_its_gateway(before: Before) -> None:
    other = Backend()
    connection = http.client.HTTPConnection("127.0.0.1", before.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", b"x")
    response = connection.getresponse()
    begun = time.monotonic()
    assert response.readline() == f"data: {before.backend.server_port} 0\n".encode()
    assert time.monotonic() - begun < 1  # of the 2 s that all of it takes
    before.send_to(other.server_port)
    before.reload()
    assert before.request("GET", "/v1/models")[2].startswith(str(other.server_port).encode())
    rest = response.read()
    assert rest.rstrip().endswith(f"{before.backend.server_port} 19".encode())
    connection.close()
    other.close()


@pytest.mark.native
def test_who_goes_away_is_not_answered_further(before: Before) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", before.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", b"x")
    connection.getresponse().readline()
    connection.close()
    until = time.monotonic() + 10
    while not before.backend.broken_off:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert before.backend.completed == 0


@pytest.mark.native
def test_what_comes_while_the_gateway_starts_waits_for_it(before: Before) -> None:
    port = before.backend.server_port
    before.backend.close()
    answers: list[tuple[int, Any, bytes]] = []
    asking = threading.Thread(target=lambda: answers.append(before.request("GET", "/v1/models")))
    asking.start()
    time.sleep(1)
    before.backend = Backend(port)
    asking.join(20)
    assert answers[0][0] == 200


@pytest.mark.native
def test_strangers_networks_are_turned_away_and_the_machine_itself_never(tmp_path: Path, caddy: Path) -> None:
    made = Before(tmp_path, caddy, Front(allow=("192.0.2.0/24",)))
    try:
        assert made.request("GET", "/v1/models")[0] == 200
    finally:
        made.close()
    # Linux answers on all of 127/8; only this one address of it is no stranger here.
    folder = tmp_path / "two"
    folder.mkdir()
    settings = front.settings(
        Front(allow=("192.0.2.0/24",)), "192.168.1.10", 4000, in_container=False, loopback=False
    )
    text = render_template("Caddyfile.j2", **settings)
    assert "@stranger not remote_ip 127.0.0.0/8 ::1 192.168.1.10 192.0.2.0/24" in text
    narrowed = text.replace("127.0.0.0/8 ::1 192.168.1.10 192.0.2.0/24", "127.0.0.2/32")
    port = free_port()
    (folder / "upstream").mkdir()
    (folder / "upstream" / front.UPSTREAM_FILE).write_text("to 127.0.0.1:1\n")
    (folder / "front").mkdir()
    (folder / "front/Caddyfile").write_text(
        narrowed.replace(":4000", f":{port}").replace("bind 192.168.1.10", "bind 127.0.0.1")
    )
    process = subprocess.Popen(
        [caddy, "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
        cwd=folder / "front",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 20
        while True:
            try:
                code = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5, trust_env=False).status_code
                break
            except httpx.ConnectError:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert code == 403
    finally:
        process.kill()
        process.wait()


@pytest.mark.native
def test_its_own_authority_signs_for_the_address_and_the_names(tmp_path: Path, caddy: Path) -> None:
    made = Before(tmp_path, caddy, Front(tls="internal", hostnames=("gateway.lan",)))
    try:
        root = tmp_path / "front/data/pki/authorities/local/root.crt"
        until = time.monotonic() + 20
        while not root.exists():
            assert time.monotonic() < until, made.said()
            time.sleep(0.05)
        trusted = ssl.create_default_context(cafile=str(root))
        while True:
            try:
                assert (
                    httpx.get(f"https://127.0.0.1:{made.port}/v1/models", verify=trusted).status_code == 200
                )
                break
            except httpx.ConnectError:  # it signs a moment after it listens
                assert time.monotonic() < until, made.said()
                time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", made.port)) as plain:
            with trusted.wrap_socket(plain, server_hostname="gateway.lan") as named:
                assert named.version() in ("TLSv1.2", "TLSv1.3")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{made.port}/v1/models")
        elsewhere = httpx.get(
            f"https://127.0.0.1:{made.port}/v1/models", verify=trusted, headers={"Host": "evil.example"}
        )
        assert elsewhere.status_code == 421
    finally:
        made.close()


# A household without Docker, with real LiteLLM and llama.cpp.


class Steady:
    """Streams and requests of several clients, one after the other, until it is told to end."""

    def __init__(self, url: str, key: str, clients: int = 4) -> None:
        self.url, self.key, self.over = url, key, threading.Event()
        self.ok, self.wrong, self.again = 0, list[str](), list[str]()
        self.threads = [threading.Thread(target=self._client, args=(n % 2 == 0,)) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def _client(self, stream: bool) -> None:
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Count to fifty."}],
            "max_tokens": 32 if stream else 4,
            "stream": stream,
        }
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(timeout=300, trust_env=False) as client:
            while not self.over.is_set():
                began = False
                try:
                    with client.stream(
                        "POST", f"{self.url}/v1/chat/completions", json=body, headers=headers
                    ) as answer:
                        began = True
                        answer.read()
                except httpx.ReadError as e:
                    # Made, and not yet taken when Caddy's old listener went (docs/gateway.md).
                    (self.wrong if began else self.again).append(repr(e))
                    continue
                except httpx.HTTPError as e:
                    self.wrong.append(repr(e))
                    continue
                if answer.status_code >= 500:
                    self.again.append(f"{answer.status_code} {answer.text[-300:]}")
                    continue
                whole = "[DONE]" in answer.text if stream else answer.status_code == 200
                if answer.status_code == 200 and whole:
                    self.ok += 1
                else:
                    self.wrong.append(f"{answer.status_code} {answer.text[-300:]}")

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def quiet_port() -> int:
    """One that nobody has, nor the next ones, and where no connection begins (ip_local_port_range)."""
    for port in random.sample(range(20_000, 30_000), 1000):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for offset in range(4):
                held.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return port
    raise AssertionError("no ports are free")


class Household:
    """A fresh home with the inventory of the example and a front."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, quiet_port()
        cache_in(home)
        subprocess.run([sys.executable, ROOT / "examples/fetch-smollm2"], check=True, capture_output=True)
        text = (ROOT / "examples/this-machine.yml").read_text().replace("port: 4000", f"port: {self.port}")
        text = text.replace("    concurrency: 2", f"    concurrency: 2\n    port: {free_port()}")
        self.text = text.replace("cluster: this-machine", "cluster: front-test") + "front: {}\n"
        self.write(self.text)

    def write(self, text: str) -> None:
        (self.home / "inventory.yml").write_text(text)

    def start(self, *words: str, program: Path = ROOT) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "homelab", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env=environment(self.home) | {"PYTHONPATH": str(program)},
        )

    def run(self, *words: str, program: Path = ROOT) -> tuple[int, str]:
        process = self.start(*words, program=program)
        said = process.communicate(timeout=600)[0]
        assert "Traceback" not in said or program != ROOT, said
        return process.returncode, said

    def gateways(self) -> list[str]:
        """The revisions of the gateway whose process lives."""
        folder = self.home / ".local/share/homelab/front-test/gateway"
        found = []
        for state in folder.glob("*/state.json"):
            pid = json.loads(state.read_text()).get("pid")
            if pid and Path(f"/proc/{pid}").exists():
                found.append(state.parent.name)
        return sorted(found)


@pytest.mark.native
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nobody_notices_when_the_gateway_is_replaced(libgomp: None, tmp_path: Path) -> None:
    house = Household(tmp_path)
    try:
        code, said = house.run("deploy", "--yes")
        assert code == 0, said
        key = (tmp_path / ".local/state/homelab/front-test/gateway.key").read_text().strip()
        url = f"http://127.0.0.1:{house.port}"
        [first] = house.gateways()
        steady = Steady(url, key)
        try:
            house.write(house.text + "aliases: {coder: smollm2}\n")
            code, said = house.run("deploy", "--yes")
            assert code == 0, said
            [second] = house.gateways()
            assert second != first
            listed = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).text
            assert "coder" in listed

            # Killed in the middle: the old one answers on, and the next deploy goes on from there.
            house.write(house.text + "aliases: {fast: smollm2}\n")
            killed = house.start("deploy", "--yes")
            until = time.monotonic() + 60
            while len(house.gateways()) < 2:
                assert time.monotonic() < until and killed.poll() is None
                time.sleep(0.1)
            killed.send_signal(signal.SIGKILL)
            killed.communicate()
            code, said = house.run("deploy", "--yes")
            assert code == 0, said
            [third] = house.gateways()
            assert third != second

            # A new one that does not come up.
            broken = tmp_path / "broken"
            for folder in ("homelab", "agent", "templates"):
                shutil.copytree(ROOT / folder, broken / folder, ignore=shutil.ignore_patterns("__pycache__"))
            auth = broken / "templates/homelab_auth.py"
            auth.write_text(auth.read_text() + "\nraise RuntimeError('broken on purpose')\n")
            code, said = house.run("deploy", "--yes", "--upgrade", program=broken)
            assert code == 1 and "broken on purpose" in said, said
            assert house.gateways() == [third]
        finally:
            steady.end()
        assert steady.wrong == []
        assert len(steady.again) <= 4 < steady.ok, steady.again  # what SDKs try again by themselves

        # Started again where it is: what comes meanwhile waits.
        restarting = house.start("restart", "gateway", "--yes")
        answered = 0
        while restarting.poll() is None:
            models = httpx.get(
                f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False
            )
            assert models.status_code == 200
            answered += 1
        assert restarting.returncode == 0 and answered, restarting.communicate()
        restarting.communicate()
    finally:
        house.run("remove", "--yes")
    assert house.gateways() == []
    assert not (tmp_path / ".local/share/homelab").exists()
