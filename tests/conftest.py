"""What is set before any test is collected; what several test files share is in shared.py."""

import gc
import os
import signal

os.environ.pop("COLUMNS", None)  # several test processes are given one, and a console keeps that for good
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the passes are tiny: more threads only wait for each other
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a suite that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """The process that only deals out tests to others (pytest -n) imports no library, which would take seconds."""
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("shared")


def pytest_collection_finish(session):
    """What is imported and collected stays to the end: the garbage collector need not look through it each time."""
    gc.collect()
    gc.freeze()
