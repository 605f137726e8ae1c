"""How much memory a reconciliation of many accounts and a few large groups takes, in every process of ours.

    python -m tests.gateway.reconcile_size 50000 --groups 4 --members 10000

The product is emulated, with the accounts and groups seeded; the store is filled as if all of them had been applied.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import psutil

from deploy.emulators.bobs_business import BobsBusinessEmulator
from gateway.lifecycle import Row
from gateway.patch import MemberChange
from gateway.store import Store, Transaction
from schemas.events import identity
from schemas.states import State
from tests.conftest import NatsServer, free_port
from tests.gateway.operated import clean_environment
from tests.gateway.test_match import RSS_MAX, Watched

TARGET = "large"
PART = 2_000
DRIFTED = 100
LEFT_OUT = 50
"""Members that are not in the first group although they were put in."""


def _seed(url: str, document: dict[str, Any]) -> dict[str, Any]:
    order = urllib.request.Request(
        f"{url}/__emu/seed", json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(order, timeout=300) as answer:
        made: dict[str, Any] = json.load(answer)
    return made


def _address(n: int) -> str:
    return f"person{n:06}@contoso.example"


def _applied(resource: str, kind: str, document: dict[str, Any], name: str, account_id: str) -> Row:
    body, long_ago = msgspec.json.encode(document), time.time() - 86_400
    return Row(
        id=resource,
        target=TARGET,
        kind=kind,
        generation=1,
        acknowledged=1,
        document=body,
        identities=(name,),
        created_at=long_ago,
        modified_at=long_ago,
        state=State.APPLIED,
        settled_generation=1,
        settled_document=body,
        settled_identities=(name,),
        settled_at=long_ago,
        account_id=account_id,
        account_created=True,
    )


async def _fill(path: Path, url: str, accounts: int, groups: int, members: int) -> None:
    """Seed the product, and store everything as applied."""
    store = Store.open(path)
    try:
        for at in range(0, accounts, PART):
            numbers = range(at, min(at + PART, accounts))
            users = [
                {"userName": _address(n), "displayName": "Other" if n < DRIFTED else f"Person {n}"} for n in numbers
            ]
            ids = (await asyncio.to_thread(_seed, url, {"users": users}))["ids"]

            def save(ledger: Transaction, numbers: range = numbers, ids: list[str] = ids) -> None:
                for n, account_id in zip(numbers, ids, strict=True):
                    document = {"userName": _address(n), "displayName": f"Person {n}", "active": True}
                    ledger.save(
                        _applied(f"user-{n:06}", "user", document, identity("userName", _address(n)), account_id)
                    )

            await store.run(save)
        for n in range(groups):
            name, first = f"Group {n}", (n * members // 2) % max(1, accounts - members + 1)
            inside = range(first, first + members)
            there = [_address(one) for one in inside][LEFT_OUT if n == 0 else 0 :]
            made = await asyncio.to_thread(_seed, url, {"groups": [{"displayName": name, "members": there}]})

            def group(
                ledger: Transaction,
                n: int = n,
                name: str = name,
                inside: range = inside,
                id_: str = made["group_ids"][0],
            ) -> None:
                row = _applied(f"group-{n}", "group", {"displayName": name}, identity("displayName", name), id_)
                ledger.save(row)
                ids = tuple(f"user-{one:06}" for one in inside)
                ledger.change_members(row.id, [MemberChange("add", ids)])
                ledger.settle_members(row.id, ids, [], anew=False)

            await store.run(group)
    finally:
        await store.close()


def _configuration(folder: Path, nats: str, url: str) -> Path:
    secret = folder / "secret"
    secret.write_text(f"demo-token-{BobsBusinessEmulator.name}")
    secret.chmod(0o600)
    path = folder / "provgate.toml"
    path.write_text(
        f'[gateway]\nport = {free_port()}\noperator_port = {free_port()}\n[nats]\nurl = "{nats}"\n'
        f'[targets.{TARGET}]\nconnector = "scim"\n[targets.{TARGET}.settings]\nbase_url = "{url}/scim/v2"\n'
        f'auth = {{ way = "bearer", token = {{ file = "{secret}" }} }}\nrate_limit = {{ calls = 1000, per_s = 1.0 }}\n'
        'attributes = ["userName", "active", "displayName"]\nallow_loopback = true\n'
    )
    return path


def measure(folder: Path, accounts: int, groups: int, members: int) -> tuple[dict[str, Any], dict[str, int], float]:
    """Run one reconciliation by its command: the report, the highest memory by process in bytes, and how long it took."""
    root, environment = Path(__file__).parent.parent.parent, clean_environment()
    started: dict[str, subprocess.Popen[bytes]] = {}
    (folder / "nats").mkdir()
    bus = NatsServer(folder / "nats")

    def start(name: str, *command: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=log, stderr=log, env=environment, cwd=root
            )
        return started[name]

    def wait(there: Path) -> None:
        deadline = time.monotonic() + 60
        while not there.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"{there} does not appear; see the logs in {folder}")
            time.sleep(0.1)

    try:
        bus.start()
        port = free_port()
        url, ready = f"http://127.0.0.1:{port}", folder / "ready.json"
        product = f"{BobsBusinessEmulator.name}:{port}"
        start("product", "deploy.emulators", product, "--ready-file", str(ready), "--rate-per-s", "0")
        wait(ready)
        asyncio.run(_fill(folder / "provgate.sqlite3", url, accounts, groups, members))
        config = _configuration(folder, bus.url, url)
        start("gateway", "gateway.cli", "gateway", "--config", str(config))
        start("worker", "workers", "--config", str(config))
        wait(folder / "operator.json")
        access = json.loads((folder / "operator.json").read_text())
        asked = urllib.request.Request(
            f"{access['url']}/api/v1/targets/{TARGET}", headers={"Authorization": f"Bearer {access['token']}"}
        )
        deadline = time.monotonic() + 30
        workers: list[Any] = []
        while not workers and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    workers = json.load(answer)["target"]["workers"]
            except OSError:
                time.sleep(0.1)
        with Watched() as watched:
            watched.processes |= {name: psutil.Process(started[name].pid) for name in ("gateway", "worker")}
            begun = time.monotonic()
            said = folder / "said.json"
            with said.open("wb") as out:
                command = [sys.executable, "-m", "gateway.cli", "reconcile", TARGET, "--json", "--data", str(folder)]
                child = subprocess.Popen(command, stdout=out, env=environment, cwd=root)
            watched.processes["command"] = psutil.Process(child.pid)
            child.wait()
            took_s = time.monotonic() - begun
        return json.loads(said.read_text()), watched.highest, took_s
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(30)
        bus.stop()


def main() -> int:
    """Measure, print the figures, and end with 1 when a process took more than it may or the report is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accounts", type=int, nargs="?", default=50_000)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--members", type=int, default=10_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        said, highest, took_s = measure(Path(folder), chosen.accounts, chosen.groups, chosen.members)
    report = said["report"]
    shown = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sorted(highest.items()))
    print(
        f"{report['compared']:,} users, {report['groups']:,} groups, {report['memberships']:,} memberships in {took_s:.1f} s: "
        f"{shown}; {report['state']} {report['counts']} {report['code']} {report['message']}"
    )
    expected = {"drifted": min(DRIFTED, chosen.accounts)} | ({"group_members": 1} if chosen.groups else {})
    right = report["counts"] == expected and report["member_differences"] == (LEFT_OUT if chosen.groups else 0)
    return 0 if right and max(highest.values()) < RSS_MAX else 1


if __name__ == "__main__":
    raise SystemExit(main())
