"""The configuration file of a running process: a changed one is checked whole, and counts as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

from schemas.config import Configuration, load
from schemas.errors import ConfigurationError

CONFIG_LOOK_EVERY_S = 2.0
"""A changed file counts this much later at most."""


class ConfigurationFile:
    """Looks whether the file has changed since it was read.

    Make it before the file is read for the first time: what changes in between is then seen by the first look.

    Args:
        path: the TOML file.

    Attributes:
        problems: what is wrong with the file as it is now, path first; empty while what it says is in force.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: tuple[str, ...] = ()
        self._seen = self._mark()

    def changed(self) -> Configuration | None:
        """What the file says now, if it was written since the last look; None otherwise, and while there is no file.

        Raises:
            ConfigurationError: it was written and has mistakes, all of them at once. Said once for every time it is written.
        """
        mark = self._mark()
        if mark is None or mark == self._seen:
            return None
        self._seen = mark
        try:
            configuration = load(self.path)
        except ConfigurationError as exc:
            self.problems = tuple(exc.problems)
            raise
        self.problems = ()
        return configuration

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            now = self.path.stat()
        except OSError:  # many editors and most deployments replace the file: for a moment there is none
            return None
        return now.st_mtime_ns, now.st_size, now.st_ino
