"""Where the repository and its parts lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS_FOLDER = ROOT / "vlprompt" / "methods"
CONFIGS_FOLDER = ROOT / "configs"
GOLDEN_FOLDER = ROOT / "tests" / "golden"
RESULTS_FOLDER = ROOT / "docs" / "results"
EQUATIONS_FILE = ROOT / "docs" / "reference" / "equations.yaml"
