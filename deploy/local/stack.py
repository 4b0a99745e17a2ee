"""One LocalStack (S3, SQS, SNS, KMS, STS, IAM, SSM, CloudFormation) for as long as somebody needs it.

    stack.py run -- CMD ARGS…    runs CMD beside a fresh LocalStack and exits as CMD does

It listens on a free port of 127.0.0.1 only, keeps everything in a temporary folder, and is gone without a trace
afterwards, also after Ctrl-C or SIGTERM. CMD finds it by REPLICATOR_LOCALSTACK_URL.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_DIR = Path(
    os.environ.get("S3_REPLICATOR_BUILD_DIR")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3-replicator"
)
PYTHON = BUILD_DIR / "venv" / "bin" / "python"
ENCRYPTION_CLIENT = BUILD_DIR / "encryption-client" / "bin" / "python"
SCHEMATHESIS = BUILD_DIR / "schemathesis" / "bin" / "python"
RCLONE = BUILD_DIR / "peers" / "bin" / "rclone"
KEPT_LOG = BUILD_DIR / "localstack.log"
SERVICES = ("s3", "sqs", "sns", "kms", "sts", "iam", "ssm", "cloudformation")
# It takes about 10 s on 2 cores, and longer while they compile.
READY_SECONDS_MAX = 180
STOP_SECONDS_MAX = 15


@dataclass(frozen=True)
class Stack:
    """A running LocalStack."""

    url: str
    folder: Path
    log: Path


@contextlib.contextmanager
def running() -> Iterator[Stack]:
    """Yields a LocalStack that answers; stops it, and removes what it wrote, however the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="s3-replicator-"))
    try:
        with listening() as (listener, url), started(folder, listener) as process:
            stack = Stack(url, folder, folder / "localstack.log")
            listener.close()  # LocalStack holds it now: when it dies, the port refuses instead of hanging
            wait_until_ready(stack, process)
            yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """Yields a socket on a free port, which nobody can take before LocalStack is up."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def started(folder: Path, listener: socket.socket) -> Iterator[subprocess.Popen]:
    """Yields LocalStack's process, serving the socket."""
    fd = listener.fileno()
    with open(folder / "localstack.log", "wb") as log:
        process = subprocess.Popen(
            [PYTHON, Path(__file__).resolve(), "serve", str(fd)],
            env=environment(folder, listener.getsockname()[1]),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[fd],
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def environment(folder: Path, port: int) -> dict[str, str]:
    """What LocalStack is told; nothing of the caller's AWS settings gets through."""
    (folder / "tmp").mkdir()
    return clean_environment() | {
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "LOCALSTACK_HOST": f"127.0.0.1:{port}",
        "SQS_ENDPOINT_STRATEGY": "path",  # else queue URLs carry a host name that has to be looked up
        "SERVICES": ",".join(SERVICES),
        "EAGER_SERVICE_LOADING": "1",
        # The newer engine also looks into resources whose condition is false.
        "PROVIDER_OVERRIDE_CLOUDFORMATION": "engine-legacy",
        "S3_SKIP_KMS_KEY_VALIDATION": "0",
        "LOCALSTACK_VOLUME_DIR": str(folder / "volume"),
        "FILESYSTEM_ROOT": str(folder / "root"),
        "TMPDIR": str(folder / "tmp"),
        "OVERRIDE_IN_DOCKER": "0",  # inside a container it would use /tmp and /var/lib, shared by all
        "DNS_ADDRESS": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "LS_LOG": "warn",
    }


def clean_environment() -> dict[str, str]:
    """The caller's environment without its AWS settings, and with no proxy on the way to this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def wait_until_ready(stack: Stack, process: subprocess.Popen) -> None:
    """Returns once every service is loaded and answers."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"LocalStack ended with {process.returncode}:\n{tail(stack.log)}")
        if is_ready(stack.url):
            return
        time.sleep(0.2)
    raise SystemExit(f"LocalStack was not ready after {READY_SECONDS_MAX} s:\n{tail(stack.log)}")


def is_ready(url: str) -> bool:
    """Whether LocalStack says that all its services run."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/_localstack/health", timeout=5) as answer:
            health = answer.read().decode()
    except OSError:
        return False
    return all(f'"{service}": "running"' in health for service in SERVICES)


def stop(process: subprocess.Popen) -> None:
    """Ends the process and all of its group: politely first, then for good."""
    for wish, seconds in ((signal.SIGTERM, STOP_SECONDS_MAX), (signal.SIGKILL, STOP_SECONDS_MAX)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, wish)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"


def end_on_signals() -> None:
    """Makes SIGTERM, SIGHUP and Ctrl-C unwind the stack once, so that every `finally` runs to its end."""

    def unwind(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, unwind)


def run(command: list[str]) -> int:
    """Runs a command beside a LocalStack; its exit code."""
    end_on_signals()
    with running() as stack:
        print(f"LocalStack is up at {stack.url}; should this fail, its log is kept as {KEPT_LOG}", file=sys.stderr)
        there = {
            "REPLICATOR_LOCALSTACK_URL": stack.url,
            "REPLICATOR_PYTHON": str(PYTHON),
            "REPLICATOR_ENCRYPTION_CLIENT": str(ENCRYPTION_CLIENT),
            "REPLICATOR_SCHEMATHESIS": str(SCHEMATHESIS),
            "REPLICATOR_RCLONE": str(RCLONE),
            "REPLICATOR_ROOT": str(ROOT),
        }
        process = subprocess.Popen(
            command, env=clean_environment() | there, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait()
        finally:
            stop(process)
        if code != 0:
            shutil.copy(stack.log, KEPT_LOG)
    return code if code >= 0 else 128 - code


def serve(fd: int) -> None:
    """Becomes LocalStack, on a socket that is already listening. (By itself it would listen on all interfaces.)"""
    die_with_parent()
    from localstack.runtime import main
    from twisted.internet import endpoints

    def adopt(reactor: object, _port: int, **_options: object) -> object:
        return endpoints.AdoptedStreamServerEndpoint(reactor, fd, socket.AF_INET)

    endpoints.TCP4ServerEndpoint = adopt
    sys.argv = ["localstack"]
    main.main()


def die_with_parent() -> None:
    """Has Linux end this process when its parent is killed without a chance to clean up."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", "--", _, *_]:
            sys.exit(run(sys.argv[3:]))
        case ["serve", fd]:
            serve(int(fd))
        case _:
            sys.exit(__doc__)
