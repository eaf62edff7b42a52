"""Attack the command line: tools/fuzz --cases N --seed S [--kind KIND], and --kills N.

Each case is drawn from (kind, seed, index), so `--kind KIND --seed S --index I` repeats it alone. What is held:
exit status 0 or 2 (others where they are documented), never a traceback, never a message of Python's own, never a
result whose data or numbers are not what the dataset has by an independent count, nothing lost that was finished,
nothing executed that lies in a file, no file written outside of the folders that were named. `--kills N` kills runs,
streams, searches, the feature cache and downloads N times by signal 9, at file events and at moments, and holds that
the same command then ends with what an undisturbed one gives. Exit status 1 when a rule was broken.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # `python tools/fuzz` puts this folder there; its modules are fuzz.NAME

from fuzz.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
