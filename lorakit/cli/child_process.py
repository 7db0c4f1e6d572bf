"""Run another command as a shell would, with the signals that are sent to us passed on."""

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)  # the command expects the system's default
SI_KERNEL = 0x80  # si_code of Linux for a signal that no process sent
WAIT_S = 0.5  # between checks whether the command has ended or another thread was handed a signal


def run_command(command: Sequence[str]) -> int:
    """Run a command as a shell would; returns its exit status, 128 + n if signal n ended it.

    It inherits our stdin, stdout and stderr, untouched. Signals sent to us are passed on, except a terminal's Ctrl-C,
    which the command receives by itself. A signal that we ignore (nohup) is ignored by the command too.

    Raises:
        OSError: the kernel cannot start it.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS: a signal sent to us alone does not reach the command
        return _exit_status(subprocess.call(list(command)))
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # the system would discard the status
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    awaited, taken = ours | {signal.SIGCHLD}, []
    # The kernel may hand a signal to a driver's thread, which does not block it; its default action would end us.
    handlers = {number: signal.signal(number, lambda number, _: taken.append(number)) for number in ours}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # they stay pending until we take them: none is lost
    try:
        early = list(_arrived(ours))
        child = os.posix_spawnp(command[0], list(command), os.environ, setsigmask=before, setsigdef=PYTHON_IGNORES)
        for info in early:  # including the terminal's: there was no command yet to receive it
            os.kill(child, info.si_signo)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _exit_status(os.waitstatus_to_exitcode(status))
            while taken:
                if (number := taken.pop(0)) != signal.SIGINT or not os.isatty(0):  # a terminal sends it to both
                    os.kill(child, number)
            info = signal.sigtimedwait(awaited, WAIT_S)
            if info is not None and info.si_signo != signal.SIGCHLD and not _from_terminal(info):
                os.kill(child, info.si_signo)
    finally:
        list(_arrived(ours))  # signals for a command that has ended have no receiver
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _exit_status(code: int) -> int:
    return 128 - code if code < 0 else code


def _arrived(numbers: Iterable[int]) -> Iterator[signal.struct_siginfo]:
    """Signals of these numbers that are pending."""
    while (info := signal.sigtimedwait(numbers, 0)) is not None:
        yield info


def _from_terminal(info: signal.struct_siginfo) -> bool:
    """Whether this is a Ctrl-C, which the kernel sends to the whole foreground group, rather than a `kill`."""
    return info.si_signo == signal.SIGINT and info.si_code == SI_KERNEL
