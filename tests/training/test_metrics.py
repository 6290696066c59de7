"""Metrics of regressions, compared with numbers worked out by hand and with scipy."""

import math

import pytest
import torch
from scipy import stats

from swamp.training.metrics import (
    binary_nll,
    mean_label_probability,
    mean_probability,
    nll,
    pearson,
    perplexity,
    spearman,
    unexplained_variance,
)

LINE, SQUARES = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 4, 9, 16])


def test_correlations_by_hand():
    assert spearman(LINE, SQUARES) == pytest.approx(1)
    assert pearson(LINE, SQUARES) == pytest.approx(25 / math.sqrt(5 * 129))


def test_ranks_of_equal_values_are_their_mean_as_in_scipy():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 5, (40,), generator=generator).float() for _ in range(2))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, rel=1e-12)


@pytest.mark.parametrize("correlation", [pearson, spearman])
@pytest.mark.parametrize("vectors", [(LINE, torch.ones(4)), (torch.ones(1), torch.ones(1)), (torch.ones(0),) * 2])
def test_an_undefined_correlation_is_what_the_caller_asks_for(correlation, vectors):
    assert correlation(*vectors) == 0
    assert math.isnan(correlation(*vectors, constant=math.nan))


def test_unexplained_variance_by_hand():
    assert unexplained_variance(SQUARES, SQUARES) == 0
    assert unexplained_variance(torch.full((4,), float(SQUARES.mean())), SQUARES) == pytest.approx(1)


def test_the_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(torch.full((2, 3), -math.log(5.0)), torch.zeros(2)) == pytest.approx(5.0)
    assert perplexity(torch.full((2, 3), -1000.0), torch.zeros(2)) == math.inf


def test_an_ensemble_of_sure_models_has_a_finite_likelihood():
    sure, targets = torch.tensor([[40.0], [-40.0], [-900.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    torch.testing.assert_close(mean_label_probability([sure, sure]), sure.double())
    assert binary_nll(mean_label_probability([sure, sure]), targets) < 1e-17
    # The mean of the probabilities 1 - 4e-18 and 1/2.
    torch.testing.assert_close(mean_label_probability([sure[:1], 0 * sure[:1]]), torch.tensor([[3.0]]).double().log())
    classes = torch.tensor([[800.0, 0.0]])
    assert nll(mean_probability([classes, classes]), torch.tensor([1])) == pytest.approx(800)
