"""What a running worker makes of a configuration file that was written again, against a real nats-server and a real product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.config_file import ConfigurationFile
from schemas.errors import ConfigurationError
from tests.conftest import NatsServer
from tests.waiting import until
from tests.workers.conftest import Gateway, StartWorker, configuration_text
from tests.workers.shelf import ShelfServer

SECOND = """
[targets.second]
connector = "shelf"
[targets.second.settings]
base_url = "{url}"
"""


def names(worker: Any) -> set[str]:
    """The targets that presence says are served."""
    return {name for name, target in worker.presence().targets.items() if target.serving}


async def test_a_changed_target_takes_the_next_event_while_the_old_one_ends_what_it_began(
    tmp_path: Path, nats_server: NatsServer, gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """No restart: new address for the next event, nothing under way is disturbed, targets come and go."""
    other = ShelfServer()
    await other.start()
    file = tmp_path / "provgate.toml"
    file.write_text(configuration_text(nats_server.url, shelf.url))
    try:
        worker = await start_worker(file=ConfigurationFile(file))
        shelf.gate.clear()
        await gateway.send("begun")
        await until(lambda: len(shelf.writes()) == 1, "the product is at work")
        before = worker.served["shelf"]

        file.write_text(configuration_text(nats_server.url, other.url, SECOND.format(url=other.url)))
        await until(lambda: names(worker) == {"shelf", "second"}, "both targets are served")
        await gateway.send("next")
        await gateway.send("elsewhere", target="second")

        outcomes = {(await gateway.outcome(number)).resource for number in (1, 2)}
        assert outcomes == {"next", "elsewhere"}
        assert len(other.accounts) == 2
        assert worker.served["shelf"].limit is before.limit, "both share the product's limit"
        shelf.gate.set()
        assert (await gateway.outcome(3)).resource == "begun"
        assert len(shelf.accounts) == 1
        await until(gateway.acknowledged)
        assert (await gateway.ask("second", {"do": "probe"}))["ok"]

        file.write_text(configuration_text(nats_server.url, other.url))
        await until(lambda: names(worker) == {"shelf"}, "the second is gone")
        await gateway.send("later")
        assert (await gateway.outcome(4)).resource == "later"
    finally:
        shelf.gate.set()
        await other.stop()


async def test_a_mistake_in_the_file_changes_nothing_and_is_told(
    tmp_path: Path, nats_server: NatsServer, gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """A target that cannot work as it is written now goes on as it was, presence says why, and the others are changed.

    A secret may come a moment after the line that names it: nobody has to write the file again, or to restart anything.
    """
    good = configuration_text(nats_server.url, shelf.url)
    file = tmp_path / "provgate.toml"
    file.write_text(good)
    worker = await start_worker(file=ConfigurationFile(file))

    secret = tmp_path / "second.token"
    file.write_text(good + "badg = true\n" + SECOND.format(url=shelf.url) + f'token = {{file = "{secret}"}}\n')
    await until(lambda: "second" in worker.problems, "its secret is not there yet")
    secret.write_text("of the second shelf")
    secret.chmod(0o600)
    await until(lambda: names(worker) == {"shelf", "second"}, "the target without a mistake is served")
    said = worker.presence().targets["shelf"]
    assert said.serving
    assert said.problems[0].startswith("targets.shelf.settings.badg: not a setting")
    await gateway.send("r1")
    assert (await gateway.outcome()).resource == "r1"

    file.write_text(good)
    await until(lambda: not worker.presence().targets["shelf"].problems, "the mistake is gone")


def test_a_file_counts_once_for_every_time_it_is_written_and_whole_or_not_at_all(tmp_path: Path) -> None:
    """All mistakes are told at once and kept until they are corrected; for a moment there may be no file."""
    path = tmp_path / "provgate.toml"
    path.write_text("")
    file = ConfigurationFile(path)

    assert file.changed() is None
    path.write_text("[nets]\n[gatway]\n")
    with pytest.raises(ConfigurationError) as refused:
        file.changed()
    assert len(refused.value.problems) == 2
    assert file.changed() is None, "told once"
    assert file.problems == refused.value.problems
    path.unlink()
    assert file.changed() is None
    path.write_text('[targets.observe]\nconnector = "observe"\n')
    fresh = file.changed()
    assert fresh is not None
    assert list(fresh.targets) == ["observe"]
    assert not file.problems
