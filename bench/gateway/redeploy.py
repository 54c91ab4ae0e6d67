"""What clients notice when the gateway is replaced:
python bench/gateway/redeploy.py [--clients 6] [--rounds 2]

One machine without Docker, real llama.cpp and LiteLLM, one household with a front and one without. Half of
the clients stream, half wait for short answers, each one request after the other; meanwhile `homelab deploy`
replaces the gateway. Refused: no connection, or an error status. Cut: an answer that began and did not
end."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.test_native_household import CACHE, environment, free_port  # noqa: E402

BEFORE_SECONDS = AFTER_SECONDS = 10


@dataclass
class Count:
    answered: int = 0
    refused: int = 0
    cut: int = 0
    slowest_seconds: float = 0.0
    without_answer_seconds: float = 0.0
    deploy_seconds: float = 0.0
    why: list[str] = field(default_factory=list)


class Load:
    def __init__(self, url: str, key: str, clients: int) -> None:
        self.url, self.key, self.clients = url, key, clients
        self.count, self.over, self.last_begun = Count(), asyncio.Event(), time.monotonic()

    async def run(self) -> None:
        await asyncio.gather(*(self._client(n % 2 == 0) for n in range(self.clients)))

    async def _client(self, stream: bool) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(timeout=300, trust_env=False, headers=headers) as client:
            while not self.over.is_set():
                begun = time.monotonic()
                refused = self.count.refused
                await self._one(client, stream)
                self.count.slowest_seconds = max(self.count.slowest_seconds, time.monotonic() - begun)
                if self.count.refused > refused:
                    await asyncio.sleep(0.2)

    async def _one(self, client: httpx.AsyncClient, stream: bool) -> None:
        body: dict[str, Any] = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Count to fifty."}],
            "max_tokens": 64 if stream else 4,
            "stream": stream,
        }
        end, status = b"", 0
        try:
            async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                status = response.status_code
                async for part in response.aiter_bytes():
                    end = (end + part)[-300:]
        except httpx.HTTPError as e:
            self._wrong("cut" if status == 200 else "refused", repr(e))
            return
        if status != 200:
            self._wrong("refused", f"{status} {end.decode(errors='replace')}")
        elif stream and b"[DONE]" not in end:
            self._wrong("cut", end.decode(errors="replace"))
        else:
            self.count.answered += 1
            now = time.monotonic()
            self.count.without_answer_seconds = max(self.count.without_answer_seconds, now - self.last_begun)
            self.last_begun = now

    def _wrong(self, what: str, why: str) -> None:
        setattr(self.count, what, getattr(self.count, what) + 1)
        if len(self.count.why) < 3:
            self.count.why.append(why[:200])


class House:
    def __init__(self, home: Path, front: bool) -> None:
        self.home, self.port = home, free_port()
        home.mkdir()
        (home / ".cache").mkdir()
        (home / ".cache/homelab").symlink_to(CACHE)
        text = (ROOT / "examples/this-machine.yml").read_text().replace("port: 4000", f"port: {self.port}")
        text = text.replace("    concurrency: 2", f"    concurrency: 4\n    port: {free_port()}")
        name = "bench-front" if front else "bench-plain"
        self.cluster, self.rounds = name, 0
        self.text = text.replace("cluster: this-machine", f"cluster: {name}")
        self.text += "front: {}\n" if front else ""
        self.homelab()

    def homelab(self) -> None:
        more = f"aliases: {{name-{self.rounds}: smollm2}}\n"
        (self.home / "inventory.yml").write_text(self.text + more)
        self.rounds += 1
        self._run("deploy", "--yes")

    def _run(self, *words: str) -> None:
        command = [sys.executable, "-m", "homelab", *words]
        env = environment(self.home) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=self.home, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)

    def remove(self) -> None:
        self._run("remove", "--yes")

    @property
    def key(self) -> str:
        return (self.home / f".local/state/homelab/{self.cluster}/gateway.key").read_text().strip()


async def measured(house: House, clients: int) -> Count:
    load = Load(f"http://127.0.0.1:{house.port}", house.key, clients)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(BEFORE_SECONDS)
    begun = time.monotonic()
    await asyncio.to_thread(house.homelab)
    load.count.deploy_seconds = time.monotonic() - begun
    await asyncio.sleep(AFTER_SECONDS)
    load.over.set()
    await running
    return load.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    subprocess.run([sys.executable, ROOT / "examples/fetch-smollm2"], check=True, capture_output=True)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        for front in (True, False):
            house = House(Path(folder) / ("front" if front else "plain"), front)
            try:
                for _ in range(asked.rounds):
                    count = asyncio.run(measured(house, asked.clients))
                    print(
                        "behind the front" if front else "plain restart",
                        json.dumps(asdict(count)),
                        flush=True,
                    )
            finally:
                house.remove()


if __name__ == "__main__":
    main()
