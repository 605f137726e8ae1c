"""Record `make demo` into `deploy/demo.svg`, the picture of the README: `python -m deploy.demo_recording`.

Nothing in the picture is made up: the demonstration really runs, and what it prints is drawn. Only the name of its temporary
folder is replaced by DATA.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.svg")
COLUMNS = 104
LAST_LINE = "key new"
"""The last of the commands that the demonstration proposes; then everything has been printed."""
RUN_S_MAX = 180
STOP_S_MAX = 40


def main() -> int:
    """Run it, ask for the status as its text proposes, and write the picture."""
    provgate = Path(sys.executable).with_name("provgate").relative_to(Path.cwd())
    with tempfile.TemporaryDirectory(prefix="provgate-demo-") as folder:
        with _running(str(provgate), folder) as lines:
            shown = ["$ make demo", *lines]
            status = [str(provgate), "status", "--data", folder]
            said = subprocess.run(status, env=_environment(), capture_output=True, text=True, check=True)
        shown += ["", f"$ {' '.join(status)}", *said.stdout.rstrip().splitlines()]
        text = "\n".join(shown).replace(folder, "DATA")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(text), soft_wrap=True)
    picture = console.export_svg(title="make demo", clear=True)
    PICTURE.write_text(_offline(picture), encoding="utf-8")
    return 0


@contextmanager
def _running(provgate: str, folder: str) -> Iterator[list[str]]:
    """The demonstration, and what it has printed up to its last line; ended afterwards."""
    command = [provgate, "demo", "--data", folder]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        signal.alarm(RUN_S_MAX)  # whatever hangs, hangs in this loop
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if LAST_LINE in line:
                break
        signal.alarm(0)
        try:
            yield lines
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S_MAX)


def _environment() -> dict[str, str]:
    """Colours as on a terminal, without the bars that move."""
    return {**os.environ, "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)}


def _offline(picture: str) -> str:
    """Without fonts from elsewhere, so that whoever looks at the README is not seen doing so."""
    picture = re.sub(r"\s*@font-face \{.*?\}\s*(?=@font-face|\.terminal|$)", "\n    ", picture, flags=re.DOTALL)
    return picture.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")


if __name__ == "__main__":
    sys.exit(main())
