"""One network namespace a node, all on a bridge in a namespace of its own, with a rate limit on both ends of each
cable.

The bridge stands in its own namespace, not on the machine: no address can collide with the machine's or with another
run's, and no firewall of the machine (Docker's, for one) filters what crosses it.
"""

import json
import subprocess
from dataclasses import dataclass

from benchmarks.errors import EmulationError

INTERFACE = "eth0"
"""The name of a node's link, inside the node."""

_BRIDGE = "switch0"
_LATENCY_MS = 200
# A bucket of 64 KiB holds a few ms of a slow link. Fast links need a millisecond's worth, or the limiter's own clock
# slows them.
_LEAST_BURST = 65_536


@dataclass(frozen=True)
class Counters:
    """Bytes at a node: sent and received over its link, and sent from one of its ranks to another."""

    sent: int
    received: int
    loopback: int

    def since(self, earlier: "Counters") -> "Counters":
        """The bytes that came after ``earlier``."""
        return Counters(self.sent - earlier.sent, self.received - earlier.received, self.loopback - earlier.loopback)


class Network:
    """The links of one emulated cluster.

    Args:
        name: the run's name; namespaces are called ``<name>-n<node>`` and ``<name>-sw``.
        num_nodes: number of nodes.
    """

    def __init__(self, name: str, num_nodes: int) -> None:
        self._name = name
        self._num_nodes = num_nodes

    def create(self) -> None:
        """Make namespaces, bridge and links, without limits.

        Raises:
            EmulationError: the kernel refused; the message holds the command and its answer.
        """
        switch = self._switch
        _call("ip", "netns", "add", switch)
        _call("ip", "-n", switch, "link", "add", _BRIDGE, "type", "bridge")
        _call("ip", "-n", switch, "link", "set", _BRIDGE, "up", "addrgenmode", "none")
        for node in range(self._num_nodes):
            self._add_node(node)

    def _add_node(self, node: int) -> None:
        inside, switch, port = self.namespace(node), self._switch, f"port{node}"
        _call("ip", "netns", "add", inside)
        _call("ip", "link", "add", INTERFACE, "netns", inside, "type", "veth", "peer", "name", port, "netns", switch)
        # No IPv6 address: its announcements would be counted as wire bytes.
        _call("ip", "-n", switch, "link", "set", port, "master", _BRIDGE, "up", "addrgenmode", "none")
        _call("ip", "-n", inside, "link", "set", INTERFACE, "addrgenmode", "none")
        _call("ip", "-n", inside, "address", "add", f"{self.address(node)}/24", "dev", INTERFACE)
        _call("ip", "-n", inside, "link", "set", "lo", "up")
        _call("ip", "-n", inside, "link", "set", INTERFACE, "up")
        # The kernel remembers how a connection to a peer went and starts the next one from there: one run must not
        # shape the next.
        self._inside(node, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")

    def set_rate(self, node: int, mbit: float | None) -> None:
        """Limit both directions of a node's link to ``mbit`` Mbit/s; ``None`` lifts the limit."""
        for namespace, device in self._ends(node):
            if mbit is None:
                if self._rate(namespace, device) is not None:
                    _call("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")
                continue
            bits = round(mbit * 1e6)
            burst = max(_LEAST_BURST, bits // 8000)
            limiter = ["tbf", "rate", f"{bits}bit", "burst", f"{burst}b", "latency", f"{_LATENCY_MS}ms"]
            _call("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *limiter)

    def rates(self, node: int) -> tuple[float | None, float | None]:
        """The limits in force, read back from the kernel: Mbit/s out of the node and into it; ``None`` is no limit."""
        sent, received = (self._rate(namespace, device) for namespace, device in self._ends(node))
        return sent, received

    def counters(self, node: int) -> Counters:
        """Bytes since the link was made."""
        answer = _call("ip", "-n", self.namespace(node), "-s", "-j", "link", "show")
        stats = {link["ifname"]: link["stats64"] for link in json.loads(answer)}
        return Counters(
            sent=stats[INTERFACE]["tx"]["bytes"],
            received=stats[INTERFACE]["rx"]["bytes"],
            loopback=stats["lo"]["tx"]["bytes"],
        )

    def namespace(self, node: int) -> str:
        """The name of a node's namespace."""
        return f"{self._name}-n{node}"

    def address(self, node: int) -> str:
        """The IPv4 address of a node's link."""
        return f"10.77.0.{node + 1}"

    @property
    def _switch(self) -> str:
        return f"{self._name}-sw"

    def _ends(self, node: int) -> list[tuple[str, str]]:
        """What leaves the node is limited at its own end; what comes to it, at the bridge's end."""
        return [(self.namespace(node), INTERFACE), (self._switch, f"port{node}")]

    def _rate(self, namespace: str, device: str) -> float | None:
        answer = _call("tc", "-n", namespace, "-j", "qdisc", "show", "dev", device)
        rates = [qdisc["options"]["rate"] for qdisc in json.loads(answer or "[]") if qdisc["kind"] == "tbf"]
        return rates[0] * 8 / 1e6 if rates else None

    def _inside(self, node: int, *command: str) -> str:
        return _call("nsenter", f"--net=/run/netns/{self.namespace(node)}", *command)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = " (this kernel lacks the module `sch_tbf`)" if "qdisc kind is unknown" in done.stderr else ""
        raise EmulationError(f"`{' '.join(command)}`: {done.stderr.strip()}{hint}")
    return done.stdout
