"""Lanczos compared with the eigenvalues of dense matrices."""

import math

import pytest
import torch

from swamp.analysis import Hessian
from swamp.analysis.hessian import restricted
from swamp.analysis.spectrum import lanczos, spectral_density, top_eigenvalues
from swamp.errors import SwampError

from .known_losses import planted, symmetric


def product_of(matrix):
    return lambda vectors: vectors @ matrix


def starts(count: int, size: int) -> torch.Tensor:
    numbers = torch.randint(0, 2, (count, size), generator=torch.Generator().manual_seed(3))
    return numbers.double() * 2 - 1


def integral(found, power: int) -> float:
    at, value = torch.tensor(found.at).double(), torch.tensor(found.value).double()
    return float(torch.trapezoid(value * at**power, at))


def test_as_many_steps_as_dimensions_give_all_eigenvalues():
    matrix = symmetric(40)
    for run in lanczos(product_of(matrix), starts(2, 40), 100):
        assert torch.allclose(run.values, torch.linalg.eigvalsh(matrix), atol=1e-9)
        assert float(run.residuals.max()) < 1e-9
        assert float(run.weights.sum()) == pytest.approx(1)


def test_residuals_bound_the_error_of_the_values():
    matrix = symmetric(200)
    exact = torch.linalg.eigvalsh(matrix)
    (run,) = lanczos(product_of(matrix), starts(1, 200), 25)
    assert float(run.residuals.max()) > 0.1
    for value, residual in zip(run.values, run.residuals, strict=True):
        assert float((exact - value).abs().min()) <= float(residual) + 1e-9
    found = top_eigenvalues([run], 3)
    assert [one.value for one in found] == sorted((float(v) for v in run.values[-3:]), reverse=True)


def test_values_residuals_and_weights_agree_with_an_independent_projection():
    matrix, start = symmetric(30), starts(1, 30)
    powers = [start[0]]
    for _ in range(4):
        powers.append(matrix @ powers[-1] / 10)
    basis = torch.linalg.qr(torch.stack(powers, 1))[0]
    values, inner = torch.linalg.eigh(basis.T @ matrix @ basis)
    vectors = basis @ inner
    (run,) = lanczos(product_of(matrix), start, 5)
    assert torch.allclose(run.values, values)
    assert torch.allclose(run.residuals, (matrix @ vectors - vectors * values).norm(dim=0))
    assert torch.allclose(run.weights, (vectors.T @ start[0] / math.sqrt(30)) ** 2)


def test_vectors_stay_orthogonal_with_one_large_eigenvalue():
    # A large eigenvalue converges in a few steps; without re-orthogonalisation rounding would duplicate it.
    matrix = torch.diag(torch.cat([torch.linspace(0, 1, 299), torch.tensor([1e6])]).double())
    seen = []

    def product(vectors):
        seen.append(vectors[0])
        return vectors @ matrix

    (run,) = lanczos(product, starts(1, 300), 60)
    assert int((run.values > 1e5).sum()) == 1
    assert float(run.values[-2]) == pytest.approx(1, abs=1e-6)
    basis = torch.stack(seen)
    assert torch.allclose(basis @ basis.T, torch.eye(60).double(), atol=1e-13)


def test_a_run_ends_with_its_krylov_space_and_the_others_continue():
    matrix = torch.diag(torch.arange(1.0, 21.0).double())
    two = torch.zeros(2, 20).double()
    two[0, [3, 7]] = 1
    two[1] = 1
    short, long = lanczos(product_of(matrix), two, 20)
    assert short.values.tolist() == pytest.approx([4, 8])
    assert short.weights.tolist() == pytest.approx([0.5, 0.5])
    assert long.values.tolist() == pytest.approx(range(1, 21))
    assert [one.value for one in top_eigenvalues([short])] == pytest.approx([8, 4])
    assert [one.value for one in top_eigenvalues([short, long], 3)] == pytest.approx([20, 19, 18])


def test_a_block_has_the_eigenvalues_of_the_block():
    matrix = symmetric(30)
    kept = torch.arange(30) % 3 == 0
    block = restricted(product_of(matrix), kept)
    assert torch.allclose(block(torch.eye(30).double()), matrix * kept * kept[:, None])
    runs = lanczos(block, starts(1, 30) * kept, 30)
    assert torch.allclose(runs[0].values, torch.linalg.eigvalsh(matrix[kept][:, kept]), atol=1e-9)


def test_the_density_of_a_planted_quadratic_has_its_moments():
    matrix = torch.diag(torch.tensor([-3.0, 0.0, 0.5, 1.0, 2.0, 2.5, 7.0]).double())
    model, task = planted(matrix)
    hessian = Hessian(model, task, model.state_dict())
    runs = lanczos(hessian, starts(2, 7), 7)
    found = spectral_density(runs, width=0.02)
    spread = 0.02 * 10
    assert len(found.at) == len(found.value) == 128
    assert integral(found, 0) == pytest.approx(1, abs=1e-5)
    assert integral(found, 1) == pytest.approx(10 / 7, abs=1e-5)
    assert integral(found, 2) == pytest.approx(float(matrix.square().sum()) / 7 + spread**2, abs=1e-5)
    assert [one.value for one in top_eigenvalues(runs)] == pytest.approx([7, 2.5, 2, 1, 0.5], abs=1e-9)


def test_few_steps_have_the_moments_of_all_eigenvalues():
    # Gauss quadrature: m steps are exact for the first 2m - 1 moments of the starting vector.
    matrix, start = symmetric(200), starts(1, 200)
    (run,) = lanczos(product_of(matrix), start, 5)
    power = start[0]
    for degree in range(1, 10):
        power = matrix @ power
        exact = float(start[0] @ power) / 200
        assert float((run.values**degree * run.weights).sum()) == pytest.approx(exact, rel=1e-8)


def test_a_single_eigenvalue_has_a_density():
    found = spectral_density(lanczos(product_of(2 * torch.eye(5).double()), starts(1, 5), 5))
    assert integral(found, 1) == pytest.approx(2)
    assert integral(
        spectral_density(lanczos(product_of(torch.zeros(5, 5).double()), starts(1, 5), 5)), 0
    ) == pytest.approx(1)


def test_a_matrix_that_is_not_finite_gives_nan_and_an_empty_density():
    runs = lanczos(product_of(torch.full((5, 5), math.nan).double()), starts(2, 5), 3)
    assert math.isnan(top_eigenvalues(runs)[0].value)
    assert spectral_density(runs).at == ()


def test_zero_steps_and_zero_starts_are_refused():
    with pytest.raises(SwampError, match="steps >= 1"):
        lanczos(product_of(torch.eye(3)), starts(1, 3), 0)
    with pytest.raises(SwampError, match="not zero"):
        lanczos(product_of(torch.eye(3)), torch.zeros(1, 3), 2)
