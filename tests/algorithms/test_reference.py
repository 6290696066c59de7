"""The loop against hand-written loops, and the consequences that must hold to the last bit."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from swamp.training import Seed, Task, TensorData

from .conftest import TRAINING, fresh_mlp, run, same, swamp_initial


def by_hand(model, task, *, particles: int, swa: bool, lawa: int = 0) -> list[dict[str, torch.Tensor]]:
    """IMP and SWAMP in plain PyTorch, sharing nothing with the library but the order of the examples."""
    data, per_epoch, epochs = task.train, 96 // 16, 4
    names = ["0.weight", "2.weight"]

    def train(start, mask, seed, steps, tail):
        model.load_state_dict({k: v * mask[k] if k in mask else v for k, v in start.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        samples = []
        for step in range(steps):
            low, last = (0.05, 2 * per_epoch) if tail else (0.0, epochs * per_epoch)
            share = torch.tensor(step / last * torch.pi, dtype=torch.float64)
            rate = low + (0.1 - low) * 0.5 * (1 + torch.cos(share).item()) if step < last else low
            optimizer.param_groups[0]["lr"] = rate
            order = torch.randperm(96, generator=seed.at("order", step // per_epoch).generator())
            part = order[step % per_epoch * 16 : (step % per_epoch + 1) * 16]
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs[part]), data.targets[part]).backward()
            for name, parameter in model.named_parameters():
                if name in mask:
                    parameter.grad *= mask[name]
            optimizer.step()
            for name, parameter in model.named_parameters():
                if name in mask:
                    parameter.data *= mask[name]
            averaged = step >= last if tail else step >= (epochs - lawa) * per_epoch and steps == epochs * per_epoch
            if averaged and (step + 1) % per_epoch == 0:
                samples.append({k: v.clone() for k, v in model.state_dict().items()})
        samples = samples or [{k: v.clone() for k, v in model.state_dict().items()}]
        return {k: sum(s[k] for s in samples) / len(samples) for k in samples[0]}

    ones = {name: torch.ones_like(dict(model.named_parameters())[name]) for name in names}
    ticket = train(model.state_dict(), ones, Seed(0).at("ticket"), per_epoch, tail=False)
    mask, result, total = ones, [], sum(m.numel() for m in ones.values())
    for cycle in range(4):
        seeds = [Seed(0).at("cycle", cycle, "particle", n) for n in range(particles)]
        trained = [train(ticket, mask, seed, epochs * per_epoch, tail=swa) for seed in seeds]
        average = {k: sum(t[k] for t in trained) / particles for k in trained[0]}
        result.append(average)
        flat = torch.cat([(average[n].abs() + mask[n]).flatten() * mask[n].flatten() for n in names])
        keep = round((0.2 ** ((cycle + 1) / 3)) * total)
        chosen = torch.zeros_like(flat)
        chosen[flat.argsort(descending=True)[:keep]] = 1
        parts = chosen.split([mask[n].numel() for n in names])
        mask = {n: part.view_as(mask[n]) for n, part in zip(names, parts, strict=True)}
    return result


@pytest.mark.parametrize(
    ("method", "particles", "swa", "lawa"),
    [("imp", 1, False, 0), ("imp-swa", 1, True, 0), ("swamp", 3, True, 0), ("imp-lawa", 1, False, 3)],
)
def test_the_loop_equals_a_hand_written_one(mlp, task, method, particles, swa, lawa):
    double = Task(*(TensorData(d.inputs.double(), d.targets) for d in (task.train, task.test, task.validation)))
    reference = by_hand(mlp.double(), double, particles=particles, swa=swa, lawa=lawa)
    with swamp_initial():
        model = fresh_mlp().double()
    record = run(model, double, method, replace(TRAINING, lawa=lawa))
    assert len(record) == len(reference) == 4
    for cycle, expected in zip(record, reference, strict=True):
        for name in expected:
            torch.testing.assert_close(cycle.weights[name], expected[name], rtol=1e-10, atol=1e-12)
    assert record[-1].mask.nnz == round(0.2 * 144)


def test_one_particle_without_averaging_is_imp_bit_for_bit(normed, task):
    imp, swamp_1 = run(normed, task, "imp"), run(normed, task, "swamp-no-swa", particles=(1,))
    assert all(same(a, b) for a, b in zip(imp, swamp_1, strict=True))
    assert [c.metrics for c in imp] == [c.metrics for c in swamp_1]


def test_swamp_with_one_particle_is_imp_with_averaging_bit_for_bit(normed, task):
    a, b = run(normed, task, "imp-swa"), run(normed, task, "swamp", particles=(1,))
    assert all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_same_seed_same_bits_and_another_seed_others(normed, task):
    a, b, c = run(normed, task, "swamp"), run(normed, task, "swamp"), run(normed, task, "swamp", seed=1)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert not same(a[0], c[0])
