"""What is installed and what the package asks for, from the metadata of packages."""

import platform
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import ModuleType

DISTRIBUTION = "vlprompt"
DEVELOPMENT_EXTRAS = ("test", "docs", "dev")  # nothing that a user runs needs them
EXTRA_USES = {
    "hf": "CLIPs of transformers (hf_clip:...)",
    "huggingface": "datasets of the Hugging Face hub (huggingface:...)",
    "lm": "language models (hf:..., --task text)",
    "minilm": "a small sentence encoder that lies in a package",
    "export": "ONNX files (export --to onnx)",
    "serve": "the server (serve)",
    "hub": "sharing prompts on the Hugging Face hub (push)",
    "parquet": "tables in Parquet (predict)",
    "slurm": "sweeps on Slurm (sweep --on slurm)",
    "ray": "sweeps on Ray (sweep --on ray)",
    "search": "search by Optuna",
    "tensorboard": "TensorBoard (--track tensorboard)",
    "wandb": "Weights & Biases (--track wandb)",
    "mlflow": "MLflow (--track mlflow)",
    "trackio": "Trackio (--track trackio)",
    "report": "reports (report)",
    "umap": "pictures of features by UMAP",
}


@dataclass(frozen=True)
class Package:
    """A package that is asked for.

    Args:
        name: of the distribution.
        wanted: its range of versions, "" for any.
        installed: its version; None for none.
        extra: the extra that asks for it, "" for one that is always needed.
        fits: whether what is installed is in the range.
    """

    name: str
    wanted: str
    installed: str | None
    extra: str
    fits: bool

    @property
    def state(self) -> str:
        """Return "ok", "missing" or "outside the range"."""
        return "ok" if self.fits else "missing" if self.installed is None else "outside the range"


@cache
def find_version(package: str) -> str | None:
    """Return the installed version of a package, None for none."""
    try:
        return version(package)
    except PackageNotFoundError:  # or a checkout on the path that is not installed
        return None


def read_packages() -> list[Package]:
    """Return what is always needed, Python first, and what each extra needs besides.

    A package that several extras ask for is listed with each, since their ranges may differ. A checkout without
    metadata gives [].
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        requirements = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return []
    python, wanted = platform.python_version(), (metadata(DISTRIBUTION).get_all("Requires-Python") or [""])[0]
    packages = [Package("python", wanted, python, "", SpecifierSet(wanted).contains(python, prereleases=True))]
    for extra in ("", *list_extras()):
        for requirement in requirements:
            marker = requirement.marker
            applies = marker is None if not extra else marker is not None and marker.evaluate({"extra": extra})
            if applies and requirement.name != DISTRIBUTION:
                installed = find_version(requirement.name)
                fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
                packages.append(Package(requirement.name, str(requirement.specifier), installed, extra, fits))
    return packages


def list_extras() -> list[str]:
    """Return the extras for users: "hf", "lm" ..."""
    return [name for name in metadata(DISTRIBUTION).get_all("Provides-Extra") or () if name not in DEVELOPMENT_EXTRAS]


def describe_missing_extras(packages: list[Package]) -> list[str]:
    """Return a line for each extra that is not complete: what does not work, and how to install it."""
    lines = []
    for extra in dict.fromkeys(package.extra for package in packages if package.extra):
        lacking = [f"{p.name} {p.state}" for p in packages if p.extra == extra and not p.fits]
        if lacking:
            use = EXTRA_USES.get(extra, f"the extra {extra}")
            lines.append(f"{use}: pip install '{DISTRIBUTION}[{extra}]' ({', '.join(lacking)})")
    return lines


def require_package(package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package; OSError that names the extra which installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise OSError(
            f'{purpose}: expected {package}, got no such package. Install it by: pip install "vlprompt[{extra}]".'
        ) from error
