"""Run a command on another machine: python enter.py FOLDER COMMAND ...

FOLDER/sys is mounted over /sys, and each file of FOLDER/proc over its namesake in /proc, in a mount namespace of this
process's own, without a network. Then the command is executed without capabilities, so that files without read bits
are closed to it as they are to an ordinary user. Works as root, and for others where the kernel lets them have
namespaces. Only the standard library is imported.
"""

import ctypes
import os
import sys
from pathlib import Path

NEW_MOUNTS, NEW_USER, NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DROP_FROM_BOUNDING_SET = 24  # prctl
CAPABILITIES = 64


def call(libc: ctypes.CDLL, function: str, *arguments: object) -> None:
    """A function of the C library.

    Raises:
        OSError: it failed.
    """
    if getattr(libc, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def enter(folder: Path) -> None:
    """Put this process on the machine in a folder.

    Raises:
        OSError: this user may not have namespaces here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    call(libc, "unshare", NEW_MOUNTS | NEW_NETWORK | (NEW_USER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    call(libc, "mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    call(libc, "mount", os.fsencode(folder / "sys"), b"/sys", None, BIND | RECURSIVE, None)
    for file in (folder / "proc").iterdir():
        call(libc, "mount", os.fsencode(file), os.fsencode(Path("/proc") / file.name), None, BIND, None)
    for capability in range(CAPABILITIES):
        libc.prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)  # fails for those that this kernel does not have


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
