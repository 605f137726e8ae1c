"""Opening a store: which database, whether it keeps what it acknowledged, and whether its tables are up to date."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.statements import STATEMENTS_KEPT
from gateway.tables import SCHEMA
from gateway.writer import StoreError

BUSY_WAIT_S = 5.0
CACHE_SIZE = "cache_size = -6144"
"""Six MiB for each connection of a gateway, of which there are six; what they do not hold the system's own cache does."""
CONNECT_WAIT_S = 5.0
LOCK_WAIT_S = 5.0
STATEMENT_WAIT_S = 30.0
IDLE_IN_TRANSACTION_S = 10.0
"""PostgreSQL ends a writer that stopped in the middle of a transaction, or a frozen gateway would stop all others."""
MIGRATION_LOCK = 0x70726F7667617466
"""Key of PostgreSQL's advisory lock for migrations: any number that nobody else uses in this database."""


class StoreRefused(StoreError):
    """This store may not be used: the sentence says why and what to do."""


NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ocfs2",
        "gfs2",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.s3fs",
        "fuse.rclone",
        "fuse.gcsfuse",
        "fuse.blobfuse",
        "fuse.blobfuse2",
        "fuse.davfs",
        "fuse.smbnetfs",
        "fuse.juicefs",
        "davfs",
    }
)
"""As Linux names them. Their locks and fsync do not hold what SQLite needs (A8)."""

_MOUNTS = Path("/proc/self/mountinfo")


def file_system_of(path: Path, mounts: str) -> str:
    """The type of file system a path lies on.

    Args:
        path: absolute and resolved.
        mounts: the text of Linux's `/proc/self/mountinfo`.

    Returns:
        e.g. `ext4`, or "" when no mount covers the path.
    """
    best, found = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        parts = before.split()
        if len(parts) < 5 or not after:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), parts[4])  # a blank is written \040
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= best:
            best, found = len(point), after.split()[0]
    return found


def check_file_system(path: Path, mounts: str) -> None:
    """Refuse network file systems; arguments as of `file_system_of`.

    Raises:
        StoreRefused: SQLite would not be safe there (A8).
    """
    kind = file_system_of(path, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreRefused(
            f"{path} lies on a network file system ({kind}), where SQLite can lose data; use a local disk or PostgreSQL"
        )


def engine_of(location: str | Path) -> sa.Engine:
    """How to connect: an SQLite file (created when missing, readable for this account only) or `postgresql://…`.

    Raises:
        StoreRefused: neither, or the file cannot be used.
    """
    text = str(location)
    if text.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        url = sa.make_url("postgresql+psycopg://" + text.partition("://")[2])
        options = {
            "lock_timeout": int(LOCK_WAIT_S * 1000),
            "statement_timeout": int(STATEMENT_WAIT_S * 1000),
            "idle_in_transaction_session_timeout": int(IDLE_IN_TRANSACTION_S * 1000),
            "tcp_keepalives_idle": 10,
            "tcp_keepalives_interval": 5,
            "tcp_keepalives_count": 3,
        }
        return sa.create_engine(
            url,
            poolclass=sa.NullPool,
            connect_args={
                "connect_timeout": int(CONNECT_WAIT_S),
                "application_name": "provgate",
                "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
            },
        )
    if "://" in text and not text.startswith("sqlite:///"):
        raise StoreRefused(f"{text.partition('://')[0]} is no store we know; use a file's path or postgresql://…")
    path = Path(text.removeprefix("sqlite:///")).expanduser().resolve()
    _check_file(path)
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=sa.NullPool,
        connect_args={
            "check_same_thread": False,
            "cached_statements": STATEMENTS_KEPT,
            "timeout": BUSY_WAIT_S,
            "isolation_level": None,  # we say BEGIN ourselves
        },
    )
    sa.event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _check_file(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreRefused(f"{path} cannot be created: there is no folder {path.parent}")
    if sys.platform == "linux" and _MOUNTS.exists():
        check_file_system(path, _MOUNTS.read_text(encoding="utf-8", errors="replace"))
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # people's data: for this account's eyes only
    except OSError as exc:
        raise StoreRefused(f"{path} cannot be written: {exc.strerror}") from None


def _set_up_sqlite(driver: Any, _: object) -> None:
    for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on", CACHE_SIZE):
        driver.execute(f"PRAGMA {pragma}").fetchall()


def check_durability(engine: sa.Engine) -> None:
    """Acknowledged must mean written (A8).

    Raises:
        StoreRefused: the database would lose acknowledged writes on power loss.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            if mode != "wal":
                raise StoreRefused(f"{engine.url.database} cannot be switched to a write-ahead log (it is {mode})")
            return
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            if connection.exec_driver_sql(f"SHOW {setting}").scalar() == "off":
                raise StoreRefused(
                    f"PostgreSQL runs with {setting} = off and would lose acknowledged writes; turn it on"
                )


def migrate(engine: sa.Engine) -> None:
    """Bring the tables up to SCHEMA, in one transaction that no second gateway can enter at the same time.

    Raises:
        StoreRefused: the tables are newer than this version of the program.
    """
    with engine.connect() as connection:
        if _version(connection) == SCHEMA:
            return
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(STATEMENT_WAIT_S * 1000)}")
            connection.rollback()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{int(STATEMENT_WAIT_S)}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        version = _version(connection)
        if version == SCHEMA:  # another gateway was quicker
            connection.rollback()
            return
        upgrade(connection, "head", now_at=version)
        connection.commit()


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if version is None else str(version)


def upgrade(connection: sa.Connection, revision: str, *, now_at: str | None = None) -> None:
    """Run the migrations up to a revision inside the caller's transaction.

    Raises:
        StoreRefused: the tables are at a revision this program does not know.
    """
    from alembic import command  # takes a second to import, and is needed once per version
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if now_at is not None and now_at not in known:
        raise StoreRefused(
            f"the store was written by a newer version of Provgate (tables {now_at}, this one knows {SCHEMA}); "
            "start that version again, or restore a backup made before the upgrade"
        )
    command.upgrade(config, revision)


def first_line(error: object) -> str:
    """What a database says when it cannot be reached, without its details."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
