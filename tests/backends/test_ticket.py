from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swamp.backends import Ticket
from swamp.backends.sequential import rewind
from swamp.errors import MaskError, SwampError
from swamp.masks import Mask


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight


def test_rewound_survivors_are_bit_equal_to_the_ticket_and_the_rest_is_zero(model, two_thirds, ticket_of):
    ticket, mask = ticket_of(model), two_thirds(model)
    rewind(model, ticket, mask)
    state = model.state_dict()
    assert state.keys() == ticket.weights.keys()
    for name, value in state.items():
        alive = mask[name] if name in mask else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[alive], ticket.weights[name][alive])
        assert value[~alive].count_nonzero() == 0
    assert mask.nnz < mask.prunable


def test_tied_weights_are_rewound_together():
    model = Tied()
    ticket = Ticket({name: torch.full_like(v, 3) for name, v in model.state_dict().items()}, 0)
    mask = Mask({"encoder.weight": torch.eye(4).bool()})
    assert mask.keys() == Mask.ones(model).keys()
    rewind(model, ticket, mask)
    assert model.decoder.weight is model.encoder.weight
    assert torch.equal(model.decoder.weight, 3 * torch.eye(4))


def test_statistics_of_batch_normalisation_are_rewound_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ticket = Ticket(model.state_dict(), 0)
    model.train()(torch.randn(5, 2) + 9)
    rewind(model, ticket, Mask.ones(model))
    assert model.state_dict()["1.running_mean"].tolist() == [0, 0]
    assert int(model.state_dict()["1.num_batches_tracked"]) == 0


def test_a_ticket_stays_while_its_model_trains_on(mlp, same):
    ticket = Ticket(mlp.state_dict(), 0)
    before = {name: value.clone() for name, value in ticket.weights.items()}
    rewind(mlp, ticket, Mask.ones(mlp))
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.add_(1)
    assert same(ticket.weights, before)


def test_tickets_have_the_same_id_where_all_bits_are_the_same(mlp, ticket_of):
    ticket = ticket_of(mlp)
    assert ticket.id == Ticket(ticket.weights, 99).id == ticket_of(mlp).id
    for change in (1e-15, -1.0):
        weights = {name: value.clone() for name, value in ticket.weights.items()}
        weights["3.bias"][0] += change
        assert Ticket(weights, 7).id != ticket.id
    renamed = {name.replace("3", "4"): value for name, value in ticket.weights.items()}
    assert Ticket(renamed, 7).id != ticket.id


def test_a_ticket_of_another_model_is_refused(mlp, ticket_of):
    with pytest.raises(SwampError, match="the ticket does not fit this Linear"):
        rewind(nn.Linear(2, 2), ticket_of(mlp), Mask.ones(nn.Linear(2, 2)))


def test_a_mask_of_another_model_is_refused(mlp, ticket_of):
    with pytest.raises(MaskError, match="the mask names 'weight'"):
        rewind(mlp, ticket_of(mlp), Mask.ones(nn.Linear(2, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_saved_ticket_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path, same):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), Tied()).to(dtype)
    ticket = Ticket(model.state_dict(), 41)
    ticket.save(tmp_path / "ticket.safetensors")
    again = Ticket.load(tmp_path / "ticket.safetensors")
    assert same(ticket.weights, again.weights)
    assert (again.steps, again.id) == (41, ticket.id)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def test_files_that_are_damaged_or_no_tickets_are_refused(tmp_path: Path, mlp, ticket_of):
    path: Any = tmp_path / "ticket.safetensors"
    with pytest.raises(SwampError, match="does not exist"):
        Ticket.load(path)
    ticket_of(mlp).save(path)
    damaged(path)
    with pytest.raises(SwampError, match="damaged"):
        Ticket.load(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SwampError):
        Ticket.load(path)
    Mask.ones(mlp).save(path)
    with pytest.raises(SwampError, match="not a ticket"):
        Ticket.load(path)


@pytest.mark.parametrize(
    ("weights", "steps", "message"),
    [
        (nn.Linear(2, 2), 0, r"weights must be a state dict, got Linear. Make one with model.state_dict"),
        (None, 0, "weights must be a state dict, got NoneType"),
        ({}, "3", "steps must be a whole number, got '3'"),
        ({}, 1.5, "steps must be a whole number, got 1.5"),
        ({}, -1, "steps must be 0 or more, got -1"),
    ],
)
def test_what_is_no_ticket_is_refused(weights: Any, steps: Any, message: str) -> None:
    with pytest.raises(SwampError, match=message):
        Ticket(weights, steps)
