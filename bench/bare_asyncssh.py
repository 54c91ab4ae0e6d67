"""The least that asking several machines over SSH can cost: connect to all at once, run one python3 command
on each, print what it says."""

import asyncio
import sys

import asyncssh


async def one(host: str, identity: str) -> str:
    async with asyncssh.connect(host, username="homelab", client_keys=[identity]) as connection:
        result = await connection.run(
            "python3 -I -c 'import json, platform; print(json.dumps(platform.uname()))'", check=True
        )
        return str(result.stdout)


async def main(identity: str, hosts: list[str]) -> None:
    print(*await asyncio.gather(*(one(h, identity) for h in hosts)), sep="")


asyncio.run(main(sys.argv[1], sys.argv[2:]))
