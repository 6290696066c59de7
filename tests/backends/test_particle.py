import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swamp.backends import Particle, Ticket
from swamp.backends.particle import mean_of, warn_if_equal
from swamp.errors import SwampError

PARTICLE = Particle(
    {"w": torch.tensor([1.0, 0.0, -2.0]), "n": torch.tensor(3)}, 2, "t1", "m1", 4, 90, (0.1, 1 / 3), 1.5
)


def with_weights(*values: float, dtype: torch.dtype = torch.float32, **others: str) -> Particle:
    return replace(PARTICLE, weights={"w": torch.tensor(values, dtype=dtype)}, **others)


def test_the_mean_of_particles_is_theirs_with_equal_weights():
    average = mean_of([with_weights(1, 0, 4), with_weights(3, 0, 4), with_weights(5, 0, -8)])
    assert average["w"].tolist() == pytest.approx([3, 0, 0], abs=3e-7)


def test_the_mean_of_one_particle_is_that_particle_bit_for_bit(same):
    assert same(mean_of([PARTICLE]), PARTICLE.weights)


def test_the_order_of_particles_changes_the_mean_by_rounding_only():
    generator = torch.Generator().manual_seed(0)
    particles = [with_weights(*torch.randn(40, generator=generator).tolist()) for _ in range(4)]
    means = torch.stack([mean_of(order)["w"] for order in itertools.permutations(particles)])
    assert 0 < float((means - means[0]).abs().max()) < 4 * torch.finfo(torch.float32).eps


def test_particles_in_bfloat16_are_averaged_in_float32():
    particles = [with_weights(value, dtype=torch.bfloat16) for value in (256, 258, 258)]
    assert mean_of(particles)["w"].item() == 258
    assert mean_of(particles)["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("what", ["ticket", "mask"])
def test_particles_that_do_not_belong_together_are_refused(what: str):
    with pytest.raises(SwampError, match=f"2 different {what}s .*mean of unrelated networks is meaningless"):
        mean_of([PARTICLE, replace(PARTICLE, **{what: "other"})])
    with pytest.raises(SwampError, match="no particle"):
        mean_of([])


def test_equal_particles_are_warned_of_as_their_mean_is_that_of_one():
    particles = [replace(with_weights(1, value), index=index) for index, value in enumerate((2, 3, 2, 2))]
    with pytest.warns(UserWarning, match="particles 0, 2, 3 have the same weights.*job.number"):
        warn_if_equal(particles)
    warn_if_equal(particles[:2])


def test_a_saved_particle_comes_back_whole(tmp_path: Path, same):
    for particle in (PARTICLE, replace(PARTICLE, losses=(), weights={"w": torch.ones(2, dtype=torch.bfloat16)})):
        particle.save(tmp_path / "p.safetensors")
        again = Particle.load(tmp_path / "p.safetensors")
        assert same(particle.weights, again.weights)
        assert {**vars(again), "weights": None} == {**vars(particle), "weights": None}


def test_a_loss_that_is_not_finite_survives_the_file(tmp_path: Path):
    replace(PARTICLE, losses=(math.inf, math.nan)).save(tmp_path / "p.safetensors")
    assert str(Particle.load(tmp_path / "p.safetensors").losses) == "(inf, nan)"


def test_files_that_are_damaged_or_no_particles_are_refused(tmp_path: Path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(SwampError, match="does not exist"):
        Particle.load(path)
    PARTICLE.save(path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(SwampError, match="damaged"):
        Particle.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(SwampError):
        Particle.load(path)
    Ticket(PARTICLE.weights, 1).save(path)
    with pytest.raises(SwampError, match="not a particle"):
        Particle.load(path)
