"""The formats to which a learned prompt is exported, each a file of this room."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.experiments.export.whole_folder import explain_folder_errors

if TYPE_CHECKING:
    from vlprompt.experiments.learned.prompt import LearnedPrompt


@dataclass(frozen=True)
class ExportOptions:
    """Settings of an export.

    Args:
        classes: names or ids of the classes to export; None for those the prompt was trained on.
        int8: quantise the weights to 8 bits, where the format has a quantiser.
    """

    classes: tuple[str, ...] | None = None
    int8: bool = False


WriteFn = Callable[["LearnedPrompt", Path, ExportOptions], list[str]]  # returns lines that say what was written


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        description: what it writes and who reads it, in one line.
        function: "module:function" in this room, a WriteFn.
        takes_classes: whether it reads `ExportOptions.classes`.
        quantises: whether it reads `ExportOptions.int8`.
        device: where the backbone is loaded if no device is named; None for where `load` puts it.
    """

    description: str
    function: str
    takes_classes: bool = False
    quantises: bool = False
    device: str | None = None

    def require_options(self, to: str, options: ExportOptions) -> None:
        """Raise ValueError for an option that the format does not read; to: its name."""
        unread = [
            ("--classes", options.classes is not None, self.takes_classes),
            ("--int8", options.int8, self.quantises),
        ]
        for option, is_set, is_read in unread:
            if is_set and not is_read:
                field = "takes_classes" if option == "--classes" else "quantises"
                others = [name for name, known in FORMATS.items() if getattr(known, field)]
                raise ValueError(
                    f"{option}: expected a format that reads it ({', '.join(others) or 'none does'}), got --to {to}. "
                    f"Leave {option} out."
                )

    def load(self) -> WriteFn:
        """Import the function that writes it."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"vlprompt.experiments.export.{module}"), name)


FORMATS = {
    "classes": Format("the classes as a matrix over image features, for NumPy", "classes:write_classes", True),
    "open_clip": Format(
        "a merged CLIP for plain open_clip, and its class matrix", "clip_model:write_clip_folder", True
    ),
    "timm": Format("a merged image tower with a linear head, for plain timm", "timm_model:write_timm_folder", True),
    "peft": Format("an adapter of a language model in PEFT's files", "peft:write_adapter"),
    "transformers": Format("a language model with what was learned in its weights, in float32", "peft:write_merged"),
    "onnx": Format(
        "a network for onnxruntime, pixels to probabilities", "network.onnx_file:write_onnx", True, True, "cpu"
    ),
    "torch": Format(
        "a program of torch.export, pixels to probabilities", "network.torch_program:write_program", True, False, "cpu"
    ),
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
    with explain_folder_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OSError(f"export: expected a new or empty folder, got {str(folder)!r}. Name another folder.")
    options = options or ExportOptions()
    FORMATS[to].require_options(to, options)
    from vlprompt.experiments.learned.prompt import load_prompt  # heavy, and the command line lists FORMATS

    return FORMATS[to].load()(load_prompt(source, backbone, device or FORMATS[to].device), folder, options)
