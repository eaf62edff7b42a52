"""Read the weights of a TorchScript archive, the form in which OpenAI published CLIP, without running what is in it."""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGE_TYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64,
        "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
MAX_DEPTH = 20  # modules in each other; CLIP's are 6
MAX_COMPRESSED_BYTES = 2**24  # of one file; torch compresses code only
TENSOR_NAMES = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*?)\]", re.MULTILINE)


class ScriptObject:
    """An object of a class that the archive's code defines; only its attributes are read."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


def read_script_weights(path: Path) -> dict[str, Tensor] | None:
    """Return the parameters and buffers of a TorchScript archive by their names, None for a file of another kind.

    The archive's pickle may name tensors, their storages and classes of its own code. That code is not run.

    Raises:
        pickle.UnpicklingError: where the pickle names anything else.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        root = next((name.removesuffix("constants.pkl") for name in archive.namelist() if _is_constants(name)), None)
        if root is None:
            return None
        compressed = [m.file_size for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
        if max(compressed, default=0) > MAX_COMPRESSED_BYTES:
            raise pickle.UnpicklingError("TorchScript archive: expected stored tensors, got compressed ones.")
        module = _ArchiveUnpickler(archive, root).load()
        return dict(_iter_tensors(module, "")) if isinstance(module, ScriptObject) else {}


def _is_constants(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/constants.pkl")


class _ArchiveUnpickler(pickle.Unpickler):
    """Unpickle a TorchScript module to ScriptObjects, dicts, lists and tensors."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}
        self.classes: dict[str, type[ScriptObject]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self._find_script_class(module, name)
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view_storage
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _return_first
        raise pickle.UnpicklingError(f"TorchScript archive: expected tensors and modules, got {module}.{name}.")

    def _find_script_class(self, module: str, name: str) -> type[ScriptObject]:
        """Return a class for one of the archive, which knows the names of its parameters and buffers."""
        qualified_name = f"{module}.{name}"
        if qualified_name not in self.classes:
            file = f"{self.root}code/{module.replace('.', '/')}.py"
            code = self.archive.read(file).decode("utf-8") if file in self.archive.namelist() else ""
            body = re.split(r"^class ", code.partition(f"class {name}(Module):\n")[2], maxsplit=1, flags=re.MULTILINE)[
                0
            ]
            tensor_names = re.findall(r'"([^"]+)"', " ".join(TENSOR_NAMES.findall(body)))
            self.classes[qualified_name] = type(name, (ScriptObject,), {"tensor_names": frozenset(tensor_names)})
        return self.classes[qualified_name]

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor on the CPU."""
        kind, dtype, key, _device, size = pid
        if kind != "storage" or not str(key).isalnum():
            raise pickle.UnpicklingError(f"TorchScript archive: expected a storage, got {kind!r} {key!r}.")
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=size) if size else torch.empty(0).to(dtype)
            )
        return self.storages[key]


def _view_storage(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *options: Any
) -> Tensor:
    """Return a tensor in a storage; UnpicklingError for one of more values than the storage has, or a lazy one."""
    _requires_grad, _hooks, *metadata = options
    if math.prod(size) > storage.numel() or any(metadata):
        raise pickle.UnpicklingError(f"TorchScript archive: expected plain weights, got a tensor of {size} in a view.")
    return storage.as_strided(size, stride, offset)


def _return_first(value: Any, *_: Any) -> Any:
    return value


def _iter_tensors(module: ScriptObject, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module and the modules in it."""
    if prefix.count(".") > MAX_DEPTH:
        raise pickle.UnpicklingError(f"TorchScript archive: expected at most {MAX_DEPTH} modules in each other.")
    for name, value in module.attributes.items():
        if isinstance(value, ScriptObject):
            yield from _iter_tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and name in type(module).tensor_names:  # type: ignore[attr-defined]
            yield prefix + name, value
