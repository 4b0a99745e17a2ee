"""Runs one contender and reads from the kernel what it used."""

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass


class Failed(Exception):
    """A contender did not do its work."""


@dataclass
class Used:
    wall_seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    cpu_of_servers: float = 0.0
    stats: dict = None


def run(contender, is_done):
    """Runs it from the start of the work until it ends, or until the work is done."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | contender.environment
    # A file, because a pipe that nobody reads fills up and stops who writes to it.
    said = tempfile.TemporaryFile()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(contender.command, env=environment, stdin=quiet, stdout=quiet, stderr=said)
    begun, peak = time.monotonic(), 0
    while True:
        peak = max(peak, peak_rss_mib(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            wall = time.monotonic() - begun
            break
        if not contender.ends and is_done():
            wall = time.monotonic() - begun
            process.send_signal(signal.SIGTERM)
            _, status, usage = os.wait4(process.pid, 0)
            break
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        said.seek(0)
        raise Failed(f"{contender.name} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    return Used(wall, usage.ru_utime + usage.ru_stime, peak)


def peak_rss_mib(pid):
    """Returns the largest memory so far. The kernel's own sum counts what was there before the program began."""
    try:
        with open(f"/proc/{pid}/status") as file:
            peak = next((line for line in file if line.startswith("VmHWM")), "VmHWM: 0 kB")
    except FileNotFoundError:
        return 0
    return int(peak.split()[1]) / 1024


def cpu_of(pid):
    """Returns the CPU seconds that a process has used so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
