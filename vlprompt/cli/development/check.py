"""The command `vlprompt check`."""

from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import BackboneOption

if TYPE_CHECKING:
    from vlprompt.testing.case import MethodCase
    from vlprompt.testing.suite import CheckResult

console, error_console = make_console(), make_console(stderr=True)
STYLES = {"passed": "green", "skipped": "yellow", "failed": "bold red"}


def check(
    method: Annotated[str, typer.Argument(help="The method: my_package.mine:Mine, or a name of `vlprompt list`.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Its settings, as in method.n_ctx=4.", metavar="[KEY=VALUE]...")
    ] = None,
    backbone: BackboneOption = None,
) -> None:
    """Hold a method to what every method must do: gradients, saved states, batches, class names, lessons, runs.

    Each check prints one line. It runs on real digits and a tiny random CLIP, or on made-up texts and a tiny random
    language model where the method asks for one; --backbone names another backbone. The exit status is 1 where a check
    failed.
    """
    from vlprompt.testing.suite import CHECKS, Check, suits

    case = _build_case(method, settings or [], backbone)
    _choose_threads(case)
    _show_case(case)
    checks = [Check(function, case) for function in CHECKS if suits(function, case)]
    width, results, start = max(len(one.name) for one in checks), list["CheckResult"](), perf_counter()
    for one in checks:
        with error_console.status(f"{one.name}: {one.description}"):
            result = one.run()
        same = next((other.name for other in results if result.reason and other.reason == result.reason), None)
        results.append(result)
        console.print(f"{result.status:7}", style=STYLES[result.status], end=f" {one.name:{width}}  ", highlight=False)
        console.print(f"as {same}" if same else result.reason or one.description, highlight=False, soft_wrap=True)
    counts = {status: sum(result.status == status for result in results) for status in STYLES}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    console.print(f"{summary} ({perf_counter() - start:.1f} s)", highlight=False)
    if counts["failed"]:
        raise typer.Exit(1)


def _build_case(method: str, settings: list[str], backbone: str | None) -> "MethodCase":
    """Build the method under check; ValueError for a class that is none, and for settings that it does not have."""
    from vlprompt.config.build import resolve_class
    from vlprompt.config.resolve import complete_arguments, load_layered_config
    from vlprompt.testing.case import MethodCase

    if wrong := [text for text in settings if not text.startswith("method.") or "=" not in text]:
        raise ValueError(
            f"check: expected settings of the method as method.KEY=VALUE, got {wrong[0]!r}. Write method.{wrong[0]}"
            f"{'' if '=' in wrong[0] else '=VALUE'}."
        )
    cls = resolve_class("method", method)
    config = load_layered_config(method, overrides=settings)
    own = {key: value for key, value in config.values["method"].items() if key != "name"}
    case = MethodCase(cls, own, backbone)
    complete_arguments("method", cls, {**case.assumptions, **own}, config)  # its errors name the option
    case.build()
    return case


def _choose_threads(case: "MethodCase") -> None:
    """Use one thread of torch for a backbone that more would only slow."""
    import torch

    from vlprompt.backbones.schemes import choose_threads

    if (threads := choose_threads(case.backbone.spec)) is not None:
        torch.set_num_threads(threads)


def _show_case(case: "MethodCase") -> None:
    from vlprompt.core.towers import LanguageTower

    data = "made-up texts" if case.has_texts else "digits"
    is_tiny = isinstance(case.backbone, LanguageTower) and "vlprompt-language-model-" in case.backbone.spec
    backbone = "a tiny random language model" if is_tiny else case.backbone.spec
    console.print(f"{case.name} on {backbone}, {data}", highlight=False, soft_wrap=True)
    for name, value in case.assumptions.items():
        text = " ".join(f"method.{name}{'' if key == 'name' else f'.{key}'}={v}" for key, v in value.items())
        console.print(f"assumed: {text}", style="yellow", highlight=False, soft_wrap=True)
