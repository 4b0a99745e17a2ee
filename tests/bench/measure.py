"""Runs contenders and reads from the kernel what they used."""

import collections
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass


# Far more than any contender needs for the work that it is given here.
SECONDS_MAX = 1800


class Failed(Exception):
    """A contender did not do its work."""


@dataclass
class Used:
    wall_seconds: float
    cpu_seconds: float
    peak_rss_mib: float
    # What services said of the requests they sent, by service and operation.
    requests: dict


def run(contenders, is_done):
    """Runs them side by side from the start of the work until they end, or until the work is done, which their pids
    help to tell."""
    begun, running = time.monotonic(), [Running(contender) for contender in contenders]
    try:
        while any([one.goes_on() for one in running]):
            wall = time.monotonic() - begun
            if contenders[0].metrics and is_done([one.process.pid for one in running]):
                break
            if wall > SECONDS_MAX:
                raise Failed(f"not done after {SECONDS_MAX} s")
            time.sleep(0.02)
        wall = time.monotonic() - begun
        for one in running:
            one.stop()
        for one in running:
            one.check()
    finally:
        for one in running:
            one.kill()
    requests = sum((one.requests for one in running), collections.Counter())
    return Used(wall, sum(one.cpu_seconds for one in running), max(one.peak for one in running), requests)


class Running:
    """One process at work."""

    def __init__(self, contender):
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | contender.environment
        # A file, because a pipe that nobody reads fills up and stops who writes to it.
        self.said = tempfile.TemporaryFile()
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            contender.command, env=environment, stdin=quiet, stdout=quiet, stderr=self.said
        )
        self.contender, self.requests = contender, collections.Counter()
        self.peak, self.cpu_seconds, self.ended = 0, 0, False

    def goes_on(self):
        self.peak = max(self.peak, peak_rss_mib(self.process.pid))
        if not self.ended:
            self._wait(os.WNOHANG)
        return not self.ended

    def stop(self):
        if not self.ended:
            self.requests = requests_of(self.contender.metrics)
            self.process.send_signal(signal.SIGTERM)
            self._wait(0)

    def kill(self):
        if not self.ended:
            self.process.kill()
            self._wait(0)

    def check(self):
        if self.process.returncode != 0:
            self.said.seek(0)
            raise Failed(f"ended with {self.process.returncode}: {self.said.read().decode()[-2000:]}")

    def _wait(self, options):
        pid, status, usage = os.wait4(self.process.pid, options)
        if pid:
            self.ended, self.cpu_seconds = True, usage.ru_utime + usage.ru_stime
            self.process.returncode = os.waitstatus_to_exitcode(status)


def requests_of(url):
    """Reads what a daemon counted."""
    with urllib.request.urlopen(url) as answer:
        lines = answer.read().decode().splitlines()
    counts = collections.Counter()
    for line in lines:
        if line.startswith("s3_replicator_requests_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            counts[f"{labels['service'].upper()} {labels['operation']}"] += int(line.rsplit(" ", 1)[1])
    return counts


def peak_rss_mib(pid):
    """Returns the largest memory so far. The kernel's own sum counts what was there before the program began."""
    try:
        with open(f"/proc/{pid}/status") as file:
            peak = next((line for line in file if line.startswith("VmHWM")), "VmHWM: 0 kB")
    except FileNotFoundError:
        return 0
    return int(peak.split()[1]) / 1024


def rss_mib(pid):
    """Returns the memory of this moment."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cpu_of(pid):
    """Returns the CPU seconds that a process has used so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
