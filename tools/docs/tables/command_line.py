"""The page of the command line, from Typer's tree of commands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.arguments import format_type
from docs.markdown_text import code, escape, fenced, page_title, table

HELP_OPTION = "--help"


def iter_commands() -> Iterator[tuple[str, Any]]:
    """Yield ("vlprompt data prepare", command) of all commands that do something."""
    import typer

    from vlprompt.cli.app import app

    yield from _walk("vlprompt", typer.main.get_command(app))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child, inner in children.items():
        yield from _walk(f"{name} {child}", inner)


def describe_parameter(parameter: Any) -> list[str]:
    """Return the cells of an argument's or option's row.

    Raises:
        ValueError: for one without help.
    """
    text = getattr(parameter, "help", None)
    names = [*parameter.opts, *parameter.secondary_opts]
    if not text:
        raise ValueError(f"{' '.join(names)}: expected a help text, got none. Write it where the option is declared.")
    is_argument = parameter.param_type_name == "argument"
    shown = [parameter.metavar or parameter.name.upper()] if is_argument else names
    is_flag = getattr(parameter, "is_flag", False)
    kind = "flag" if is_flag else _format_kind(parameter)
    default = "required" if parameter.required else _format_default(parameter.default, is_flag)
    return [", ".join(map(code, shown)), kind, default, escape(text)]


def _format_kind(parameter: Any) -> str:
    """Return the type of a parameter; newer versions of typer have it in a descriptor of their own."""
    descriptor = getattr(parameter, "type_descriptor", None)
    if descriptor is not None:
        return format_type(descriptor.annotation)
    return str(getattr(parameter.type, "name", parameter.type))


def _format_default(value: object, is_flag: bool) -> str:
    """Return a default as it is typed; "" for none, and for one that is computed."""
    if is_flag or not isinstance(value, str | int | float | Path):
        return ""
    return code(value)


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Command line", "Every command, its arguments and options. `vlprompt COMMAND --help` prints the same."
    )
    commands = list(iter_commands())
    rows = [[f"[{code(name)}](#{_anchor(name)})", escape(_summary(command))] for name, command in commands]
    lines += table(["command", "what it does"], rows)
    for name, command in commands:
        lines += [f"## {name} {{ #{_anchor(name)} }}", "", *_describe_help(command)]
        lines += fenced("text", _usage(name, command))
        parameters = [p for p in command.params if HELP_OPTION not in p.opts and not getattr(p, "hidden", False)]
        if parameters:
            lines += table(["name", "type", "default", "what it does"], map(describe_parameter, parameters))
    return "\n".join(lines)


def _anchor(name: str) -> str:
    return name.removeprefix("vlprompt ").replace(" ", "-")


def _summary(command: Any) -> str:
    return (command.help or "").strip().split("\n\n")[0]


def _describe_help(command: Any) -> list[str]:
    if not command.help:
        raise ValueError(f"{command.name}: expected a docstring, got none. Write what the command does.")
    lines = []
    for part in command.help.replace("\b", "").strip().split("\n\n"):
        is_block = "\n  " in part or part.startswith("  ")
        lines += fenced("text", part) if is_block else [escape(part), ""]
    return lines


def _usage(name: str, command: Any) -> str:
    arguments = [
        (p.metavar or p.name.upper()) if p.required else f"[{p.metavar or p.name.upper()}]"
        for p in command.params
        if p.param_type_name == "argument"
    ]
    return " ".join([name, *(argument.replace("[[", "[").replace("]]", "]") for argument in arguments), "[OPTIONS]"])
