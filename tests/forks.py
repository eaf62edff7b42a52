"""Commands in forks of this process: killed as any process is, without the seconds that imports take."""

import atexit
import gc
import os
import signal
import sys
import traceback
import weakref

from vlprompt.cli.app import main

HANG = 600  # seconds that only a process takes that hangs


class Fork:
    """What subprocess.Popen is, of a function that is called as the whole of a process; what it prints is together."""

    def __init__(self, act, *words, cwd=None, env=None):
        read, write = os.pipe()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.close(read)
                status = _be_a_process(act, words, write, cwd, env)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(write)
        self.stdout = os.fdopen(read, encoding="utf-8", errors="replace")

    def communicate(self, timeout=None):
        """Wait for its end; gives all that it has said since. A process that hangs ends itself."""
        with self.stdout:
            said = self.stdout.read()
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return said, None

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


def _be_a_process(act, words, output, cwd, env):
    """Begin and end as a process does, with nothing of the parent's but what is imported; gives the exit status."""
    signal.alarm(HANG)
    atexit._clear()
    weakref.finalize._registry.clear()  # they are the parent's
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    sys.path[:] = [path for path in sys.path if path]  # the working directory is the command's to add
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
    status = 0
    try:
        act(*words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    gc.collect()
    weakref.finalize._exitfunc()
    atexit._run_exitfuncs()
    return status


def give(*words, act=main, **where):
    """Give a command in a process of its own and wait for its end; gives its exit status and all that it has said."""
    fork = Fork(act, [str(word) for word in words], **where)
    said = fork.communicate()[0]
    return fork.returncode, said
