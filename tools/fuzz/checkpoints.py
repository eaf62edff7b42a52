"""Checkpoints of torch and safetensors, whole, cut, flipped, of another model, and pickles with code."""

import io
import json
import os
import pickle
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.draw import damage
from fuzz.oracle import read_results
from fuzz.sandbox import Sandbox, chance
from fuzz.settings import write_photos

TIMM = "test_vit"  # the smallest model that timm has
CLIP = {  # open_clip's description of a tiny CLIP
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Code:
    """What a pickle runs when it is loaded: it writes the canary."""

    def __init__(self, canary: Path, stream: random.Random):
        self.canary, self.kind = canary, stream.randrange(4)

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            (os.system, (f"touch '{self.canary}'",)),
            (exec, (f"open({str(self.canary)!r}, 'w').close()",)),
            (open, (str(self.canary), "w")),
            (Path.touch, (self.canary,)),
        )[self.kind]


@cache
def build_state(family: str) -> dict[str, Any]:
    """Return the weights of a tiny model."""
    import torch

    torch.manual_seed(0)
    if family == "timm":
        import timm

        return timm.create_model(TIMM, num_classes=0).state_dict()
    from open_clip.model import CLIP as Model
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return Model(CLIP["embed_dim"], CLIPVisionCfg(**CLIP["vision_cfg"]), CLIPTextCfg(**CLIP["text_cfg"])).state_dict()


def spoil_state(state: dict[str, Any], stream: random.Random, canary: Path) -> tuple[Any, str]:
    """Return weights of another shape, type or kind, and what was done."""
    import torch

    state, name = dict(state), stream.choice(list(state))
    kind = stream.choice(("shape", "missing", "extra", "int", "half", "nan", "wrapped", "code", "code", "list", "text"))
    if kind == "shape":
        state[name] = torch.zeros(2, 3)
    elif kind == "missing":
        del state[name]
    elif kind == "extra":
        state["something.else"] = torch.zeros(3)
    elif kind in ("int", "half"):
        state[name] = state[name].to(torch.int64 if kind == "int" else torch.float16)
    elif kind == "nan":
        state[name] = torch.full_like(state[name], float("nan"))
    elif kind == "code":
        state[name if chance(stream, 0.5) else "code"] = Code(canary, stream)
    wrapped = {"wrapped": {"state_dict": state}, "list": list(state.values()), "text": "weights"}
    return wrapped.get(kind, state), kind


def encode(state: Any, form: str, stream: random.Random) -> bytes:
    """Return a checkpoint in one of the forms that exist."""
    import torch

    buffer = io.BytesIO()
    if form == "safetensors":
        from safetensors.torch import save

        return save({name: tensor.contiguous() for name, tensor in state.items()})
    if form == "pickle":
        return pickle.dumps(state, protocol=stream.randrange(6))
    torch.save(state, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


def smuggle(data: bytes, canary: Path, stream: random.Random) -> bytes:
    """Replace the pickle in a zip archive of torch by one with code."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            archive.writestr(info, pickle.dumps(Code(canary, stream), 2) if is_pickle else source.read(info))
    return target.getvalue()


def draw_file(family: str, stream: random.Random, canary: Path) -> tuple[bytes, str, str]:
    """Return the bytes of a checkpoint, its suffix, and what is wrong with it ("" for nothing)."""
    state: Any = build_state(family)
    form, fault = stream.choice(("zip", "zip", "legacy", "pickle", "safetensors", "safetensors")), ""
    if chance(stream, 0.5) and (form != "safetensors"):
        state, fault = spoil_state(state, stream, canary)
    data = encode(state, form, stream)
    if form == "zip" and chance(stream, 0.15):
        data, fault = smuggle(data, canary, stream), "code"
    elif chance(stream, 0.35):
        data, how = damage(data, stream)
        fault = f"{fault} {how}"
    suffix = ".safetensors" if form == "safetensors" else stream.choice((".pt", ".pth", ".bin"))
    if chance(stream, 0.1):
        suffix = stream.choice((".pt", ".safetensors", ".npz", "", ".jit"))
        fault = f"{fault} as {suffix}"
    return data, suffix, f"{fault} in a {form}" if fault else "pickle" if form == "pickle" else ""


def place(box: Sandbox, family: str, data: bytes, suffix: str) -> str:
    """Write the file; return the spec of its backbone."""
    if family == "timm":
        path = box.work / f"weights{suffix}"
        path.write_bytes(data)
        return f"timm:{TIMM}@{path.name}"
    folder = box.work / "clip"
    folder.mkdir()
    config = {"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    name = "open_clip_model.safetensors" if suffix == ".safetensors" else "open_clip_pytorch_model.bin"
    (folder / name).write_bytes(data)
    return f"open_clip:local-dir:{folder.name}"


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Run on a checkpoint; code in it must not run, and what is broken must be refused."""
    write_photos(box.work / "photos", stream, ("cat", "dog"))
    family = stream.choice(("timm", "timm", "clip"))
    data, suffix, fault = draw_file(family, stream, box.canary)
    spec = place(box, family, data, suffix)
    box.commands.append(f"# weights{suffix}: {fault or 'whole'}")
    outcome = box.call("run", "nearest_mean", "photos", "--backbone", spec, "--shots", "1", "-o", box.out)
    if outcome.status and not fault:
        box.violate("refused", f"whole weights: {outcome.line[-300:]}")
    must_refuse = ("shape", "missing", "list", "text", "cut", "empty", "junk", "code")
    if outcome.status == 0 and any(word in fault.split() for word in must_refuse):
        box.violate("in silence", f"weights that are wrong ({fault}) were taken")
    if outcome.status == 0:
        score = read_results(box.out)[0]["summary"]["accuracy"]
        if score != score or "nan" in fault.split():
            box.violate("wrong number", f"weights that are not numbers came to {score}")
