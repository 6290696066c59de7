"""Own loops without a task, and extra state that travels with the ticket and with each particle."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swamp
from swamp import SwampError
from swamp.backends import CustomTrainer, Particle, Ticket, TrainJob, TrainRequest
from swamp.backends.extra_state import copied_state, encoded
from swamp.errors import CorruptFile
from swamp.files import load_tensors, save_tensors
from swamp.masks import Mask
from swamp.training import Seed, Training

TRAINING = Training(epochs=2, batch_size=6, lr=0.1)
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1)]


def optimizer_state() -> dict[str, Any]:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


STATE = {
    "discriminator": nn.Linear(2, 2).state_dict(),
    "optimizer": optimizer_state(),
    "buffer": [torch.arange(3), torch.tensor(True), (1, 2.5, None, "text", float("inf"))],
    "step": 3,
    "empty": {},
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


def stepping(job: TrainJob) -> float:
    """Takes the steps asked for; the state counts them, and a buffer keeps the particle's seed."""
    for _ in range(job.steps):
        job.state["steps"] = job.state.get("steps", 0) + 1
        with torch.no_grad():
            for name, parameter in job.model.named_parameters():
                parameter += job.mask.get(name, 1) * torch.rand(())
        job.stepped()
    job.state["seeds"] = [*job.state.get("seeds", []), job.number]
    return 0.0


def test_a_loop_without_a_task_counts_in_its_own_steps(mlp: nn.Module) -> None:
    jobs: list[TrainJob] = []
    backend = CustomTrainer(mlp, None, lambda job: jobs.append(job) or stepping(job), steps_per_epoch=5)
    found = backend.train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS))
    assert [particle.steps for particle in found] == [10, 10]
    assert [(job.per_epoch, job.total, job.steps) for job in jobs] == [(5, 10, 10)] * 2
    whole = CustomTrainer(mlp, None, stepping, steps_per_epoch=1)
    assert whole.train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS))[0].steps == 2


def test_the_number_of_steps_must_be_known_and_agree(mlp: nn.Module, image_task: swamp.Task) -> None:
    with pytest.raises(SwampError, match="without a task needs steps_per_epoch"):
        CustomTrainer(mlp, None, stepping)
    with pytest.raises(SwampError, match="steps_per_epoch must be 1 or more, got 0"):
        CustomTrainer(mlp, None, stepping, steps_per_epoch=0)
    request = TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS)
    with pytest.raises(SwampError, match=r"steps_per_epoch=5, and the task's data give 3 steps of 6 examples"):
        CustomTrainer(mlp, image_task, stepping, steps_per_epoch=5).train(request)
    CustomTrainer(mlp, image_task, stepping, steps_per_epoch=3).train(request)


def test_state_is_stored_beside_the_weights_and_read_back_bit_for_bit(mlp: nn.Module, tmp_path: Any) -> None:
    ticket = Ticket(mlp.state_dict(), 3, STATE)
    ticket.save(tmp_path / "ticket.safetensors")
    again = Ticket.load(tmp_path / "ticket.safetensors")
    assert same(again.state, copied_state(STATE))
    assert set(again.weights) == set(ticket.weights)
    assert again.id == ticket.id != Ticket(mlp.state_dict(), 3).id
    torch.optim.AdamW(nn.Linear(2, 2).parameters()).load_state_dict(again.state["optimizer"])
    particle = Particle(mlp.state_dict(), 1, ticket.id, "mask", 0, 2, (0.5,), 1.0, STATE)
    particle.save(tmp_path / "particle.safetensors")
    loaded = Particle.load(tmp_path / "particle.safetensors")
    assert same(loaded.state, copied_state(STATE))
    assert set(loaded.weights) == set(particle.weights)


def test_a_file_with_half_of_its_state_is_damaged(mlp: nn.Module, tmp_path: Any) -> None:
    path = tmp_path / "ticket.safetensors"
    Ticket(mlp.state_dict(), 3, STATE).save(path)
    tensors, metadata = load_tensors(path)
    part = {name: value for name, value in tensors.items() if name != "extra-state:0"}
    save_tensors(path, part, metadata)
    with pytest.raises(CorruptFile, match="its extra state is not whole"):
        Ticket.load(path)
    save_tensors(path, tensors, {**metadata, "extra_state": json.dumps({"module": "os"})})
    with pytest.raises(CorruptFile, match="its extra state is not whole"):
        Ticket.load(path)


def test_what_cannot_be_stored_is_refused_with_its_name(mlp: nn.Module) -> None:
    for value, message in (
        ({"net": nn.Linear(1, 1)}, r"job.state\['net'\] is of type Linear: .*state_dict\(\)"),
        ({"a": [{"b": object()}]}, r"job.state\['a'\]\[0\]\['b'\] is of type object"),
        ({"a": {1.5: 0}}, r"job.state\['a'\] has the key 1.5"),
    ):
        with pytest.raises(SwampError, match=message):
            CustomTrainer(mlp, None, stepping, steps_per_epoch=1, state=value)


def test_a_state_is_copied_so_that_particles_do_not_share_it() -> None:
    buffer = torch.zeros(3)
    tensors, _ = encoded({"buffer": buffer})
    buffer += 1
    assert not tensors["0"].any()


def run(model: nn.Module, task: swamp.Task, method: str, seen: list[tuple[str, Any]]) -> list[swamp.Cycle]:
    def train(job: TrainJob) -> float:
        seen.append((job.name, copied_state(job.state)))
        return stepping(job)

    backend = CustomTrainer(model, task, train, state={"discriminator": torch.ones(2)})
    plan = swamp.Plan(method=method, sparsity=0.75, particles=(2,), cycles=2, barrier_points=0)
    return list(swamp.cycles(model, task, plan, Training(epochs=2, batch_size=6, swa=False), backend=backend))


@pytest.fixture
def float_task(image_task: swamp.Task) -> swamp.Task:
    return image_task


def test_every_particle_starts_with_the_state_of_the_ticket(mlp: nn.Module, float_task: swamp.Task) -> None:
    seen: list[tuple[str, Any]] = []
    record = run(mlp, float_task, "swamp", seen)
    names = [name for name, _ in seen]
    assert names[0] == "ticket"
    assert "steps" not in seen[0][1]
    assert all(state["steps"] == 3 and len(state["seeds"]) == 1 for _, state in seen[1:])
    assert all(torch.equal(state["discriminator"], torch.ones(2)) for _, state in seen)
    assert record[-1].state["steps"] == 3 + 6
    assert len(record[-1].state["seeds"]) == 2


def test_methods_that_continue_take_the_state_of_the_previous_cycle_along(
    mlp: nn.Module, float_task: swamp.Task
) -> None:
    seen: list[tuple[str, Any]] = []
    run(mlp, float_task, "lrr", seen)
    steps = {name: state.get("steps", 0) for name, state in seen}
    assert steps == {"ticket": 0, "cycle-0-particle-0": 3, "cycle-1-particle-0": 9, "cycle-2-particle-0": 15}


@pytest.mark.parametrize("method", ["swamp", "lrr"])
def test_an_interrupted_run_resumes_with_the_stored_state(
    mlp: nn.Module, image_task: swamp.Task, method: str, tmp_path: Any
) -> None:
    started: list[str] = []

    def run_in(folder: str, stop_at: str = "") -> list[swamp.Cycle]:
        def train(job: TrainJob) -> float:
            started.append(job.name)
            if job.name == stop_at:
                raise KeyboardInterrupt
            return stepping(job)

        backend = CustomTrainer(mlp, image_task, train, state={"discriminator": torch.ones(2)})
        plan = swamp.Plan(method=method, sparsity=0.75, particles=(2,), cycles=2, barrier_points=0)
        training = Training(epochs=2, batch_size=6, swa=False)
        return list(swamp.cycles(mlp, image_task, plan, training, backend=backend, out=tmp_path / folder))

    whole = run_in("whole")
    for stop_at in ("cycle-0-particle-0", "cycle-2-particle-0"):
        with pytest.raises(KeyboardInterrupt):
            run_in("interrupted", stop_at)
    started.clear()
    resumed = run_in("interrupted")
    assert started[0] == "cycle-2-particle-0"
    assert same(resumed[-1].state, whole[-1].state)
    assert resumed[-1].state["steps"] == (15 + 6 if method == "lrr" else 3 + 6)
    particle = Particle.load(tmp_path / "interrupted" / "cycle-02" / "particle-0.safetensors")
    assert same(particle.state, whole[-1].state)
