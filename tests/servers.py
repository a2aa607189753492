"""Servers that tests start on the loopback and end by their session: a Ray cluster of several nodes, MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BIN = Path(sys.executable).parent
# Nobody else can reach this cluster, and a token would be one more thing to hand to every process.
_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
# A lost node is known after three seconds instead of fifteen.
_QUICK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


def environment(**more: str) -> dict[str, str]:
    """The environment of what talks to these servers: none of Ray's variables but ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # a job's `python` is this one, also where its environment is not activated
    path = os.pathsep.join([str(_BIN), *filter(None, [kept.get("PATH")])])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), **_ENVIRONMENT, **more}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(what: str, reached: Callable[[], object], *, seconds: float = 300, every: float = 0.1) -> None:
    """Wait until `reached` gives something true; it may raise OSError while a server is not up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if reached():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(every)


@dataclass
class Server:
    """A process in a session of its own, so that all it starts can be found and ended with it."""

    command: list[str]
    log: Path
    process: subprocess.Popen = field(init=False)

    def __post_init__(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env=environment(), start_new_session=True
            )

    def processes(self) -> dict[int, str]:
        """Those of its session that live: process id and command line."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(entry.name)) == self.process.pid:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """End it at once with all it has started, as a machine that loses its power does."""
        while processes := self.processes():
            for pid in processes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()


class RayCluster:
    """A head without CPUs, which runs jobs' drivers, and nodes of one CPU each, all on this machine."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # short, for the sockets in it
        port, dashboard, client = free_ports(3)
        self.address, self.jobs = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self.nodes: list[Server] = []
        self._head = self._start(
            *("--head", f"--port={port}", "--num-cpus=0", f"--ray-client-server-port={client}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            f"--system-config={json.dumps(_QUICK)}",
        )
        wait_for("the head", lambda: self._get("/api/version"))

    def grow_to(self, count: int) -> None:
        """Start nodes until there are so many, and wait for them."""
        self.nodes = [node for node in self.nodes if node.process.poll() is None]
        wait_for("lost nodes to be known", lambda: self._living() == len(self.nodes) + 1)
        while len(self.nodes) < count:
            self.nodes.append(self._start(f"--address={self.address}", "--num-cpus=1", "--include-log-monitor=false"))
        wait_for(f"{count} nodes", lambda: self._living() == count + 1)

    def submit(self, *words: str, wait: bool = True, job: str | None = None) -> subprocess.CompletedProcess:
        """`ray job submit` of `python -m pmm_ray.run` with these words, from the checkout."""
        options = ([] if wait else ["--no-wait"]) + ([f"--submission-id={job}"] if job else [])
        for _ in range(30):
            ended = self.ray("job", "submit", *options, "--working-dir=.", "--", "python", "-m", "pmm_ray.run", *words)
            # What starts jobs on the head is up some seconds after what takes them.
            if "No available agent" not in ended.stdout:
                break
            time.sleep(2)
        return ended

    def ray(self, *words: str) -> subprocess.CompletedProcess:
        """The `ray` command, told where jobs go."""
        return subprocess.run(
            [_BIN / "ray", *words],
            cwd=ROOT,
            env=environment(RAY_API_SERVER_ADDRESS=self.jobs),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=800,
        )

    def runs(self, job: str) -> bool:
        """True; an AssertionError with the job's last lines if it has ended."""
        state = self._get(f"/api/jobs/{job}")
        assert state["status"] in ("PENDING", "RUNNING"), state["message"]
        return True

    def close(self) -> None:
        """End all of it."""
        for server in [*self.nodes, self._head]:
            server.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *options: str) -> Server:
        # Nodes that start at once in one folder take each other's sockets, and on one machine the agent's port.
        folder, (agent,) = tempfile.mkdtemp(prefix="n", dir=self._folder), free_ports(1)
        always = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]
        always += [f"--temp-dir={folder}", f"--dashboard-agent-listen-port={agent}"]
        return Server([str(_BIN / "ray"), "start", *always, *options], self._folder / "log")

    def _living(self) -> int:
        nodes = self._get("/nodes?view=summary")["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def _get(self, path: str) -> dict:
        with urllib.request.urlopen(self.jobs + path, timeout=5) as answer:
            return json.load(answer)


class Mlflow(Server):
    """`mlflow server` with its own database; it stores the artefacts itself."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        super().__init__(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
                *(f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artefacts"),
            ],
            folder / "log",
        )

    def ready(self) -> Mlflow:
        """Wait until it answers."""
        wait_for("MLflow", lambda: urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)
        return self
