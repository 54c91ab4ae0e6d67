"""The least that asking machines over SSH can cost: connect to all at once, run one python3 command on each.

bare_asyncssh.py IDENTITY USER@HOST:PORT ..."""

import asyncio
import sys

import asyncssh


async def one(target: str, identity: str) -> str:
    user, _, place = target.partition("@")
    host, _, port = place.partition(":")
    async with asyncssh.connect(host, int(port), username=user, client_keys=[identity]) as connection:
        result = await connection.run(
            "python3 -I -c 'import json, platform; print(json.dumps(platform.uname()))'", check=True
        )
        return str(result.stdout)


async def main(identity: str, targets: list[str]) -> None:
    print(*await asyncio.gather(*(one(t, identity) for t in targets)), sep="")


asyncio.run(main(sys.argv[1], sys.argv[2:]))
