"""A map that is edited in the configuration file: both processes read it anew, and the groups it is about are sent again."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path

from deploy.emulators.harness import running
from deploy.emulators.sofa import SofaEmulator
from gateway.access import ACCESS_FILE
from gateway.app import Gateway
from gateway.patch import MemberChange
from schemas.config import load
from schemas.config_file import ConfigurationFile
from schemas.states import State
from tests.conftest import NatsServer, free_port
from tests.gateway.stand_ins import write_blank_store
from tests.waiting import until
from workers.app import Worker

TARGET = "sofa"
GROUP = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaa01"


def a_file(folder: Path, nats: str, product: str, ports: tuple[int, int], rows: str) -> Path:
    path = folder / "provgate.toml"
    path.write_text(
        f'[gateway]\nport = {ports[0]}\noperator_port = {ports[1]}\n[nats]\nurl = "{nats}"\n'
        f'[targets.{TARGET}]\nconnector = "sofa"\n[targets.{TARGET}.settings]\n'
        f'endpoint_url = "{product}/scim/entra"\nallow_loopback = true\naccess_key = {{ file = "secret" }}\n'
        f"key_issued = {datetime.now(UTC).date()}\nkey_validity_days = 365\ngroup_map = [{rows}]\n"
    )
    return path


async def test_a_row_that_is_added_to_the_file_makes_a_stored_group_and_one_that_goes_removes_it(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """S10, S11, vendor page 5.3: without a restart, and with all members; nothing is written by Entra meanwhile."""
    product = SofaEmulator(rate_per_s=0)
    (tmp_path / "secret").write_text("demo-token-sofa")
    (tmp_path / "secret").chmod(0o600)
    await write_blank_store(tmp_path / "provgate.sqlite3")
    ports = free_port(), free_port()
    loop = asyncio.get_running_loop()
    async with running(product) as url:
        source = a_file(tmp_path, nats_server.url, url, ports, "")
        gateway = Gateway(load(source), ConfigurationFile(source))
        worker = Worker(load(source), tmp_path, file=ConfigurationFile(source))
        working = [asyncio.create_task(gateway.run()), asyncio.create_task(worker.run())]
        try:
            await until((tmp_path / ACCESS_FILE).exists, "the gateway listens")
            await until(lambda: worker.serving.is_set() and gateway.presences.serves(TARGET), "the worker serves")
            ada = (await gateway.intake.create(TARGET, "user", {"userName": "ada@x.example", "externalId": GROUP})).row
            assert ada is not None
            document, members = {"displayName": "Sales", "externalId": GROUP}, (MemberChange("add", (ada.id,)),)
            group = (await gateway.intake.create(TARGET, "group", document, members=members)).row
            assert group is not None

            async def noted() -> list[str]:
                row = await gateway.store.read(lambda reader: reader.row(group.id))
                assert row is not None
                rests = row.state is State.APPLIED and not row.dirty and not row.unfinished
                return await gateway.store.read(lambda reader: reader.notes_of(group.id)) if rests else ["moving"]

            async def unmapped() -> bool:
                return await noted() == ["no_mapping"]

            async def mapped() -> bool:
                return await noted() == []

            def held() -> list[int]:
                return [len(one["members"]) for one in product.state()["groups"].values()]

            await until(unmapped, "the group is acknowledged and not forwarded")
            assert held() == []
            a_file(tmp_path, nats_server.url, url, ports, f'{{ remote = "{GROUP}", sofa = "Sales" }}')
            await until(mapped, "the group is forwarded")
            assert held() == [1]
            a_file(tmp_path, nats_server.url, url, ports, "")
            await until(unmapped, "the group is removed again")
            assert held() == []
        finally:
            gateway.stopping.set()
            worker.stop()
            await asyncio.gather(*working, return_exceptions=True)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
