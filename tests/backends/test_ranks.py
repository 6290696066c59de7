"""Particles over several processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from threading import Event

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore

from swamp.backends import Particle, Sequential, Ticket, TrainRequest
from swamp.backends.coordinator import Coordinator, Member
from swamp.backends.data_parallel import SynchronisedBatchNorm
from swamp.backends.distributed import FolderProgress
from swamp.errors import Diverged, Interrupted, RankFailed, SwampError
from swamp.masks import Mask
from swamp.training import Seed
from swamp.training.rng import isolated

from .conftest import _convolutional, _dropout
from .forked import SEEDS, TRAINING, RemoteSteps, assert_equal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ranks"), [(_convolutional, 3), (_dropout, 2)], ids=["convolutional", "dropout"], indirect=["model"]
)
def test_particles_are_bit_equal_to_those_of_one_process(ranks, together, trained):
    with together.led(ranks) as backend:
        assert_equal(
            trained(backend, together.model), trained(Sequential(together.model, together.task), together.model)
        )


@pytest.mark.pairwise
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "training",
    [TRAINING, replace(TRAINING, clip=0.05), replace(TRAINING, sam=0.2)],
    ids=["plain", "clip", "sam"],
)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("model", [_convolutional, _dropout], ids=["convolutional", "dropout"], indirect=True)
def test_data_parallel_particles_equal_particles_of_one_process(ranks, training, together, trained):
    seeds = SEEDS[: ranks // 2]
    with together.led(ranks, particles=1) as backend:
        ours = trained(backend, together.model, training, seeds=seeds, last=10)
    theirs = trained(Sequential(together.model, together.task), together.model, training, seeds=seeds, last=10)
    assert_equal(ours, theirs, within=1e-10)


@pytest.mark.slow
def test_ticket_and_mask_are_written_once_and_deleted_after_the_job(small, trained, monkeypatch):
    written: list[str] = []
    for kind in (Ticket, Mask):
        save = kind.save
        monkeypatch.setattr(kind, "save", lambda self, path, save=save: written.append(path.name) or save(self, path))
    with small.led(2) as backend:
        for epochs in (1, 2):
            trained(backend, small.model, replace(TRAINING, epochs=epochs))
    assert [name.split(".")[1] for name in written] == ["job-ticket", "job-mask"]
    assert not list(small.folder.glob(".job-*"))


def test_ranks_that_differ_are_refused_by_name(small):
    small.facts = lambda rank: {"torch": "2.0", "python": "3.11" if rank else "3.12"}
    expected = rf"python is 3.12 on rank 0 \(host .*, pid {os.getpid()}\), 3.11 on rank 1 \(host .*, pid \d+\)\."
    with pytest.raises(SwampError, match=expected), small.led(2):
        pass


@pytest.mark.slow
def test_a_rank_that_reads_another_mask_is_named(small, trained, monkeypatch):
    save = Mask.save
    inverted = lambda self, path: save(Mask({name: ~tensor for name, tensor in self.items()}), path)  # noqa: E731
    monkeypatch.setattr(Mask, "save", inverted)
    with (
        small.led(2) as backend,
        pytest.raises(SwampError, match=r"rank 1 \(host .*: this rank read ticket .* and mask"),
    ):
        trained(backend, small.model)


@pytest.mark.slow
def test_a_rank_that_does_not_find_the_ticket_is_named(small, trained, monkeypatch):
    monkeypatch.setattr(Ticket, "save", lambda self, path: None)
    expected = r"rank 1 \(host .* does not exist; .* file system that all hosts share"
    with small.led(2) as backend, pytest.raises(SwampError, match=expected):
        trained(backend, small.model)


@pytest.mark.slow
def test_a_particle_that_rank_0_does_not_find_is_named(small, trained, monkeypatch):
    small.timeout = 1.0
    monkeypatch.setattr(FolderProgress, "load_particle", lambda self, index: None)
    expected = r"particle 1, which another rank stored, is not found\. .* file system that all hosts share"
    with small.led(2) as backend, pytest.raises(SwampError, match=expected):
        trained(backend, small.model)


class At(FolderProgress):
    """Does something at the third step that a rank other than 0 takes."""

    def __init__(self, what: Callable[[], None]) -> None:
        self.what = what

    def on_step(self, index, step, total, snapshot):
        if step == 3:
            self.what()

    def on_finished(self, particle: Particle) -> None:
        pass


LONG = replace(TRAINING, epochs=2000)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "particles"), [(3, 99), (4, 2)], ids=["whole particles", "data parallel"])
def test_a_rank_that_dies_is_named_at_once(ranks, particles, small, trained):
    small.followed = lambda coordinator: At(lambda: os.kill(os.getpid(), signal.SIGKILL))
    expected = r"rank [12] \(host .*, pid \d+\) died"
    with small.led(ranks, particles) as backend, pytest.raises(RankFailed, match=expected) as error:
        trained(backend, small.model, LONG, seeds=SEEDS[:particles])
    assert error.value.exit_code == 4


@pytest.mark.slow
def test_a_rank_that_freezes_is_named_after_the_timeout(small, trained):
    small.timeout = 1.0
    small.followed = lambda coordinator: At(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    with small.led(2) as backend, pytest.raises(RankFailed, match=r"rank 1 \(host .*\) sent no heartbeat for"):
        trained(backend, small.model, LONG)


@pytest.mark.slow
def test_steps_taken_elsewhere_are_relayed(small, trained, monkeypatch):
    monkeypatch.setattr("swamp.backends.coordinator._HEARTBEAT", 0.02)
    monkeypatch.setattr("swamp.backends.distributed._RELAY_SECONDS", 0.02)
    remote = RemoteSteps(small.folder)
    with small.led(2) as backend:
        trained(backend, small.model, replace(TRAINING, epochs=60), progress=remote)
    assert remote.steps
    assert {(index, total) for index, _, total in remote.steps} == {(1, 180)}


@pytest.mark.slow
def test_a_failure_elsewhere_is_raised_as_what_it_was(small, trained):
    def diverge() -> None:
        raise Diverged("particle 1: the loss became nan.")

    def fault() -> None:
        raise ZeroDivisionError("one over nothing")

    for what, kind, text in ((diverge, Diverged, "particle 1"), (fault, RuntimeError, "rank 1(.|\n)*one over nothing")):
        small.pids = []
        small.followed = lambda coordinator, what=what: At(what)
        with small.led(2) as backend, pytest.raises(kind, match=text):
            trained(backend, small.model, LONG)


@pytest.mark.slow_cases("0")
@pytest.mark.parametrize("particles", [99, 1])
@pytest.mark.parametrize("who", [0, 1])
def test_asked_on_any_rank_all_stop_and_save_at_once(who, particles, small, trained):
    small.followed = lambda coordinator: At(coordinator.stop.set if who else lambda: None)
    with small.led(2, particles) as backend:

        class Ask(FolderProgress):
            def on_step(self, index, step, total, snapshot):
                if step == 5 and who == 0:
                    backend.coordinator.stop.set()

        with pytest.raises(Interrupted):
            trained(backend, small.model, LONG, progress=Ask(small.folder))


def test_batch_normalisation_of_one_process_is_torchs_own(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with isolated(Seed(0)):
            inputs = torch.randn(5, 3, 4, 4, dtype=torch.float64)
            target = torch.randn(5, 3, 4, 4, dtype=torch.float64)
        results = []
        for mode in (False, True):
            layer = nn.BatchNorm2d(3).double()
            given = inputs.clone().requires_grad_()
            if mode:
                with SynchronisedBatchNorm(dist.group.WORLD):
                    out = layer(given)
                    (out * target).sum().backward()
            else:
                out = layer(given)
                (out * target).sum().backward()
            results.append((out, given.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var))
        for one, two in zip(*results, strict=True):
            assert torch.allclose(one, two, rtol=0, atol=1e-12)
    finally:
        dist.destroy_process_group()


def test_a_process_of_another_machine_is_never_taken_for_dead():
    me = Member.here(0)
    assert Member(1, "other", 2**22 + 1, "another boot").is_dead(me) is False
    assert Member(1, me.host, 2**22 + 1, me.machine).is_dead(me) is True
    assert me.is_dead(me) is False


@pytest.mark.slow
def test_no_seeds_no_work(small, ticket_of, two_thirds):
    with small.led(2) as backend:
        assert backend.train(TrainRequest(Ticket({}, 0), Mask({}), TRAINING, [])) == []


def test_messages_to_a_store_that_is_gone_raise_rank_failed():
    server = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    coordinator = Coordinator(TCPStore("127.0.0.1", server.port, 2, is_master=False), 1, 2, Event())
    del server
    try:
        with pytest.raises(RankFailed, match="is gone: no connection to"):
            [coordinator.publish("job/1", n) for n in range(1000)]  # the first ones may still go into a buffer
        with pytest.raises(RankFailed, match="is gone: no connection to"):
            coordinator.wait("ended")
    finally:
        coordinator.close("was stopped")


_ALONE = """
import os, socket, sys
from threading import Event, Timer
from torch.distributed import TCPStore
from swamp.errors import Interrupted
from swamp.backends.coordinator import Coordinator


def wait(where):
    stop = Event()
    coordinator = None
    if where != "left":
        Timer(0.5, stop.set).start()
    try:
        if where == "rendezvous":
            # A port that somebody holds and nobody answers at.
            held = socket.create_server(("127.0.0.1", 0), backlog=0)
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1])}
            os.environ.update({**address, "RANK": "1", "WORLD_SIZE": "2"})
            Coordinator.rendezvous(stop, 120.0)
        else:
            store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
            coordinator = Coordinator(store, 0, 2, stop)
            if where == "left":
                other = Coordinator(TCPStore("127.0.0.1", store.port, 2, is_master=False), 1, 2, Event())
                coordinator.members.append(other.me)
                Timer(0.5, lambda: other.close("was stopped")).start()
            coordinator.mesh(1)
    except Interrupted as error:
        print(where, "interrupted:", error, flush=True)
    # As a run does. A heartbeat inside torch while the interpreter ends would abort the process.
    if coordinator:
        coordinator.close("was stopped")


for where in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        wait(where)
        sys.exit()
    print(where, "ended:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_asked_to_stop_while_torch_waits_for_a_rank_that_never_comes_it_stops():
    """Each rank is a process, whose interpreter must end too. Left to itself, torch would wait for minutes."""
    places = ["rendezvous", "mesh", "left"]
    done = subprocess.run([sys.executable, "-c", _ALONE, *places], capture_output=True, text=True, check=False)
    for where in places:
        assert re.search(rf"^{where} interrupted: (stopped|rank 1 .*was stopped)", done.stdout, re.MULTILINE), (
            done.stderr
        )
        assert f"{where} ended: 0\n" in done.stdout, done.stderr
