"""The commands that start processes: `provgate up`, `demo`, `gateway`, `worker`, and those of the emulated Entra.

One console script starts them all, although the gateway may import neither the workers nor what deploys them: hence by name,
and only when such a command runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gateway.cli_app import AsJson, ConfigFile, app, entra_commands
from gateway.cli_client import CONFIG_FILE, WRONG_USE, Failure, code_of
from gateway.cli_moving import rate_of


@app.command(help_epilogue="Example:\n  provgate up --config provgate.toml")
def up(*, config: ConfigFile = Path(CONFIG_FILE)) -> int:
    """Run everything on this machine: gateway, workers and, when the file says so, a nats-server. Ends with Ctrl-C."""
    return code_of(importlib.import_module("deploy.local").up(config=_existing(config)))


@app.command(
    help_epilogue="Examples:\n  provgate demo\n  provgate demo --port 9000 --data ./demo --ready-file ready.json --no-cycle"
)
def demo(
    *,
    port: Annotated[int, Parameter(help="Port of the Tenant URLs; 0 takes a free one.")] = 8080,
    data: Annotated[Path | None, Parameter(help="Folder for the data; a temporary one without it.")] = None,
    ready_file: Annotated[Path | None, Parameter(help="Written as JSON when everything answers.")] = None,
    cycle: Annotated[bool, Parameter(help="Run a provisioning cycle of the emulated Entra.")] = True,
) -> int:
    """Run everything with emulated products and an emulated Entra. Ends with Ctrl-C."""
    run = importlib.import_module("deploy.demo").demo
    return code_of(run(port=port, data=data, ready_file=ready_file, cycle=cycle))


@app.command(help_epilogue="Example:\n  provgate gateway --config provgate.toml")
def gateway(*, config: ConfigFile = Path(CONFIG_FILE)) -> int:
    """Run a gateway: SCIM for Entra, the store, the dispatcher, the operators' API."""
    path = _existing(config)
    from gateway.keys import KeyProblem
    from gateway.writer import StoreError

    try:
        return code_of(importlib.import_module("gateway.__main__").run(config=path, pretty=sys.stderr.isatty()))
    except (KeyProblem, StoreError) as exc:  # both say what is wrong and what to do, and name no secret
        raise Failure(str(exc), WRONG_USE) from exc


@app.command(
    help_epilogue="Examples:\n  provgate worker\n  provgate worker --config provgate.toml --target talkdesk-eu"
)
def worker(
    *,
    config: ConfigFile = Path(CONFIG_FILE),
    target: Annotated[tuple[str, ...], Parameter(negative=(), help="Serve only this; may be repeated.")] = (),
) -> int:
    """Run a worker: it applies events to the products it serves."""
    # in place of this process: signals go to the worker itself, and nothing of the gateway stays in its memory
    os.execv(sys.executable, [sys.executable, "-m", "workers", "--config", str(_existing(config)), *target])  # noqa: S606


# ---- the emulated Entra


@entra_commands.command(
    help_epilogue="Examples:\n"
    "  provgate entra record cycle.jsonl --tenant-url http://127.0.0.1:8080/scim/v2/observe --token-file key\n"
    "  provgate entra record cycle.jsonl --tenant-url ... --token-file key --mapping talkdesk --people 100 --dialect flag"
)
def record(
    file: Annotated[Path, Parameter(help="JSON lines; must not exist. Holds the emulated people, and no credentials.")],
    /,
    *,
    tenant_url: Annotated[str, Parameter(help="The target's SCIM address.")],
    token_file: Annotated[Path, Parameter(help="File with the target's key, or with the client secret.")],
    mapping: Annotated[str, Parameter(help="observe, telemessage or talkdesk.")] = "observe",
    people: Annotated[int, Parameter(help="How many people the directory has.")] = 20,
    groups: Annotated[int | None, Parameter(help="How many groups; two for observe, none for the others.")] = None,
    dialect: Annotated[str, Parameter(help="Form of PATCH: legacy or flag.")] = "legacy",
    changes: Annotated[bool, Parameter(help="After the initial cycle, cycles with every kind of change.")] = True,
    seed: Annotated[int, Parameter(help="Decides who the people are.")] = 1,
    token_endpoint: Annotated[str | None, Parameter(help="Sign in with OAuth client credentials there.")] = None,
    client_id: Annotated[str, Parameter(help="Client identifier for the token endpoint.")] = "",
    as_json: AsJson = False,
) -> int:
    """Run provisioning cycles of the emulated Entra against a target, and record every request with its answer."""
    if dialect not in ("legacy", "flag"):
        raise Failure(f"--dialect {dialect}: must be legacy or flag", WRONG_USE)
    return code_of(
        importlib.import_module("deploy.recordings").record(
            file,
            tenant_url=tenant_url,
            token_file=token_file,
            mapping=mapping,
            people=people,
            groups=groups,
            dialect=dialect,
            changes=changes,
            seed=seed,
            token_endpoint=token_endpoint,
            client_id=client_id,
            as_json=as_json,
        )
    )


@entra_commands.command(
    help_epilogue="Examples:\n"
    "  provgate entra replay cycle.jsonl --tenant-url http://127.0.0.1:8080/scim/v2/observe-2 --token-file key\n"
    "  provgate entra replay cycle.jsonl --tenant-url ... --token-file key --rate 25/s --json"
)
def replay(
    file: Annotated[Path, Parameter(help="A recording, made by: provgate entra record")],
    /,
    *,
    tenant_url: Annotated[str, Parameter(help="The SCIM address to send it to; best one that holds nothing yet.")],
    token_file: Annotated[Path, Parameter(help="File with that target's key.")],
    rate: Annotated[str | None, Parameter(help="At most so many requests a second, e.g. 25/s.")] = None,
    as_json: AsJson = False,
) -> int:
    """Send a recording to another target and show where its answers differ, apart from ids, times and versions."""
    per_s = rate_of(rate)
    run = importlib.import_module("deploy.recordings").replay_file
    return code_of(run(file, tenant_url=tenant_url, token_file=token_file, rate=per_s, as_json=as_json))


def _existing(config: Path) -> Path:
    if not config.is_file():
        raise Failure(f"{config} is no file; name the configuration file with --config", WRONG_USE)
    return config
