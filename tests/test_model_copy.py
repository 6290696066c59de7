"""Models are copied with what a forward pass left in them, or refused with the attribute's name."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import swamp
from swamp import SwampError
from swamp.model_copy import copied_model

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
TASK = swamp.Task.of(train=(X, X[:, :3].argmax(1)), test=(X, X[:, :3].argmax(1)))


class Record:
    def __init__(self, value: Tensor) -> None:
        self.value = value


class Keeps(nn.Module):
    """Keeps features of its last forward pass, as for a plot or an auxiliary loss."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.a, self.b, self.form, self.features = nn.Linear(8, 16), nn.Linear(16, 3), form, None

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.a(inputs).relu()
        forms: dict[str, Any] = {
            "tensor": hidden,
            "list": [hidden, 1],
            "nested": {"by layer": ({"a": hidden}, None)},
            "record": Record(hidden),
        }
        self.features = forms[self.form]
        return self.b(hidden)


def run(model: nn.Module) -> swamp.SparseModel:
    training = swamp.Training(epochs=1, batch_size=16)
    return swamp.prune(model, TASK, sparsity=0.5, cycles=1, particles=1, training=training, backend="sequential")


@pytest.mark.parametrize("form", ["tensor", "list", "nested", "record"])
def test_a_model_that_keeps_its_features_can_be_copied_after_use(form: str) -> None:
    model = Keeps(form)
    output = model(X)
    copy = copied_model(model)
    assert torch.equal(copy(X), output)
    assert copy.a.weight is not model.a.weight
    assert copy.a.weight.requires_grad
    assert torch.equal(copied_model(model)(X), output)


def test_a_copy_that_builds_the_model_anew_leaves_the_global_generator() -> None:
    class Rebuilt(nn.Linear):
        def __deepcopy__(self, memo: Any) -> "Rebuilt":
            copy = Rebuilt(self.in_features, self.out_features)
            copy.load_state_dict(self.state_dict())
            return copy

    model = Rebuilt(8, 3)
    before = torch.get_rng_state()
    assert torch.equal(copied_model(model).weight, model.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_used_model_is_pruned_and_left_as_it_is() -> None:
    model = Keeps("tensor")
    model(X)
    kept = model.features
    run(model)
    assert model.features is kept
    output = model.features.sum()
    output.backward()
    assert model.a.weight.grad is not None


def test_what_cannot_be_copied_is_refused_before_training_with_its_name() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 3)))
    model[1].lock = threading.Lock()
    expected = r"Sequential cannot be copied: attribute 'lock' of module '1' \(Sequential\) is of type lock"
    with pytest.raises(SwampError, match=expected):
        run(model)
    del model[1].lock
    model.generator = iter([1])
    model.stream = (number for number in ())
    with pytest.raises(SwampError, match="attribute 'stream' of the model"):
        copied_model(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_hooks_compute_are_refused_before_training_with_advice() -> None:
    normed = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3))
    pruned = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    for model, advice in ((normed, "remove_weight_norm"), (pruned, "prune.remove")):
        model(X)
        with pytest.raises(SwampError, match=rf"'0' has a weight that .*{advice}"):
            run(model)
