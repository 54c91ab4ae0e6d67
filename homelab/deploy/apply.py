"""The order of a deploy: make room, bring what is needed, start engines one after the other on each device,
the gateway last, clean up."""

from __future__ import annotations

import asyncio
import posixpath
import shlex
import time
from collections.abc import Awaitable, Callable, Sequence

from homelab import front, keys
from homelab.deploy import compose, native, switch
from homelab.deploy.events import Clock, Event, Outcome, Step, Tell, Took
from homelab.deploy.order import Settlement, lanes, settle, turns, waves
from homelab.deploy.trial import try_out
from homelab.endpoints import is_behind
from homelab.errors import DeployError, HomelabError, NodeError
from homelab.facts import DeployedService
from homelab.inventory import Inventory
from homelab.nodes import connect
from homelab.nodes.session import Session
from homelab.plan import ALIVE, Change, Place, Plan, devices_of
from homelab.program import PythonEnvironment, image_of
from homelab.runtimes.native import tool_files
from homelab.secrets import Secrets
from homelab.service import File, Service, cluster_directory, revision_folder

RUNTIMES = {"docker": compose, "native": native}
SECRETS_FILE = "secrets.json"
# What keeps one service from being deployed, and says nothing about the next one on that node.
OF_ONE_SERVICE = ("write", "read")


async def deploy(inventory: Inventory, plan: Plan, secrets: Secrets, tell: Tell) -> Outcome:
    """Carry out every change of the plan. A failure on one service or node stops nothing elsewhere.

    A service that cannot be started is taken away again and the one that it replaced is started in its
    place. What moves is at its new place, and known to the gateway, before the old one goes."""
    return await _Deploy(inventory, plan, secrets, tell).run()


class _Deploy:
    """One deploy, all nodes."""

    def __init__(self, inventory: Inventory, plan: Plan, secrets: Secrets, tell: Tell) -> None:
        self.inventory, self.plan, self.secrets, self._tell = inventory, plan, secrets, tell
        self.clocks: dict[Place, Clock] = {}
        self.took: dict[Place, Took] = {}
        self.tried: set[Place] = set()
        self.done: set[Place] = set()
        self.failed: list[HomelabError] = []
        # What leaves and was stopped to make room, with those of its containers or processes that ran.
        self.stopped: dict[Place, tuple[DeployedService, ...]] = {}
        # Gateways of before, by their node, that hold the port of a front that is yet to come.
        self.gives_way: dict[str, tuple[DeployedService, ...]] = {}

    def tell(self, event: Event) -> None:
        """Pass an event on; what is told of a service is how its time is known."""
        clock = self.clocks.setdefault((event.node, event.service), Clock())
        clock.told(event.step, time.monotonic())
        self._tell(event)

    async def run(self) -> Outcome:
        leaving = [c for c in self.plan.todo if c.leaves_for is not None]
        for wave in waves(self.plan.todo):
            for turn in turns(wave):
                changes = [c for c in turn if self._goes_on(c)]
                room = [c for c in leaving if c.first and c.place not in self.stopped] if changes else []
                room = [
                    c
                    for c in room
                    if any(x.node == c.node and devices_of(x) & devices_of(c) for x in changes)
                ]
                await self._on_nodes([*changes, *room], lambda node, mine: node.carry_out(mine))
            # What could not move goes on at its old place at once, before anything else is tried.
            await self._put_back(settle(self.plan.todo, self.done, self.stopped, gateway=True))
        settlement = settle(self.plan.todo, self.done, self.stopped, gateway=self._gateway_knows())
        await self._put_back(settlement)
        await self._on_nodes(settlement.drop, lambda node, mine: node.leave(mine))
        return Outcome(done=tuple(sorted(self.done)), failed=tuple(self.failed), took=self.took)

    def _goes_on(self, change: Change) -> bool:
        """Whether a change is still to be tried after what has failed; what is not is said."""
        wanted = change.wanted
        if wanted is not None and wanted.role == "front" and not self.gateway_behind(change.node):
            self._fail(change, "the gateway that it stands before could not be started")
            return False
        if change.action == "replace" and wanted is not None:
            mine = set(wanted.unit.serves)
            lost = [c for c in self._failed_engines() if wanted.role == "gateway" and c.action == "move"]
            if lost:
                names = ", ".join(f"`{c.service}`" for c in lost)
                self._fail(
                    change, f"{names} could not move, and is found where it was through the gateway as it is"
                )
                return False
            replicas = [c for c in self._failed_engines() if c.wanted and mine & set(c.wanted.unit.serves)]
            if wanted.role == "engine" and replicas:
                self._fail(change, f"its replica on `{replicas[0].node}` failed: this one is left as it is")
                return False
        self.tried.add(change.place)
        return True

    def gateway_behind(self, node: str) -> Service | None:
        """The gateway that a front on a node should send to, as far as it is known to answer."""
        for change in self.plan.changes:
            wanted = change.wanted
            if change.node == node and wanted is not None and wanted.unit.behind_front:
                return wanted if change.action == "keep" or change.place in self.done else None
        return None

    def fronts(self, node: str) -> tuple[DeployedService, ...]:
        """The fronts that run on a node."""
        there = [c for c in self.plan.changes if c.place == (node, front.SERVICE)]
        return tuple(s for c in there for s in c.actual if s.state in ALIVE)

    def _failed_engines(self) -> list[Change]:
        tried = [c for c in self.plan.todo if c.wanted is not None and c.wanted.role == "engine"]
        return [c for c in tried if c.place in self.tried - self.done]

    def _gateway_knows(self) -> bool:
        """Whether clients find the new places: the gateway was told, or had nothing to be told."""
        told = [c for c in self.plan.todo if c.wanted is not None and c.wanted.role == "gateway"]
        return all(c.place in self.done for c in told)

    def _fail(self, change: Change, why: str) -> None:
        e = DeployError(
            f"`{change.service}` on node `{change.node}` was not changed", cause=why, hint="homelab deploy"
        )
        self.failed.append(e)
        self.tell(Event(node=change.node, service=change.service, step="failed", error=e))

    async def _put_back(self, settlement: Settlement) -> None:
        """Undo what has come in the place of something that has to go on, and let that go on."""
        await self._on_nodes(settlement.undo, lambda node, mine: node.undo(mine))
        await self._on_nodes(settlement.resume, lambda node, mine: node.put_back(mine))

    async def _on_nodes(
        self, changes: Sequence[Change], work: Callable[[_Node, Sequence[Change]], Awaitable[None]]
    ) -> None:
        async def on(name: str, mine: Sequence[Change]) -> None:
            try:
                async with connect(name, self.inventory.nodes[name]) as session:
                    await work(_Node(self, session), mine)
            except NodeError as e:
                self.failed.append(e)
                self.tell(Event(node=name, service="", step="failed", error=e))

        # Where all of it is cancelled, the group waits until each has ended what it had begun.
        async with asyncio.TaskGroup() as group:
            for name in sorted({c.node for c in changes}):
                group.create_task(on(name, [c for c in changes if c.node == name]))


class _Node:
    """One node's share of a deploy."""

    def __init__(self, deploy: _Deploy, session: Session) -> None:
        self.deploy, self.session, self.tell = deploy, session, deploy.tell
        self.inventory = deploy.inventory
        self.missing: set[str] = set()

    async def carry_out(self, changes: Sequence[Change]) -> None:
        """Remove, make room, bring what is needed, start. Those among the changes that leave for another
        place are only stopped."""
        await self._bring_tools(changes)
        leaving = [c for c in changes if c.leaves_for is not None]
        for change in changes:
            if change.action == "remove" and change not in leaving:
                await self._guarded(change, self._remove(change))
        ready = []
        for change in changes:
            if change.wanted is not None and await self._guarded(
                change, self._prepare(change, change.wanted)
            ):
                if change.place in self.deploy.clocks:
                    self._say(change, "wait")
                ready.append(change)
        for lane in lanes(ready):
            devices = set[str]().union(*(devices_of(c) for c in lane))
            for change in leaving:
                if devices_of(change) & devices and change.place not in self.deploy.stopped:
                    await self._guarded(change, self._make_room(change))
            stopped = [c for c in lane if await self._guarded(c, self._stop_old(c))]
            for change in stopped:
                assert change.wanted is not None
                await self._guarded(change, self._start(change, change.wanted))

    async def leave(self, changes: Sequence[Change]) -> None:
        """Take away what has moved."""
        await self._bring_tools(changes)
        for change in changes:
            await self._guarded(change, self._remove(change))

    async def put_back(self, changes: Sequence[Change]) -> None:
        """Start again what was stopped to make room."""
        await self._bring_tools(changes)
        for change in changes:
            await self._guarded(change, self._resume(change))

    async def undo(self, changes: Sequence[Change]) -> None:
        """Take away what has come in the place of something that has to go on."""
        await self._bring_tools(changes)
        for change in changes:
            assert change.wanted is not None
            self._say(change, "rolled-back", "its place is needed again for what could not move")
            await self._guarded(change, self._drop(self._deployed(change.wanted)))
            self.deploy.done.discard(change.place)
            self.deploy.took.pop(change.place, None)

    async def _bring_tools(self, changes: Sequence[Change]) -> None:
        """What runs may have been started by the supervisor of another release; this one's works on it."""
        wanted = {c.wanted.runtime for c in changes if c.wanted}
        if "native" in wanted | {s.runtime for c in changes for s in c.actual}:
            await self.session.put(tool_files())

    async def _make_room(self, change: Change) -> None:
        ran = tuple(s for s in change.actual if s.state in ALIVE)
        self._say(change, "stop", f"{change.reason}: there is no memory for both")
        for old in ran:
            await RUNTIMES[old.runtime].stop(self.session, old)
        self.deploy.stopped[change.place] = ran
        self._say(change, "wait", "stopped, goes when the other is ready")

    async def _resume(self, change: Change) -> None:
        for old in self.deploy.stopped.pop(change.place):
            await RUNTIMES[old.runtime].resume(self.session, old)
        self._say(change, "rolled-back", f"`{change.service}` runs again where it was")

    async def _stop_old(self, change: Change) -> None:
        """Stop what is replaced, and what holds a front's port. Where that fails, nothing is started beside
        it. A gateway behind a front is replaced by one beside it: it goes on."""
        wanted = change.wanted
        if wanted is not None and wanted.role == "front":
            for old in self.deploy.gives_way.get(change.node, ()):
                self._say(change, "stop", "the gateway of before leaves its port")
                await RUNTIMES[old.runtime].stop(self.session, old)
        if wanted is not None and wanted.unit.behind_front:
            return
        for old in change.actual:
            if change.action == "replace" and old.state in ALIVE:
                self._say(change, "stop", change.reason)
                await RUNTIMES[old.runtime].stop(self.session, old)
                self._say(change, "wait", "stopped, starts when its turn comes")

    async def _guarded(self, change: Change, work: object) -> bool:
        """Run one step; a failure is told and kept, and the next service goes on."""
        try:
            await work  # type: ignore[misc]
        except NodeError as e:
            if e.kind not in OF_ONE_SERVICE:
                raise
            failure: HomelabError = DeployError(e.message, cause=e.cause, hint=e.hint)
        except HomelabError as e:
            failure = e
        else:
            return True
        self.deploy.failed.append(failure)
        self.tell(Event(node=change.node, service=change.service, step="failed", error=failure))
        return False

    def _say(self, change: Change, step: Step, text: str = "") -> None:
        self.tell(Event(node=change.node, service=change.service, step=step, text=text))

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
                    content=self.deploy.secrets.to_json(),
                    mode=0o600,
                )
            )
            # Made by Docker it would be root's.
            keys_folder = shlex.quote(keys.folder(self.inventory.cluster))
            await self.session.run(f"mkdir -p {keys_folder} && chmod 700 {keys_folder}")
        behind = self.deploy.gateway_behind(change.node) if service.role == "front" else None
        if behind is not None:
            await switch.point(self.session, behind, ())
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
                self.tell(
                    Event(
                        node=change.node,
                        service=change.service,
                        step="copy",
                        text=f"{moved / 2**30:.2f} of {total / 2**30:.2f} GiB",
                        done_bytes=moved,
                        total_bytes=total,
                    )
                )

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
        loading = next((s for s in change.actual if s.spec == service.spec and s.state == "starting"), None)
        try:
            # `docker compose up` makes anew what loads, be it for a label alone.
            if loading is None:
                if change.action == "restart" and service.unit.behind_front:
                    await self._end_streams(change)
                await runtime.start(self.session, service, again=change.action == "restart")
            self._say(change, "load")
            await runtime.wait_healthy(
                self.session, service, self.tell, restarts=loading.restarts if loading else 0
            )
            await try_out(self.session, service, lambda: runtime.last_log(self.session, service), self.tell)
            if service.unit.behind_front:
                await switch.check(self.session, service)
                await switch.point(self.session, service, self.deploy.fronts(change.node))
        except DeployError:
            await self._take_back(change, service)
            raise
        if loading is None:  # since when another one loads is not known
            self.deploy.took[change.place] = self.deploy.clocks[change.place].took(time.monotonic())
        self._say(change, "healthy")
        for old in change.actual:
            if old.spec == service.spec:
                continue
            if service.unit.behind_front:
                await self._leave_to_front(change, old)
            else:
                await self._drop(old)
        for old in self.deploy.gives_way.pop(change.node, ()) if service.role == "front" else ():
            await self._drop(old)
        self.deploy.done.add(change.place)

    async def _leave_to_front(self, change: Change, old: DeployedService) -> None:
        """Take an old gateway away once its streams have ended. One that holds the port of a front which is
        not there yet answers until that one comes."""
        if old.state in ALIVE and not is_behind(old) and not self.deploy.fronts(change.node):
            self.deploy.gives_way[change.node] = (*self.deploy.gives_way.get(change.node, ()), old)
            return
        if old.state in ALIVE:
            self._say(change, "stop", "the one before ends its streams")
            await asyncio.sleep(switch.SETTLE_SECONDS)
            await RUNTIMES[old.runtime].stop(self.session, old, seconds=front.DRAIN_SECONDS)
            self._say(change, "healthy")
        await self._drop(old)

    async def _end_streams(self, change: Change) -> None:
        """What is started again in its own place gets some time for that; what comes meanwhile waits in the
        front."""
        for there in change.actual:
            if there.state in ALIVE:
                self._say(change, "stop", "it ends its streams")
                await RUNTIMES[there.runtime].stop(self.session, there, seconds=front.RESTART_DRAIN_SECONDS)

    def _deployed(self, service: Service) -> DeployedService:
        """A service of this deploy, as the runtimes know what is there."""
        return DeployedService(
            cluster=self.inventory.cluster,
            name=service.name,
            role=service.role,
            spec=service.spec,
            runtime=service.runtime,
            state="stopped",
            project=service.project,
            directory=service.directory,
            socket=service.unit.socket,
            python=service.unit.python,
        )

    async def _take_back(self, change: Change, service: Service) -> None:
        """Undo a failed replacement; leave a failed newcomer stopped, so that it can be looked at and holds
        no memory. The old one is started again whatever becomes of the new one."""
        mine = self._deployed(service)
        if service.role == "front":
            await self._give_port_back(change, mine)
        before = next((s for s in change.actual if s.spec != service.spec and s.state in ALIVE), None)
        if before is None:
            await RUNTIMES[mine.runtime].stop(self.session, mine)
            return
        if not await self._guarded(change, self._drop(mine)):  # it holds the port and the memory
            await self._guarded(change, RUNTIMES[mine.runtime].stop(self.session, mine))
        await RUNTIMES[before.runtime].resume(self.session, before)
        self._say(change, "rolled-back", f"`{service.name}` runs again as it was before")

    async def _give_port_back(self, change: Change, mine: DeployedService) -> None:
        """The gateway that had a front's port goes on where the front does not come."""
        for old in self.deploy.gives_way.pop(change.node, ()):
            await self._guarded(change, RUNTIMES[mine.runtime].stop(self.session, mine))
            await RUNTIMES[old.runtime].resume(self.session, old)
            self._say(change, "rolled-back", f"`{old.name}` runs again as it was before")

    async def _remove(self, change: Change) -> None:
        for old in change.actual:
            await self._drop(old)
        self._say(change, "removed", change.reason)
        self.deploy.done.add(change.place)

    async def _drop(self, old: DeployedService) -> None:
        await drop(self.session, self.inventory.cluster, old)


async def drop(session: Session, cluster: str, old: DeployedService) -> None:
    """Stop a service for good and remove its files. Nothing outside the cluster's own folder is ever
    removed."""
    folder = revision_folder(cluster, old.name, old.spec)
    await RUNTIMES[old.runtime].remove(session, old)
    await session.run(
        f"rm -rf -- {shlex.quote(folder)}; "
        f"rmdir -- {shlex.quote(posixpath.dirname(folder))} 2>/dev/null; true"
    )
