"""Two machines and a place outside them, as network namespaces of this machine joined by a bridge.

Everything is in namespaces of its own and removed in the end. It takes the right to make them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from train_process import MDM, PATIENCE

from mdm_apple.training.launch import RECOVERS

NODES, PORT = ("a", "b"), 29400
STORE = (
    "import sys, time; from torch.distributed import TCPStore; "
    "store = TCPStore(sys.argv[1], int(sys.argv[2]), is_master=True, wait_for_workers=False); "
    "print('ready', flush=True); time.sleep(3600)"
)


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout


@dataclass
class Network:
    """The nodes "a" and "b", and "hub", where the store of torchrun is."""

    logs: Path
    prefix: str = field(default_factory=lambda: f"mdm{os.getpid()}")
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def space(self, place: str) -> str:
        return self.prefix + place

    def address(self, place: str) -> str:
        return f"10.77.0.{1 + ('hub', *NODES).index(place)}"

    def make(self) -> None:
        hub = self.space("hub")
        for place in ("hub", *NODES):
            ip("netns", "add", self.space(place))
            ip("-n", self.space(place), "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{self.address('hub')}/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for node in NODES:
            peer = ("type", "veth", "peer", "name", "eth0", "netns", self.space(node))
            ip("-n", hub, "link", "add", f"to_{node}", *peer)
            ip("-n", hub, "link", "set", f"to_{node}", "master", "bridge", "up")
            address = ("addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            ip("-n", self.space(node), *address)
            self.link(node, up=True)

    def link(self, node: str, up: bool) -> None:
        """The cable of a node."""
        ip("-n", self.space(node), "link", "set", "eth0", "up" if up else "down")

    def start(self, place: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        given = {RECOVERS: "1", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        log = (self.logs / f"{place}.log").open("ab")
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space(place), *command],
            stdout=subprocess.PIPE if place == "hub" else log,
            stderr=log,
            env=os.environ | given,
        )
        log.close()
        self.processes.append(process)
        return process

    def start_store(self) -> None:
        process = self.start("hub", [sys.executable, "-c", STORE, self.address("hub"), str(PORT)])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

    def torchrun(self, node: str, nodes: str, asked: Sequence[str]) -> subprocess.Popen[bytes]:
        """An agent with one process, as docs/scale.md starts them."""
        conf = ("--rdzv-conf", "is_host=0,read_timeout=600")
        where = ("--rdzv-endpoint", f"{self.address('hub')}:{PORT}", *conf)
        how = ("--nnodes", nodes, "--nproc-per-node", "1", "--max-restarts", "100")
        what = ("--rdzv-backend", "c10d", "--rdzv-id", "run", "--local-addr", self.address(node))
        command = (sys.executable, "-m", "torch.distributed.run", *how, *what, *where)
        return self.start(node, [*command, str(MDM), *asked])

    def pids(self, place: str) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.space(place)).split()]

    def kill(self, place: str) -> None:
        """All processes of a node at once, as where the power fails."""
        for pid in self.pids(place):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while self.pids(place) and time.monotonic() < deadline:
            for process in self.processes:
                process.poll()
            time.sleep(0.01)

    def remove(self) -> None:
        for place in ("hub", *NODES):
            if self.space(place) in ip("netns", "list"):
                self.kill(place)
                ip("netns", "delete", self.space(place))
        for process in self.processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def network(logs: Path) -> Generator[Network]:
    """Two nodes and the store, running. Raises CalledProcessError or OSError without the right."""
    made = Network(logs)
    try:
        made.make()
        made.start_store()
        yield made
    finally:
        made.remove()
