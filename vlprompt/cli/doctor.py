"""The command `vlprompt doctor`: what is installed, seen and set, and what is missing for what."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import RootOption, set_data_root

if TYPE_CHECKING:
    from rich.table import Table

console = make_console()
OTHER_VARIABLES = (  # of libraries, which change where files are looked for, or what is computed on what
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "TORCH_HOME"),
    *("XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"),
)
GIGABYTE = 10**9


def doctor(
    root: RootOption = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What is installed, which devices, caches and data are seen, and what is missing for what. Status 1: broken."""
    set_data_root(root)
    report = build_report()
    if json:
        from json import dumps

        console.print(dumps(report, indent=2), highlight=False, soft_wrap=True)
    else:
        _show_report(report)
    raise typer.Exit(1 if report["problems"] else 0)


def build_report() -> dict[str, Any]:
    """Return everything as values of JSON; "problems" are what has to be mended before a run can work."""
    from vlprompt.runtime.installation import describe_missing_extras, find_version, read_packages

    problems: list[str] = []
    packages = _collect(read_packages, "packages", problems) or []
    problems += [
        f"{p.name}: expected a version {p.wanted or 'of any number'}, got {p.installed or 'none'}. "
        f"Run pip install '{p.name}{p.wanted}'."
        for p in packages
        if not p.extra and not p.fits
    ]
    if not packages and not problems:
        problems.append("vlprompt: expected an installed package, got a checkout on the path. Run pip install -e .")
    report: dict[str, Any] = {
        "version": find_version("vlprompt"),
        "packages": [vars(p) | {"state": p.state} for p in packages],
        "devices": _collect(_read_devices, "torch", problems),
        "caches": _collect(_read_caches, "caches", problems),
        "data": _collect(_read_data, "data", problems),
        "environment": _read_environment(problems),
    }
    folders = {"--root": report["data"]["root"]} if report["data"] else {}
    folders |= {"--feature-cache": report["caches"]["features"]["folder"]} if report["caches"] else {}
    for setting, folder in folders.items():
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            problems.append(f"{setting}: expected a folder, got the file {folder!r}. Name another place.")
    return report | {"missing": describe_missing_extras(packages), "problems": problems}


def _collect(read: Any, subject: str, problems: list[str]) -> Any:
    """Return what a function reads; an error becomes a problem, so that the rest of the report is still made."""
    try:
        return read()
    except Exception as error:  # a broken library raises anything when it is imported
        is_told = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
        message = str(error) if is_told else f"{subject}: {type(error).__name__}: {error}"
        problems.append(" ".join(message.split()))
        return None


def _read_devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "bf16": True,
        }
    ]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        bytes_free, bytes_in_all = torch.cuda.mem_get_info(i)
        memory = {"memory_gb": round(bytes_in_all / GIGABYTE, 1), "free_gb": round(bytes_free / GIGABYTE, 1)}
        has_bf16 = properties.major >= 8 or torch.version.cuda is None  # in hardware: from Ampere on
        devices.append({"device": f"cuda:{i}", "name": properties.name, **memory, "bf16": has_bf16})
    return devices


def _read_caches() -> dict[str, dict[str, Any]]:
    from vlprompt.runtime.settings import SETTINGS

    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hub = Path(os.environ.get("HF_HOME") or user_cache / "huggingface").expanduser() / "hub"
    weights = Path(os.environ.get("TORCH_HOME") or user_cache / "torch").expanduser() / "hub"
    folder = SETTINGS.get_cache_folder()
    features: dict[str, Any] = {"folder": None if folder is None else str(folder)}
    if folder is not None:
        sizes = [file.stat().st_size for file in folder.glob("*-*/*") if file.is_file()]
        nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        features |= {"exists": folder.is_dir(), "gb": round(sum(sizes) / GIGABYTE, 3)}
        features |= {"limit_gb": SETTINGS.get_cache_bytes() / GIGABYTE, "writable": os.access(nearest, os.W_OK)}
    hub = Path(os.environ.get("HF_HUB_CACHE") or hub).expanduser()
    return {
        "features": features,
        "hugging face hub": {"folder": str(hub), "exists": hub.is_dir(), "models": len([*hub.glob("models--*")])},
        "torch hub": {"folder": str(weights), "exists": weights.is_dir()},
    }


def _read_data() -> dict[str, Any]:
    from vlprompt.data.cards import list_cards, load_card
    from vlprompt.data.inspection import is_available
    from vlprompt.runtime.settings import SETTINGS

    cards = {name: load_card(name) for name in list_cards()}
    here = {name for name, card in cards.items() if is_available(card)}
    built_in = {name for name in here if getattr(cards[name], "loader", None) is not None}
    root = SETTINGS.get_data_root()
    return {
        "root": str(root.absolute()),
        "exists": root.is_dir(),
        "built_in": sorted(built_in),
        "here": sorted(here - built_in),
        "cards": len(cards),
    }


def _read_environment(problems: list[str]) -> dict[str, str]:
    from vlprompt.runtime import errors, settings

    ours = (
        settings.DATA_ROOT_VARIABLE,
        settings.CACHE_FOLDER_VARIABLE,
        settings.CACHE_SIZE_VARIABLE,
        errors.DEBUG_VARIABLE,
        "VLPROMPT_GOLDEN",  # of the tests
    )
    for name in sorted(name for name in os.environ if name.startswith("VLPROMPT_") and name not in ours):
        problems.append(f"{name}: expected a variable that is read, got another; {errors.suggest_nearest(name, ours)}")
    return {name: os.environ[name] for name in (*ours, *OTHER_VARIABLES) if name in os.environ}


def _show_report(report: dict[str, Any]) -> None:
    console.print(f"vlprompt {report['version'] or 'not installed'}", highlight=False)
    table = _make_table("package", "installed", "wanted", "", "for")
    for p in report["packages"]:
        table.add_row(p["name"], p["installed"] or "-", p["wanted"] or "any", p["state"], p["extra"] or "always")
    sections = {"": table, "devices": _table_devices(report), "caches": _table_caches(report)}
    sections |= {"data": _table_data(report), "environment": _make_table("", "")}
    for name, value in report["environment"].items():
        sections["environment"].add_row(name, value)
    for title, section in sections.items():
        if section.row_count:
            console.print(*filter(None, ["", title]), sep="\n")
            console.print(section, highlight=False)
    for title, lines in (("missing, where you need it", report["missing"]), ("to mend", report["problems"])):
        if lines:
            console.print(f"\n{title}")
            for line in lines:
                console.print(f"  {line}", highlight=False, soft_wrap=True)
    if not report["problems"]:
        console.print("\nnothing has to be mended", highlight=False)


def _make_table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), header_style="bold", padding=(0, 1, 0, 0))
    for column in table.columns:
        column.overflow = "fold"
    return table


def _table_devices(report: dict[str, Any]) -> "Table":
    table = _make_table("", "", "")
    for device in report["devices"] or ():
        if device["device"] == "cpu":
            size = f"{device['threads']} threads of {device['cpus']} CPUs"
        else:
            size = f"{device['free_gb']} of {device['memory_gb']} GB free"
        table.add_row(device["device"], device["name"], f"{size}{', bf16' if device['bf16'] else ''}")
    if report["devices"] and len(report["devices"]) == 1:
        table.add_row("cuda", "none seen", "")
    return table


def _table_caches(report: dict[str, Any]) -> "Table":
    table = _make_table("", "", "")
    for name, cache in (report["caches"] or {}).items():
        if cache["folder"] is None:
            table.add_row(name, "nowhere", "")
            continue
        facts = [f"{cache['gb']:.3g} of at most {cache['limit_gb']:g} GB"] if "gb" in cache else []
        facts += [f"{cache['models']} models"] if cache.get("models") else []
        facts += [] if cache["exists"] else ["not there yet"]
        facts += [] if cache.get("writable", True) else ["not writable: nothing is cached"]
        table.add_row(name, cache["folder"], ", ".join(facts))
    return table


def _table_data(report: dict[str, Any]) -> "Table":
    table, data = _make_table("", ""), report["data"]
    if data:
        table.add_row("root", data["root"] + ("" if data["exists"] else " (not there)"))
        table.add_row("here", ", ".join(data["here"]) or f"none of {data['cards'] - len(data['built_in'])} cards")
        table.add_row("built in", ", ".join(data["built_in"]))
    return table
