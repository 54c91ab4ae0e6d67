#!/usr/bin/env python3
"""Keeps one native service running where neither systemd nor launchd does it.

    python3 supervise.py start DIR | stop DIR [--timeout 15] | status DIR

DIR holds service.json (argv, environment_file, working_directory, memory_limit_bytes, address, port,
stop_seconds); this program adds log, log.1, state.json and lock.
Every verb prints one JSON document. Python 3.8 or newer, standard library only, Linux and macOS.
"""

import argparse
import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List, NoReturn, Optional

BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before restart 1, 2, …; the last one repeats
HEALTHY_AFTER = 60.0  # a run of this length starts the backoff anew
QUICK_EXIT = 10.0
PORT_WAIT = 1.0  # for what was just killed to let go of its port
QUICK_EXITS = 5  # so many quick exits in a row and the service has failed
LOG_BYTES = 10 * 1024 * 1024
LOG_CHECK = 5.0
LAST_RESORT = 90.0  # after a SIGTERM that did not come from `stop`, which has its own timeout
# Proxy variables are left out on purpose: a proxy between two machines of the house would read the prompts.
INHERITED = (
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PATH",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
# In the environment of all that a service starts: proof of ownership when its leader is gone.
MARK = "HOMELAB_SERVICE_DIR"
PR_SET_PDEATHSIG = 1

Document = Dict[str, Any]


class Mistake(Exception):
    """Something that the caller can put right."""


class Taken(OSError):
    """Another process listens where the service should."""


# --- processes ------------------------------------------------------------------------------------------


def start_ticks(pid: Optional[int]) -> Any:
    """When the process started, in its system's own measure, or None if there is no such living process."""
    if not pid or pid <= 0:
        return None
    if sys.platform.startswith("linux"):
        try:
            with open("/proc/%d/stat" % pid, "rb") as file:
                fields = (
                    file.read().rpartition(b")")[2].split()
                )  # the name before it may hold blanks and brackets
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, LC_ALL="C"),
        check=False,
    )
    state, _, started = answer.stdout.decode("ascii", "replace").strip().partition(" ")
    return None if not started or state.startswith("Z") else " ".join(started.split())


def alive(pid: Optional[int], ticks: Any) -> bool:
    return ticks is not None and start_ticks(pid) == ticks


def marked(directory: str) -> List[int]:
    """Living processes that the service started, whatever group they have gone to (Linux only)."""
    found: List[int] = []
    if not sys.platform.startswith("linux"):
        return found
    mark = os.fsencode("%s=%s" % (MARK, directory))
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open("/proc/%s/environ" % name, "rb") as file:
                ours = mark in file.read().split(b"\0")
        except OSError:
            continue
        if ours and start_ticks(int(name)) is not None:
            found.append(int(name))
    return found


def listening(port: int) -> List[str]:
    """The sockets that listen on a TCP port, as /proc/PID/fd names them (Linux only)."""
    found: List[str] = []
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        found += [
            "socket:[%s]" % row[9]
            for row in rows
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
        ]
    return found


def listens(directory: str) -> Optional[bool]:
    """Whether the service is the one that listens on its port; None where that cannot be seen."""
    try:
        with open(os.path.join(directory, "service.json"), encoding="utf-8") as file:
            port = int(json.load(file)["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not sys.platform.startswith("linux"):
        return None
    sockets = set(listening(port))
    for pid in marked(directory) if sockets else ():
        try:
            links = {os.readlink("/proc/%d/fd/%s" % (pid, fd)) for fd in os.listdir("/proc/%d/fd" % pid)}
        except OSError:
            continue
        if links & sockets:
            return True
    return False


def taken(address: Any, port: Any) -> bool:
    """Whether somebody listens there already. What cannot be tried is the service's own to find out."""
    if not isinstance(address, str) or type(port) is not int or not 0 < port < 65536:
        return False
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections are nobody
            tried.bind((address, port))
            return False
    except OSError as problem:
        return problem.errno == errno.EADDRINUSE


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def send_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        pass


# --- the folder -----------------------------------------------------------------------------------------


def read_state(directory: str) -> Document:
    try:
        with open(os.path.join(directory, "state.json"), encoding="utf-8") as file:
            state = json.load(file)
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(directory: str, state: Document) -> None:
    path = os.path.join(directory, "state.json")
    new = "%s.%d" % (path, os.getpid())
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(state, file)
        file.write("\n")
    os.replace(new, path)


def read_environment(path: str) -> Dict[str, str]:
    try:
        with open(path, "rb") as file:
            lines = os.fsdecode(file.read()).split(
                "\n"
            )  # not splitlines(): a value may hold \r, \x0b, U+2028
    except OSError as problem:
        raise Mistake("cannot read the environment file: %s" % problem) from None
    values = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not re.match(r"[A-Za-z_][A-Za-z0-9_.]*\Z", key) or "\0" in value:
            raise Mistake("%s:%d is not KEY=VALUE" % (path, number))  # the line itself may be a secret
        values[key] = value
    return values


class Revision:
    """service.json, checked, as what will be executed."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, "service.json")
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
        except (OSError, ValueError) as problem:
            raise Mistake("cannot read %s: %s" % (path, problem)) from None
        argv = document.get("argv") if isinstance(document, dict) else None
        if (
            not isinstance(argv, list)
            or not argv
            or not all(isinstance(item, str) and "\0" not in item for item in argv)
        ):
            raise Mistake("%s: argv must be a list of strings" % path)
        self.argv = [os.path.expanduser(item) if item.startswith("~/") else item for item in argv]
        self.working_directory = os.path.join(
            directory, os.path.expanduser(document.get("working_directory") or ".")
        )
        if not os.path.isdir(self.working_directory):
            raise Mistake("%s: working_directory %s is not a folder" % (path, self.working_directory))
        self.environment = {
            key: os.environ[key] for key in os.environ if key in INHERITED or key.startswith(("LC_", "XDG_"))
        }
        if document.get("environment_file"):
            self.environment.update(
                read_environment(os.path.join(directory, os.path.expanduser(document["environment_file"])))
            )
        self.environment[MARK] = directory
        self.address, self.port = document.get("address"), document.get("port")
        self.memory_limit_bytes = document.get("memory_limit_bytes")
        limit = self.memory_limit_bytes
        if limit is not None and (type(limit) is not int or limit <= 0):
            raise Mistake("%s: memory_limit_bytes must be a whole number above 0" % path)
        # It may have streams to end.
        self.stop_seconds = document.get("stop_seconds", LAST_RESORT)
        if type(self.stop_seconds) not in (int, float) or self.stop_seconds <= 0:
            raise Mistake("%s: stop_seconds must be a number above 0" % path)


# --- the supervisor -------------------------------------------------------------------------------------


class Supervisor:
    def __init__(self, directory: str, service: Revision) -> None:
        self.directory, self.service = directory, service
        self.child: Optional["subprocess.Popen[bytes]"] = None
        self.stopping: Optional[float] = None
        self.quick = self.step = 0
        self.state: Document = {
            "supervisor_pid": os.getpid(), "supervisor_start_ticks": start_ticks(os.getpid()), "pid": None,
            "pid_start_ticks": None,
            "started_at": None, "restarts": 0, "exit_code": None, "status": "backing-off",
        }  # fmt: skip
        self.libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        self.wake, self.waker = os.pipe()
        for end in (self.wake, self.waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGHUP):  # not SIG_IGN: the engine would inherit that
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_stop)

    def on_stop(self, *_: Any) -> None:
        if self.stopping is None:
            self.stopping = time.monotonic()
            if self.child is not None:
                send_group(self.child.pid, signal.SIGTERM)

    def save(self, **changes: Any) -> None:
        self.state.update(changes)
        try:
            write_state(self.directory, self.state)
        except OSError:
            pass  # a full disk or a removed folder must not take the engine down

    def say(self, text: str) -> None:
        try:
            with self.open_log() as log:
                log.write(
                    ("%s supervise: %s\n" % (time.strftime("%Y-%m-%dT%H:%M:%S"), text)).encode(
                        "utf-8", "replace"
                    )
                )
        except OSError:
            pass

    def open_log(self) -> Any:
        path = os.path.join(self.directory, "log")
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", 0)

    def rotate(self) -> None:
        """Copies and empties: the engine keeps its descriptor, and O_APPEND lets it go on at the new end."""
        path = os.path.join(self.directory, "log")
        try:
            if os.path.getsize(path) < LOG_BYTES:
                return
            with open(path, "r+b") as log, os.fdopen(
                os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
            ) as old:
                log.seek(-LOG_BYTES, os.SEEK_END)
                old.write(log.read())
                log.truncate(0)
            os.replace(path + ".new", path + ".1")
        except OSError:
            pass

    def before_exec(self) -> None:
        """In the new process: it dies with the supervisor, so that nothing is left holding the port, and
        gets no more memory than its service may have (macOS takes such a limit and does not enforce it)."""
        if self.service.memory_limit_bytes is not None:
            _, highest = resource.getrlimit(resource.RLIMIT_DATA)
            limit = self.service.memory_limit_bytes
            limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        if self.libc is not None:
            self.libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != self.state["supervisor_pid"]:
                os._exit(127)

    def check_port(self) -> None:
        """Raises Taken. LiteLLM, for one, would listen on a random port instead and say nothing."""
        until = time.monotonic() + PORT_WAIT
        while taken(self.service.address, self.service.port):
            if time.monotonic() > until:
                place = (self.service.port, self.service.address)
                raise Taken("port %d of %s is in use by another process" % place)
            time.sleep(0.05)

    def launch(self) -> None:
        self.check_port()
        with self.open_log() as log:
            self.child = subprocess.Popen(
                self.service.argv, cwd=self.service.working_directory, env=self.service.environment,
                stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=self.before_exec,
            )  # fmt: skip
        self.save(
            pid=self.child.pid,
            pid_start_ticks=start_ticks(self.child.pid),
            started_at=time.time(),
            status="running",
        )
        if self.stopping is not None:  # the signal came between the fork and here
            send_group(self.child.pid, signal.SIGTERM)

    def sleep(self, seconds: float) -> None:
        """Until a signal or the time is over."""
        try:
            if select.select([self.wake], [], [], max(0.0, seconds))[0]:
                os.read(self.wake, 4096)
        except (InterruptedError, BlockingIOError):
            pass

    def attend(self) -> int:
        """Waits for the child's end; returns its exit code, negative for a signal."""
        child = self.child
        assert child is not None
        while child.poll() is None:
            if self.stopping is not None and time.monotonic() - self.stopping > self.service.stop_seconds:
                send_group(child.pid, signal.SIGKILL)
            self.sleep(LOG_CHECK)
            self.rotate()
        send_group(child.pid, signal.SIGKILL)  # what it started and left behind may hold the port
        self.child = None
        return int(child.returncode)

    def run(self) -> str:
        """From the first running child to the end; returns the last status."""
        while self.stopping is None:
            began = time.monotonic()
            try:
                if self.child is None:
                    self.launch()
                code = self.attend()
            except (OSError, subprocess.SubprocessError) as problem:
                self.say("cannot start %s: %s" % (self.service.argv[0], problem))
                code = 127
            lasted = time.monotonic() - began
            self.save(pid=None, pid_start_ticks=None, exit_code=code, status="backing-off")
            if self.stopping is not None:
                break
            self.quick = self.quick + 1 if lasted < QUICK_EXIT else 0
            self.step = 0 if lasted >= HEALTHY_AFTER else self.step
            if self.quick >= QUICK_EXITS:
                self.say(
                    "exit code %d, and %d exits within %g s each: giving up" % (code, self.quick, QUICK_EXIT)
                )
                return "failed"
            pause = BACKOFF[min(self.step, len(BACKOFF) - 1)]
            self.step += 1
            self.say("exit code %d after %.1f s, next start in %g s" % (code, lasted, pause))
            until = time.monotonic() + pause
            while self.stopping is None and time.monotonic() < until:
                self.sleep(until - time.monotonic())
            if self.stopping is None:
                self.state["restarts"] += 1
        return "stopped"


# --- the verbs ------------------------------------------------------------------------------------------


def take_lock(directory: str) -> Optional[int]:
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def sweep(directory: str, state: Document) -> None:
    """Ends what a supervisor that died without a word has left. Only while the lock is held."""
    pid, until = state.get("pid"), time.monotonic() + 5
    while True:
        leader, left = alive(pid, state.get("pid_start_ticks")), marked(directory)
        if not leader and not left:
            return
        if leader and pid:
            send_group(pid, signal.SIGKILL)
        for other in left:
            send(other, signal.SIGKILL)
        if time.monotonic() > until:
            raise Mistake("process %s of the previous run does not end" % (left or pid))
        time.sleep(0.02)


def report(directory: str) -> Document:
    state = read_state(directory)
    status, pid = state.get("status", "stopped"), state.get("pid")
    supervised = alive(state.get("supervisor_pid"), state.get("supervisor_start_ticks"))
    running = alive(pid, state.get("pid_start_ticks"))
    if status in ("running", "backing-off"):
        if running:
            status = "running"
        else:
            status = "backing-off" if supervised else "stopped"
    return {
        "listens": listens(directory) if running else False,
        "status": status, "pid": pid if running else None,
        "restarts": state.get("restarts", 0), "exit_code": state.get("exit_code"),
        "supervised": supervised, "started_at": state.get("started_at") if running else None,
    }  # fmt: skip


def daemon(directory: str, service: Revision, lock: int, ready: int) -> NoReturn:
    """The grandchild: never returns into the caller's code."""
    try:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        if null > 2:
            os.close(null)
        highest = os.sysconf("SC_OPEN_MAX")
        kept = sorted((lock, ready))
        for low, high in zip([3, kept[0] + 1, kept[1] + 1], [*kept, min(highest, 65536)]):
            os.closerange(low, high)
        supervisor = Supervisor(directory, service)
        try:
            supervisor.launch()
        except (OSError, subprocess.SubprocessError) as problem:
            supervisor.save(status="failed", exit_code=127)
            os.write(ready, ("cannot start %s: %s" % (service.argv[0], problem)).encode("utf-8", "replace"))
            os._exit(1)
        os.write(ready, b"ok")
        os.close(ready)
        supervisor.save(status=supervisor.run())
        os._exit(0)
    finally:
        os._exit(70)


def start(directory: str) -> Document:
    service = Revision(directory)
    until = time.monotonic() + 10
    while True:
        lock = take_lock(directory)
        if lock is not None:
            break
        state = read_state(directory)
        if state.get("status") in ("running", "backing-off") and alive(
            state.get("supervisor_pid"), state.get("supervisor_start_ticks")
        ):
            return report(directory)
        if time.monotonic() > until:
            raise Mistake("%s/lock is held by a process that is neither a supervisor nor ends" % directory)
        time.sleep(0.05)
    sweep(directory, read_state(directory))
    told, ready = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.close(told)
            daemon(directory, service, lock, ready)
        finally:
            os._exit(70)
    os.close(ready)
    os.close(lock)
    os.waitpid(first, 0)
    with os.fdopen(told, "rb") as answer:
        word = answer.read().decode("utf-8", "replace")
    if word != "ok":
        raise Mistake(word or "the supervisor of %s ended before it had begun" % directory)
    return report(directory)


def stop(directory: str, timeout: float) -> Document:
    if not os.path.isdir(directory):
        return report(directory)
    began, asked = time.monotonic(), None
    while True:
        lock = take_lock(directory)
        state = read_state(directory)
        if lock is not None:
            try:
                sweep(directory, state)
                if state:
                    write_state(directory, dict(state, pid=None, pid_start_ticks=None, status="stopped"))
            finally:
                os.close(lock)
            return report(directory)
        supervisor, waited = state.get("supervisor_pid"), time.monotonic() - began
        if supervisor and alive(supervisor, state.get("supervisor_start_ticks")):
            if asked != supervisor:
                send(supervisor, signal.SIGTERM)
                asked = supervisor
            if waited > timeout and alive(state.get("pid"), state.get("pid_start_ticks")):
                send_group(state["pid"], signal.SIGKILL)
            if waited > timeout + 5:
                send(supervisor, signal.SIGKILL)
        if waited > timeout + 15:
            raise Mistake("the supervisor of %s does not end" % directory)
        time.sleep(0.05)


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="supervise.py", description="Keep one native service running.")
    verbs = parser.add_subparsers(dest="verb", metavar="start|stop|status")
    verbs.required = True
    for verb, text in (
        ("start", "start it, unless it runs"),
        ("stop", "end it and all it started"),
        ("status", "what it does now"),
    ):
        command = verbs.add_parser(verb, help=text)
        command.add_argument("directory", metavar="DIR")
        if verb == "stop":
            command.add_argument(
                "--timeout", type=float, default=15.0, help="seconds between SIGTERM and SIGKILL"
            )
    given = parser.parse_args(arguments)
    directory = os.path.realpath(os.path.expanduser(given.directory))
    try:
        if given.verb == "start":
            answer = start(directory)
        elif given.verb == "stop":
            answer = stop(directory, given.timeout)
        else:
            answer = report(directory)
    except Mistake as problem:
        print(json.dumps({"error": {"message": str(problem)}}))
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
