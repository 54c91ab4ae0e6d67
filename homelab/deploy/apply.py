"""The order of a deploy: make room, bring what is needed, start engines one after the other on each device,
the gateway last, clean up."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence

from homelab.deploy import compose, native
from homelab.deploy.events import Event, Outcome, Tell
from homelab.errors import DeployError, HomelabError, NodeError
from homelab.facts import DeployedService
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.nodes.session import Session
from homelab.plan import Change, Plan
from homelab.program import PythonEnvironment, image_of
from homelab.runtimes.native import tool_files
from homelab.secrets import Secrets
from homelab.service import File, Role, Service, cluster_directory

RUNTIMES = {"docker": compose, "native": native}
SECRETS_FILE = "secrets.json"


async def deploy(inventory: Inventory, plan: Plan, secrets: Secrets, tell: Tell) -> Outcome:
    """Carry out every change of the plan. A failure on one service or node stops nothing elsewhere; the
    gateway is changed last.

    A service that cannot be started is taken away again and the one that it replaced is started in its
    place."""
    done: list[tuple[str, str]] = []
    failed: list[HomelabError] = []

    async def on(node: str, changes: Sequence[Change]) -> None:
        try:
            async with connect(node, inventory.nodes[node]) as session:
                await _Node(inventory, session, secrets, tell, done, failed).carry_out(changes)
        except NodeError as e:
            failed.append(e)
            tell(Event(node=node, service="", step="failed", error=e))

    for wave in waves(plan.todo):
        nodes = sorted({c.node for c in wave})
        await asyncio.gather(*(on(n, [c for c in wave if c.node == n]) for n in nodes))
    return Outcome(done=tuple(sorted(done)), failed=tuple(failed))


def waves(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes in the order of their roles: each when all that it comes `after` is done, removals first."""
    roles = {c.wanted.role for c in changes if c.wanted is not None}

    def depth(role: Role, after: Mapping[Role, tuple[Role, ...]]) -> int:
        return 1 + max((depth(r, after) for r in after.get(role, ()) if r in roles), default=-1)

    after = {c.wanted.role: c.wanted.unit.after for c in changes if c.wanted is not None}
    groups: dict[int, list[Change]] = {}
    for change in changes:
        groups.setdefault(depth(change.wanted.role, after) if change.wanted else 0, []).append(change)
    return [groups[number] for number in sorted(groups)]


def lanes(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes that share a device, together: they start strictly one after the other, and make room for
    each other first."""
    groups: list[tuple[set[str], list[Change]]] = []
    for change in changes:
        assert change.wanted is not None
        devices = set(change.wanted.unit.gpus) or {"ram"}
        for old in change.actual:
            devices |= {u for u in old.labels.get("homelab.gpus", "").split(",") if u}
        together = [lane for lane in groups if lane[0] & devices]
        merged = (
            devices.union(*(lane[0] for lane in together)),
            [c for lane in together for c in lane[1]] + [change],
        )
        groups = [lane for lane in groups if lane not in together] + [merged]
    return [lane[1] for lane in groups]


class _Node:
    """One node's share of a deploy."""

    def __init__(
        self,
        inventory: Inventory,
        session: Session,
        secrets: Secrets,
        tell: Tell,
        done: list[tuple[str, str]],
        failed: list[HomelabError],
    ) -> None:
        self.inventory, self.session, self.secrets, self.tell, self.done, self.failed = (
            inventory,
            session,
            secrets,
            tell,
            done,
            failed,
        )
        self.missing: set[str] = set()

    async def carry_out(self, changes: Sequence[Change]) -> None:
        runtimes = {s.runtime for c in changes for s in c.actual} | {
            c.wanted.runtime for c in changes if c.wanted
        }
        if "native" in runtimes:
            # What runs may have been started by the supervisor of another release; this one's works on it.
            await self.session.put(tool_files())
        for change in changes:
            if change.action == "remove":
                await self._guarded(change, self._remove(change))
        ready = []
        for change in changes:
            if change.wanted is not None and await self._guarded(
                change, self._prepare(change, change.wanted)
            ):
                ready.append(change)
        for lane in lanes(ready):
            for change in lane:
                for old in change.actual:
                    if change.action == "replace" and old.state in ("running", "starting", "unhealthy"):
                        self._say(change, "stop", change.reason)
                        await self._guarded(change, RUNTIMES[old.runtime].stop(self.session, old))
            for change in lane:
                assert change.wanted is not None
                await self._guarded(change, self._start(change, change.wanted))

    async def _guarded(self, change: Change, work: object) -> bool:
        """Run one step; a failure is told and kept, and the next service goes on."""
        try:
            await work  # type: ignore[misc]
        except NodeError:
            raise
        except HomelabError as e:
            self.failed.append(e)
            self.tell(Event(node=change.node, service=change.service, step="failed", error=e))
            return False
        return True

    def _say(self, change: Change, step: str, text: str = "") -> None:
        self.tell(Event(node=change.node, service=change.service, step=step, text=text))  # type: ignore[arg-type]

    async def _prepare(self, change: Change, service: Service) -> None:
        if change.blocked:
            raise DeployError(
                f"`{service.name}` cannot be deployed on node `{service.node}`",
                cause=change.blocked,
                hint="homelab plan",
            )
        files = list(service.files)
        if service.role == "gateway":
            # A second controller reads the keys back from here.
            files.append(
                File(
                    path=f"{cluster_directory(self.inventory.cluster)}/{SECRETS_FILE}",
                    content=self.secrets.to_json(),
                    mode=0o600,
                )
            )
        await self.session.put(files)
        for upload in service.unit.uploads:
            there = await self.session.run(
                f"stat -c %s {shlex.quote(upload.path)} 2>/dev/null || stat -f %z {shlex.quote(upload.path)}"
            )
            if there.text.strip() == str(upload.bytes):
                continue
            moved = 0

            def progress(count: int, total: int = upload.bytes) -> None:
                nonlocal moved
                moved += count
                self._say(change, "copy", f"{moved / 2**30:.2f} of {total / 2**30:.2f} GiB")

            self._say(change, "copy", upload.local)
            await self.session.upload(upload.local, upload.path, progress)
        await self._fetch(service)

    async def _fetch(self, service: Service) -> None:
        """Bring the image or environment that several services may share: what cannot be had is asked for
        once."""
        if service.already:
            return
        program = service.unit.program
        what = program.name if isinstance(program, PythonEnvironment) else image_of(program) or ""
        if what in self.missing:
            raise DeployError(
                f"`{service.name}` cannot be deployed on node `{service.node}`",
                cause=f"{what}: see above",
                hint="homelab plan",
            )
        try:
            await RUNTIMES[service.runtime].fetch(self.session, service, self.tell)
        except DeployError:
            self.missing.add(what)
            raise

    async def _start(self, change: Change, service: Service) -> None:
        runtime = RUNTIMES[service.runtime]
        self._say(change, "start")
        try:
            loading = any(old.spec == service.spec and old.state == "starting" for old in change.actual)
            await runtime.start(self.session, service, again=change.action == "restart" and not loading)
            await runtime.wait_healthy(self.session, service, self.tell)
        except DeployError as e:
            await self._take_back(change, service)
            raise e
        self._say(change, "healthy")
        for old in change.actual:
            if old.spec != service.spec:
                await self._drop(old)
        self.done.append((change.node, change.service))

    async def _take_back(self, change: Change, service: Service) -> None:
        """Undo a failed replacement; leave a failed newcomer stopped, so that it can be looked at and holds
        no memory."""
        mine = DeployedService(
            cluster=self.inventory.cluster,
            name=service.name,
            role=service.role,
            spec=service.spec,
            runtime="docker" if service.runtime == "docker" else "native",
            state="stopped",
            project=service.project,
            directory=service.directory,
        )
        before = next(
            (
                s
                for s in change.actual
                if s.spec != service.spec and s.state in ("running", "starting", "unhealthy")
            ),
            None,
        )
        if before is None:
            await RUNTIMES[mine.runtime].stop(self.session, mine)
            return
        await self._drop(mine)
        await RUNTIMES[before.runtime].resume(self.session, before)
        self._say(change, "rolled-back", f"`{service.name}` runs again as it was before")

    async def _remove(self, change: Change) -> None:
        for old in change.actual:
            await self._drop(old)
        self._say(change, "removed", change.reason)
        self.done.append((change.node, change.service))

    async def _drop(self, old: DeployedService) -> None:
        await drop(self.session, self.inventory.cluster, old)


async def drop(session: Session, cluster: str, old: DeployedService) -> None:
    """Stop a service for good and remove its files. Nothing outside the cluster's own folder is ever
    removed."""
    await RUNTIMES[old.runtime].remove(session, old)
    directory = f"{cluster_directory(cluster)}/{old.name}"
    await session.run(
        f"rm -rf -- {shlex.quote(f'{directory}/{old.spec}')}; rmdir -- "
        f"{shlex.quote(directory)} 2>/dev/null; true"
    )
