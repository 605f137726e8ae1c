"""What workers say about themselves, and what they learn from each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from schemas import logs, topology
from schemas.config import Secret
from schemas.errors import ConfigurationError
from schemas.specs import RateLimit, Spec
from tests.workers.conftest import Clock
from workers import presence
from workers.presence import Presence, TargetPresence, WorkersSeen, digest
from workers.targets import rebased


class Inner(Struct, frozen=True):
    """A table inside settings."""

    key: Secret


class Settings(Struct, frozen=True):
    """Settings with secrets at every depth."""

    token: Secret
    url: str = "https://api.example.com"
    inner: Inner | None = None
    many: tuple[Secret, ...] = ()
    named: dict[str, Secret] = {}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a credential."""
    path = tmp_path / "token"
    path.write_text("first-credential")
    path.chmod(0o600)
    return path


def test_the_digest_changes_with_the_credential_and_with_nothing_else(secret: Path) -> None:
    """The gateway probes at once on a new digest, so it must not change by a restart, and must when the value does."""
    settings = Settings(token=Secret(file=str(secret)))
    first = digest("t", "shelf", settings)

    assert digest("t", "shelf", Settings(token=Secret(file=str(secret)))) == first
    secret.write_text("second-credential")
    second = digest("t", "shelf", settings)

    assert second != first
    assert len(second) == presence.DIGEST_CHARS


def test_the_digest_is_salted_and_knows_connector_and_settings(secret: Path) -> None:
    """Equal credentials of two targets do not show as equal."""
    settings = Settings(token=Secret(file=str(secret)))
    other = msgspec.structs.replace(settings, url="https://api.example.org")

    digests = {
        digest("t", "shelf", settings),
        digest("u", "shelf", settings),
        digest("t", "x", settings),
        digest("t", "shelf", other),
    }

    assert len(digests) == 4


def test_every_credential_is_found_and_kept_out_of_the_logs(secret: Path) -> None:
    """S11: a value that was read never appears in a line, wherever in the settings its reference stood."""
    for number in range(4):
        (secret.parent / f"s{number}").write_text(f"value-number-{number}")
        (secret.parent / f"s{number}").chmod(0o600)
    files = [Secret(file=str(secret.parent / f"s{number}")) for number in range(4)]
    settings = Settings(token=files[0], inner=Inner(files[1]), many=(files[2],), named={"a": files[3]})

    digest("t", "shelf", settings)

    shown = logs.redact_text(" ".join(f"value-number-{number}" for number in range(4)))
    assert "value-number" not in shown


def test_a_credential_that_cannot_be_read_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    """The target is reported and not served."""
    with pytest.raises(ConfigurationError):
        digest("t", "shelf", Settings(token=Secret(file=str(tmp_path / "none"))))


def test_relative_files_are_found_beside_the_configuration(secret: Path) -> None:
    """Paths in the file are relative to its folder, at every depth; other values stay as they are."""
    relative, absolute = Secret(file="token"), Secret(file=str(secret))
    settings = Settings(
        token=relative, inner=Inner(relative), many=(relative, absolute), named={"a": relative, "b": Secret(env="X")}
    )

    found: Any = rebased(settings, secret.parent)

    assert found == Settings(
        token=absolute, inner=Inner(absolute), many=(absolute, absolute), named={"a": absolute, "b": Secret(env="X")}
    )


def test_a_presence_document_survives_its_journey() -> None:
    """Gateways read the connector's declaration from it."""
    spec = Spec(name="shelf", title="Shelf", rate_limit=RateLimit(calls=5), pitfalls=("a", "b"))
    document = Presence(
        worker="w1",
        started_at=1.5,
        version="1",
        targets={"t": TargetPresence(connector="shelf", serving=True, spec=spec, digest="d", problems=("p",))},
    )

    assert presence.decode(presence.encode(document)) == document


def test_worker_ids_fit_a_subject_and_differ() -> None:
    """Two processes of one machine, also with a process id used again, never share a name."""
    ids = {presence.worker_id() for _ in range(20)}

    assert len(ids) > 1
    assert all(presence.subject(one).startswith("$KV.PROV_WORKERS.") for one in ids)


def a_worker(*targets: str, idle: tuple[str, ...] = ()) -> bytes:
    """A presence document serving these targets, and naming others it does not serve."""
    named = {name: TargetPresence(connector="shelf", serving=name not in idle) for name in (*targets, *idle)}
    return presence.encode(Presence(worker="w", started_at=0.0, version="1", targets=named))


def test_workers_are_counted_by_what_they_serve() -> None:
    """A target a worker cannot serve does not take a part of the product's limit."""
    changes: list[int] = []
    seen = WorkersSeen(Clock(), lambda: changes.append(1))

    seen.heard("w1", a_worker("a", "b"))
    seen.heard("w2", a_worker("a", idle=("b",)))
    seen.heard("w2", a_worker("a", idle=("b",)))

    assert (seen.count("a"), seen.count("b"), seen.count("c")) == (2, 1, 0)
    assert seen.count("a", besides="w1") == 1
    assert len(changes) == 2


def test_a_worker_that_left_or_fell_silent_counts_no_more() -> None:
    """An orderly stop is told; a crash shows by silence."""
    clock = Clock()
    seen = WorkersSeen(clock)
    seen.heard("w1", a_worker("a"))
    seen.heard("w2", a_worker("a"))

    seen.heard("w1", b"")
    assert seen.count("a") == 1
    clock.added_s += topology.PRESENCE_TTL_S + 1
    seen.forget_silent()

    assert seen.count("a") == 0


def test_what_is_no_presence_document_changes_nothing() -> None:
    """Anybody with access to the bucket could write there."""
    seen = WorkersSeen(Clock())
    seen.heard("w1", a_worker("a"))

    seen.heard("w2", b"nonsense")
    seen.heard("w1", b'{"worker": 5}')

    assert seen.count("a") == 1
