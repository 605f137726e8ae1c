"""Real parts for tests: a nats-server with JetStream per test, on a free port of this machine, with a store of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_WAIT_S = 60.0


def free_port() -> int:
    """A TCP port of the loopback address that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NatsServer:
    """One nats-server process; survives `kill()` and `wipe()` on the same port, so that clients find it again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        return self.folder / "jetstream"

    def start(self) -> None:
        """Start and wait until the port answers."""
        assert self.process is None, "it runs already"
        log = (self.folder / "nats.log").open("ab")
        binary = Path(sys.executable).with_name("nats-server")
        arguments = [str(binary), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.store)]
        self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        log.close()
        until = time.monotonic() + START_WAIT_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as talk:
                    if talk.recv(4) == b"INFO":
                        return
            except OSError:
                pass
            assert self.process.poll() is None, (self.folder / "nats.log").read_text()
            assert time.monotonic() < until, "nats-server did not answer in time"
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An orderly end."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Crash and come back with the same store."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Crash, lose every stream and consumer, come back empty."""
        self.kill()
        shutil.rmtree(self.store, ignore_errors=True)
        self.start()

    def freeze(self) -> None:
        """Stop answering without closing any connection."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze()`."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def _end(self, sign: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(sign)
            self.process.wait(timeout=START_WAIT_S)
            self.process = None


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running nats-server with an empty JetStream store."""
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


WHOLE_SYSTEM = "whole system"
LONGEST = (WHOLE_SYSTEM, "simulation/test_simulation.py", "gateway/test_fuzz.py", "gateway/test_match.py")
"""What begins first, so that no process waits for another at the end."""


def share_of(nodeid: str) -> str:
    """What runs in one process: a file stays together, and so does all that starts the whole system.

    Two whole systems side by side would only slow each other down.
    """
    path = nodeid.partition("::")[0].removeprefix("tests/")
    return WHOLE_SYSTEM if path.startswith(("e2e/", "faults/")) else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    begins = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begins.get(share_of(item.nodeid), len(begins)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Divide the suite among test processes by `share_of` (marks of groups are not seen with every version of pytest)."""
    from xdist.scheduler import LoadScopeScheduling

    class Shares(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return share_of(nodeid)

    return Shares(config, log)
