"""The formats to which a learned prompt is exported, each a file of this room."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlprompt.experiments.learned.prompt import LearnedPrompt, load_prompt


@dataclass(frozen=True)
class ExportOptions:
    """Settings of an export.

    Args:
        classes: names or ids of the classes to export; None for those the prompt was trained on.
        int8: quantise the weights to 8 bits, where the format has a quantiser.
    """

    classes: tuple[str, ...] | None = None
    int8: bool = False


WriteFn = Callable[[LearnedPrompt, Path, ExportOptions], list[str]]  # returns lines that say what was written


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        description: what it writes and who reads it, in one line.
        function: "module:function" in this room, a WriteFn.
        device: where the backbone is loaded if no device is named; None for where `load` puts it.
    """

    description: str
    function: str
    device: str | None = None

    def load(self) -> WriteFn:
        """Import the function that writes it."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"vlprompt.experiments.export.{module}"), name)


FORMATS = {
    "peft": Format("an adapter of a language model in PEFT's files", "peft:write_adapter"),
    "transformers": Format("a language model with what was learned in its weights, in float32", "peft:write_merged"),
    "onnx": Format("a network for onnxruntime: pixels to probabilities of the classes", "onnx_file:write_onnx", "cpu"),
    "torch": Format("a program of torch.export: pixels to probabilities", "torch_program:write_program", "cpu"),
}


def export_prompt(
    source: str | Path,
    folder: Path,
    to: str,
    options: ExportOptions | None = None,
    backbone: str | None = None,
    device: str | None = None,
) -> list[str]:
    """Write a learned prompt in a format of another program.

    Args:
        source: the folder of a finished run, or what else `load_prompt` takes.
        folder: where to write, new or empty.
        to: a name in FORMATS.
        options: what to write.
        backbone: where the prompt's backbone is now; default where it was.
        device: as `load` takes it.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: for a format that has no place for the method, with the nearest one that has.
        OSError: where the folder can't be written or holds something, or a package is missing.
    """
    if to not in FORMATS:
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {to!r}. Name one of these.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"export: expected a new or empty folder, got {str(folder)!r}. Name another folder.")
    prompt = load_prompt(source, backbone, device or FORMATS[to].device)
    return FORMATS[to].load()(prompt, folder, options or ExportOptions())
