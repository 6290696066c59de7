"""Two ranks of a training under DDP, forked from this process: they import nothing anew."""

import os
import socket
import traceback
from collections.abc import Callable


def on_two_ranks(work: Callable[[], object]) -> None:
    """Call `work` in two processes with the environment that torchrun gives them; both must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    children = [_forked(work, {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def _forked(work: Callable[[], object], environment: dict[str, str]) -> int:
    if child := os.fork():
        return child
    os.environ.update(environment)
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
