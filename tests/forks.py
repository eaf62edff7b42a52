"""Commands in forks of this process: killed as any process is, without the seconds that imports take."""

import os
import signal
import sys

from fuzz.forks import begin_process, end_process, fork

from vlprompt.cli.app import main

HANG = 600  # seconds that only a process takes that hangs


class Fork:
    """What subprocess.Popen is, of a function that is called as the whole of a process; what it prints is together."""

    def __init__(self, act, *words, cwd=None, env=None):
        read, write = os.pipe()
        self.returncode = None

        def work():
            os.close(read)
            return _be_a_process(act, words, write, cwd, env)

        self.pid = fork(work)
        os.close(write)
        self.stdout = os.fdopen(read, encoding="utf-8", errors="replace")

    def communicate(self, timeout=None):
        """Wait for its end; gives all that it has said since. A process that hangs ends itself."""
        with self.stdout:
            said = self.stdout.read()
        self.wait()
        return said, None

    def wait(self, timeout=None):
        """Wait for its end; gives its exit status."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _be_a_process(act, words, output, cwd, env):
    """Begin and end as a process does, with nothing of the parent's but what is imported; gives the exit status."""
    signal.alarm(HANG)
    begin_process(output)
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
    end_process()
    return status


def give(*words, act=main, **where):
    """Give a command in a process of its own and wait for its end; gives its exit status and all that it has said."""
    fork = Fork(act, [str(word) for word in words], **where)
    said = fork.communicate()[0]
    return fork.returncode, said
