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

START_WAIT_S = 10.0


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Divide the suite among test processes: a file stays together, and one process runs all that starts the whole system.

    That one begins first, because it takes longest; two whole systems side by side would only slow each other down.
    """
    root = config.rootpath / "tests"

    def group(item: pytest.Item) -> str:
        folder = item.path.relative_to(root).parts[0]
        return "whole system" if folder in ("e2e", "faults") else str(item.path.relative_to(root))

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: group(item) != "whole system")
