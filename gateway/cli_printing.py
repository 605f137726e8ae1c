"""What commands print: answers as tables or as JSON, and signs of life on standard error while something lasts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gateway.cli_client import Access


def loaded_terminal() -> Any:
    """The module that draws tables; it brings rich, which is not needed for JSON."""
    from gateway import terminal

    return terminal


def show(access: Access, answer: Any, render: Callable[[Any], Any]) -> None:
    """Print an answer as JSON, or what `render` makes of it with the module that draws tables."""
    if access.as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    terminal = loaded_terminal()
    terminal.console().print(render(terminal))


def say(access: Access, answer: Any, text: str) -> None:
    """Print an answer as JSON, or a sentence in its place."""
    print(json.dumps(answer, ensure_ascii=False) if access.as_json else text)


def counted(count: int, what: str) -> str:
    """A number with its noun: 1 mail, 1,200 mails."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _seen(progress: Mapping[str, Any]) -> str:
    """How far a comparison is, for its bar."""
    parts = [f"{progress.get('accounts', 0):,} accounts", f"{progress.get('users', 0):,} users"]
    parts += [f"{progress[name]:,} {name}" for name in ("groups", "members") if progress.get(name)]
    return ", ".join(parts)


@contextmanager
def watching(access: Access) -> Iterator[Callable[[Any], None]]:
    """A bar on standard error that follows the `progress` of the answers it is given."""
    if access.as_json:
        yield lambda view: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn())
    console = loaded_terminal().console(stderr=True)
    waited = ""
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None, seen="")

        def watch(view: Any) -> None:
            nonlocal waited
            progress = view.get("progress") or {}
            if progress.get("waiting", "") not in ("", waited):
                waited = progress["waiting"]
                console.print(loaded_terminal().plain(waited, "yellow"))
            done = progress.get("users", 0)
            bar.update(
                task,
                description=progress.get("stage", ""),
                completed=done,
                total=progress.get("of") or None,
                seen=_seen(progress),
            )

        yield watch


@contextmanager
def progress(access: Access, total: int, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error when there is more than one batch to move."""
    if total <= size or access.as_json:
        yield lambda count: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=loaded_terminal().console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def spinning(access: Access, text: str) -> Iterator[None]:
    """A sign of life on standard error while one answer takes its time; only for people."""
    if access.as_json or not sys.stderr.isatty():
        yield
        return
    with loaded_terminal().console(stderr=True).status(f"{text}…"):
        yield
