"""Print what connectors say about themselves into `connectors/README.md` and the setup pages: `python -m connectors.docs`.

Everything between the two markers of that file is made here from the specs and settings, and so are the marked parts of the pages
in `connectors/setup/` (`setup_pages.py`); a test fails when they are stale.
"""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from connectors import registry, setup_pages
from schemas.config import Secret
from schemas.specs import Attribute, Spec

BEGIN = "<!-- printed by python -m connectors.docs; do not edit below -->"
END = "<!-- end of what is printed -->"
README = Path(__file__).with_name("README.md")

SUPPORT = {
    "documented": "built from the vendor's public interface",
    "assumed": "the vendor publishes no usable interface; the contract is ours, behind one thin client",
}


def printed() -> str:
    """The part of the page that comes from the connectors, one section each, in the order of their names."""
    return "\n".join(_section(name) for name in sorted(registry.SHIPPED))


def with_printed(page: str) -> str:
    """The page with its printed part made anew.

    Raises:
        ValueError: the page has lost its markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{printed()}\n{END}{after}"


def _section(name: str) -> str:
    connector = registry.load(name)
    spec = connector.spec
    lines = [f"### {spec.title} (`{name}`)", "", *_facts(spec)]
    if (setup_pages.FOLDER / f"{name}.md").is_file():
        lines.append(f"- Setup, step by step, for the Entra admin: [setup/{name}.md](setup/{name}.md)")
    lines.append("")
    notes = README.with_name(f"{name}.md")
    if notes.is_file():  # what an author wrote by hand, see `provgate connector new`
        lines += [notes.read_text(encoding="utf-8").strip(), ""]
    if spec.any_attribute:
        lines += ["Takes users of any shape; nothing is ignored.", ""]
    if spec.attributes:
        lines += [
            "| SCIM attribute (target in Entra's mapping) | map from | required | there | remark |",
            "|---|---|---|---|---|",
        ]
        lines += [_attribute(attribute) for attribute in spec.attributes]
        lines += [
            "",
            "Remove all other rows of the default mapping: they are kept and returned to Entra, but not applied.",
            "",
        ]
    if spec.groups_step:
        lines += [f"Groups: {spec.groups_step}", ""]
    if spec.pitfalls:
        lines += ["Known pitfalls:", "", *(f"- {pitfall}" for pitfall in spec.pitfalls), ""]
    rows = _settings(connector.settings_type)
    if rows:
        lines += ["| setting | default | meaning |", "|---|---|---|", *rows, ""]
    if connector.example:
        lines += ["Example:", "", "```toml", connector.example.strip(), "```", ""]
    return "\n".join(lines)


def _facts(spec: Spec) -> list[str]:
    limit = spec.rate_limit
    rate = f"{limit.calls} calls per {limit.per_s:g} s, shared by all workers" if limit else "none known"
    return [
        f"- Support: {spec.support} ({SUPPORT[spec.support]})",
        f"- Resources: {', '.join(spec.resources)}",
        f"- Recognises an account by: {', '.join(f'`{path}`' for path in spec.identity)}",
        f"- Rate limit: {rate}",
        f"- SCIM DELETE: {spec.on_delete}s the account there, unless `on_delete` says otherwise",
        *(
            [f"- Its list is up to date {spec.settle_s:g} s after a write"]
            if "list_accounts" in spec.capabilities
            else []
        ),
    ]


def _attribute(attribute: Attribute) -> str:
    cells = (
        f"`{attribute.path}`",
        attribute.source,
        "yes" if attribute.required else "",
        f"`{attribute.field}`" if attribute.field else "",
        attribute.note,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _settings(
    type_: type[msgspec.Struct], at: str = "", told: dict[type[msgspec.Struct], str] | None = None
) -> list[str]:
    """A row for every setting, and for those of the tables inside it; tables of one kind are told once."""
    rows = []
    told = {} if told is None else told
    for field in msgspec.structs.fields(type_):
        here = f"{at}{field.encode_name}"
        inner, place = _inner(field.type)
        if inner in told:
            rows.append(_setting(field, at, f"as `{told[inner]}`"))
            continue
        rows.append(_setting(field, at))
        if inner is not None:
            told[inner] = here
            rows += _settings(inner, f"{here}{place}.", told)
    return rows


def _inner(type_: Any) -> tuple[type[msgspec.Struct] | None, str]:
    """The struct of a table inside the settings, and how its place is written: `x.`, `x.NAME.` or `x[].`."""
    if typing.get_origin(type_) is Annotated:
        return _inner(typing.get_args(type_)[0])
    arguments = typing.get_args(type_)
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct) and type_ is not Secret:
        return type_, ""
    if typing.get_origin(type_) is dict:
        return _inner(arguments[1])[0], ".NAME"
    if typing.get_origin(type_) is tuple:
        return _inner(arguments[0])[0], "[]"
    found = [_inner(part) for part in arguments if part is not type(None)] if arguments else []
    return found[0] if len(found) == 1 else (None, "")


def _setting(field: Any, at: str, more: str = "") -> str:
    meaning = ""
    if typing.get_origin(field.type) is Annotated:
        told = [extra.description or "" for extra in typing.get_args(field.type)[1:] if isinstance(extra, Meta)]
        meaning = next(filter(None, told), "")
    meaning = "; ".join(filter(None, (meaning, more)))
    default = "required" if field.required else _default(field)
    others = [f"`{_json(word)}`" for word in _words(field.type) if word != field.default]
    before = ": " if field.required else ", of " if isinstance(field.default, tuple) else ", or "
    choices = f"{before}{', '.join(others)}" if others else ""
    return f"| `{at}{field.encode_name}` | {default}{choices} | {meaning} |".replace("\n", " ")


def _default(field: Any) -> str:
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "none" if value is None else f"`{_json(value)}`"


def _words(type_: Any) -> list[str]:
    """The words among which a setting chooses; none for other settings."""
    while typing.get_origin(type_) is Annotated:
        type_ = typing.get_args(type_)[0]
    if typing.get_origin(type_) is Literal:
        return [word for word in typing.get_args(type_) if isinstance(word, str)]
    return [word for part in typing.get_args(type_) if typing.get_origin(part) is Literal for word in _words(part)]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def main() -> int:
    """Rewrite the pages."""
    README.write_text(with_printed(README.read_text(encoding="utf-8")), encoding="utf-8")
    for page in setup_pages.pages():
        page.write_text(setup_pages.with_printed(page.stem, page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
