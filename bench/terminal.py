"""A terminal without a person: runs a program on a pseudo-terminal and tells when a text appears on it."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

PROMPT = b"bench-prompt>"
# tmux changes to the other screen of the terminal and draws it.
DRAWN = b"\x1b[?1049h"
# In two halves, so that the echo of the typing is not taken for the prompt.
SET_PROMPT = b"PS1='bench-''prompt>'; clear\r"


class Terminal:
    """A program on a terminal of 80 × 24. Closing it hangs up, as closing a window does."""

    def __init__(self, command, environment):
        self.began = time.monotonic()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
                os.execvpe(command[0], command, environment)
            finally:
                os._exit(127)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.master)
        # Hung up, it ends by itself; what does not is killed, so that no run measures the one before.
        descriptor = os.pidfd_open(self.pid)
        ended, _, _ = select.select([descriptor], [], [], 5)
        if not ended:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
        os.waitpid(self.pid, 0)

    def type(self, text):
        os.write(self.master, text)

    def wait_for(self, text, patience=60):
        """Milliseconds from the start of the program until `text` was on the screen."""
        deadline = self.began + patience
        while text not in self.seen:
            readable, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError(f"{text!r} did not appear; last: {self.seen[-300:]!r}")
            try:
                self.seen += os.read(self.master, 65536)
            except OSError as error:
                raise RuntimeError(f"the program ended; last: {self.seen[-300:]!r}") from error
        return (time.monotonic() - self.began) * 1000
