"""Identify the process that owns a point, and find out whether it has died."""

import os
import pathlib
import platform


def me() -> str:
    """Return the identity of this process."""
    return process_identity(os.getpid()) or f"{platform.node()} {os.getpid()}"


def process_identity(pid: int) -> str:
    """Return an identity that survives `os.execve` and PID reuse: boot id, PID namespace, PID, start time.

    '' where the system has no /proc, or no such process.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid} {started}"
    except OSError:
        return ""


def is_dead(identity: str) -> bool:
    """Return whether `identity` is of this machine and its process has ended. Other machines are never dead."""
    here, parts = me().split(), identity.split()
    if len(parts) != 4 or parts[:2] != here[:2]:
        return False
    now = process_identity(int(parts[2]))
    return now != identity if now else not pathlib.Path("/proc", parts[2]).exists()
