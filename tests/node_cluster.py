"""A Ray cluster of several nodes on one machine, in a process of its own that does as it is told on standard input.

Run as `python node_cluster.py NODE...`: starts a head without CPUs and the nodes named, of one CPU each, and prints its
address. Then `remove NODE` kills a node as a power cut would, and `add NODE` brings one.
"""

import os
import sys
from typing import Any

from processes import processes_with
from ray_processes import MARK, ClusterSetting, ToldProcess

NODE = "EBDIFF_TEST_NODE"  # in the environment of a node's processes
_STARTS = 3  # a node that is not up in 30 s is given up by Ray, which a busy machine may take


class NodeCluster:
    """The side of the test."""

    def __init__(self, setting: ClusterSetting, *nodes: str) -> None:
        self._setting = setting
        for attempt in range(_STARTS):
            self._process = ToldProcess(setting, __file__, *nodes)
            try:
                self.address = self._process.answer()
                return
            except AssertionError:
                setting.kill_all()
                if attempt + 1 == _STARTS:
                    raise

    def tell(self, *words: str) -> None:
        """Have something done, and wait until it is."""
        assert self._process.tell(" ".join(words)) == "done"

    def processes_of(self, node: str) -> list[str]:
        """The command lines of the processes on a node."""
        return list(processes_with(NODE, f"{node}-{self._setting.mark}").values())


def _serve(names: list[str]) -> None:
    from ray.cluster_utils import Cluster

    mark = os.environ[MARK]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes: dict[str, Any] = {}

    def add(name: str) -> None:
        os.environ[NODE] = f"{name}-{mark}"
        nodes[name] = cluster.add_node(num_cpus=1)

    def remove(name: str) -> None:
        cluster.remove_node(nodes.pop(name), allow_graceful=False)

    for name in names:
        add(name)
    print(">", cluster.address, flush=True)
    for line in sys.stdin:
        command, name = line.split()
        {"add": add, "remove": remove}[command](name)
        print("> done", flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
