"""Transfer: what is taken from the source, what is made anew, what is refused, and that the run is one like others."""

import os
import shutil
import signal
from dataclasses import replace
from threading import Event

import pytest
import torch

from swamp.algorithms.plan import Plan, Transfer
from swamp.datasets.problem import DataOptions
from swamp.errors import CorruptFile, Interrupted, SwampError
from swamp.files import load_tensors
from swamp.masks import Mask
from swamp.models import build_network
from swamp.runs.config import RunConfig
from swamp.runs.execute import start
from swamp.runs.read import open_run, read_mask, read_origin, read_ticket, read_weights
from swamp.runs.transfer import TransferSource, finished_records, transferred, transferred_from

from .conftest import StopAt, assert_same_outcome, go, go_on, in_child, tiny


def plan(source, keep: str, **changes) -> Plan:
    return Plan("imp", 0.75, (1,), transfer=Transfer(str(source), keep), **changes)


def moved(source, keep: str = "mask", **changes) -> RunConfig:
    """The transfer of the tiny run to other classes of the digits."""
    return tiny(plan=plan(source, keep), data=DataOptions(classes="5-9"), **changes)


@pytest.fixture(scope="module")
def source(finished, tmp_path_factory):
    """A copy of a finished run of 75 % sparsity in cycle 2, with ten classes of 1 x 8 x 8."""
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("source") / "run")


def network(shape=(1, 8, 8), classes=10, name="mlp-16"):
    torch.manual_seed(5)
    return build_network(name, shape, classes)


def taken(source, keep, **changes):
    found = transferred(plan(source, keep, **changes), network())
    assert found is not None
    return found


def test_weights_are_those_of_the_chosen_cycle(source):
    directory, _ = open_run(source)
    found = taken(source, "weights")
    assert found.mask == read_mask(directory, 2)
    mean = read_weights(directory, 2)
    assert all(torch.equal(found.ticket.weights[name], mean[name]) for name in mean)
    half = transferred(replace(plan(source, "weights"), sparsity=0.5), network())
    assert half is not None
    assert (half.mask, half.about["cycle"]) == (read_mask(directory, 1), 1)


def test_a_mask_is_trained_from_the_tickets_weights(source):
    directory, _ = open_run(source)
    found = taken(source, "mask")
    assert found.mask == read_mask(directory, 2)
    ticket = read_ticket(directory).weights
    assert all(torch.equal(found.ticket.weights[name], ticket[name]) for name in ticket)


def test_sparsity_is_a_random_mask_of_new_weights_with_as_many_in_each_layer(source):
    own = read_mask(open_run(source)[0], 2)
    found, other = taken(source, "sparsity"), taken(source, "sparsity", seed=1)
    assert found.mask.nnz_by_layer == other.mask.nnz_by_layer == own.nnz_by_layer
    assert len({found.mask, other.mask, own}) == 3
    assert found.mask == taken(source, "sparsity").mask
    fresh = network().state_dict()
    assert all(torch.equal(found.ticket.weights[name], fresh[name]) for name in fresh)


def test_the_ends_that_the_data_decide_are_made_anew_and_named(source):
    model, own = network((40,), 5), read_mask(open_run(source)[0], 2)
    found = transferred(plan(source, "weights"), model)
    assert found is not None
    assert found.about["remade"] == [
        "hidden1.weight (16, 64) -> (16, 40)",
        "output.weight (10, 16) -> (5, 16)",
        "output.bias (10,) -> (5,)",
    ]
    fresh = model.state_dict()
    assert torch.equal(found.ticket.weights["output.weight"], fresh["output.weight"])
    kept = read_weights(open_run(source)[0], 2)["hidden1.bias"]
    assert torch.equal(found.ticket.weights["hidden1.bias"], kept)
    assert not torch.equal(kept, fresh["hidden1.bias"])
    for name, size in (("hidden1.weight", 640), ("output.weight", 80)):
        assert found.mask.nnz_by_layer[name] == round(own.density_by_layer[name] * size)


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        ("mlp-12", ["hidden1.weight (16, 64) -> (12, 64)", "hidden1.bias (16,) -> (12,)", "output.weight (10, 16) ->"]),
        ("mlp-16-8", ["hidden2.weight none -> (8, 16)", "output.weight (10, 16) -> (10, 8)"]),
        ("mlp-bn-16", ["norm1.weight none -> (16,)", "hidden1.bias (16,) -> none"]),
    ],
)
def test_hidden_layers_that_do_not_fit_are_refused_by_name(source, model, wrong):
    with pytest.raises(SwampError, match="does not fit this network") as refused:
        transferred(plan(source, "weights"), network(name=model))
    assert all(text in str(refused.value) for text in wrong)


def test_tokens_of_an_embedding_may_differ_and_its_width_may_not():
    def language(vocabulary: int, width: int = 8):
        layers = torch.nn.Embedding(vocabulary, width), torch.nn.Linear(width, 4), torch.nn.Linear(4, 2)
        return torch.nn.Sequential(*layers)

    old = language(20)
    source = TransferSource("it", Mask.ones(old), old.state_dict(), None, {})
    found = transferred_from(source, plan("it", "weights"), language(30))
    assert found.about["remade"] == ["0.weight (20, 8) -> (30, 8)"]
    with pytest.raises(SwampError, match=r"0.weight \(20, 8\) -> \(20, 6\)"):
        transferred_from(source, plan("it", "weights"), language(20, 6))


def test_the_first_layer_of_images_is_no_token():
    class Vision(torch.nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.token = torch.nn.Parameter(torch.zeros(1, 1, 4))
            self.patches = torch.nn.Conv2d(channels, 4, 2)
            self.head = torch.nn.Linear(4, 2)

    old = Vision(3)
    source = TransferSource("it", Mask.ones(old), old.state_dict(), None, {})
    found = transferred_from(source, plan("it", "weights"), Vision(1))
    assert found.about["remade"] == ["patches.weight (4, 3, 2, 2) -> (4, 1, 2, 2)"]


def test_a_source_without_a_ticket_keeps_no_mask(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    (copy / "ticket.safetensors").unlink()
    with pytest.raises(SwampError, match="has no ticket"):
        taken(copy, "mask")
    assert taken(copy, "weights").mask == taken(source, "weights").mask


def test_an_interrupted_transfer_goes_on_without_its_source(source, tmp_path):
    gone = shutil.copytree(source, tmp_path / "source")
    whole, config = tmp_path / "whole", moved(gone)
    done = go(config, whole)
    assert done["transfer"]["remade"] == ["output.weight (10, 16) -> (5, 16)", "output.bias (10,) -> (5,)"]
    (cycle,) = done["cycles"]
    # One training, and no ticket before it.
    assert (cycle["cycle"], cycle["steps"]) == (0, cycle["particles"][0]["steps"])
    assert read_mask(open_run(whole)[0], 0)["hidden1.weight"].equal(read_mask(open_run(gone)[0], 2)["hidden1.weight"])
    stop, path = Event(), tmp_path / "run"
    with pytest.raises(Interrupted):
        start(config, path, StopAt(7, stop), stop)
    shutil.rmtree(gone)
    go_on(path)
    assert_same_outcome(whole, path)


@pytest.mark.slow
def test_what_a_killed_start_did_not_copy_is_taken_from_the_source_again(source, tmp_path):
    path, stop = tmp_path / "run", Event()
    own = shutil.copytree(source, tmp_path / "source")
    with pytest.raises(Interrupted):
        start(moved(own), path, StopAt(3, stop), stop)
    mask = load_tensors(path / "transfer.safetensors")[0]
    for name in ("transfer", "ticket"):
        (path / f"{name}.safetensors").unlink()
    go_on(path)
    assert load_tensors(path / "transfer.safetensors")[0].keys() == mask.keys()
    assert read_ticket(open_run(path)[0]).id == read_origin(open_run(path)[0])["transfer"]["start"]
    (path / "transfer.safetensors").unlink()
    with pytest.raises(SwampError, match="has changed since"):
        transferred(plan(own, "mask", seed=1), network(), open_run(path)[0])
    shutil.rmtree(own)
    with pytest.raises(SwampError, match="holds no run"):
        go_on(path)


@pytest.mark.slow
def test_a_transfer_killed_at_any_time_goes_on_to_the_same_bits(source, tmp_path):
    config = moved(source, "weights", snapshot_seconds=1e-9)
    go(config, tmp_path / "whole")
    for number, at in enumerate((1, 9, 18)):
        path = tmp_path / f"run{number}"

        def work(path=path, at=at):
            class Kill(StopAt):
                def training(self, step):
                    self.left -= 1
                    if not self.left:
                        os.kill(os.getpid(), signal.SIGKILL)

            start(config, path, Kill(at, Event()), Event())

        assert os.waitpid(in_child(work), 0)[1] == signal.SIGKILL
        go_on(path)
        assert_same_outcome(tmp_path / "whole", path)


def test_a_source_that_lacks_a_record_is_refused_and_not_taken_for_one_of_fewer_cycles(source, tmp_path):
    damaged = shutil.copytree(source, tmp_path / "damaged")
    (damaged / "cycle-01" / "record.json").unlink()
    with pytest.raises(CorruptFile, match=r"cycle-01/record.json is missing. To create it again: swamp resume"):
        finished_records(damaged)


def test_sources_and_targets_that_cannot_be_are_refused_before_anything_is_written(source, tmp_path):
    unfinished = shutil.copytree(source, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    few = replace(moved(source), data=DataOptions(classes="5-9", examples=4))
    few = replace(few, training=replace(few.training, batch_size=2))
    for config, message in (
        (moved(tmp_path), "holds no run"),
        (moved(unfinished), r"is not finished \(3 cycles so far\).*swamp resume"),
        (few, "4 training examples for 5 classes"),
        (replace(moved(source), plan=replace(plan(source, "mask"), sparsity=0.9)), "no cycle of sparsity 0.9. It has"),
        (replace(moved(source), model="mlp-20"), r"hidden1.weight \(16, 64\) -> \(20, 64\)"),
        (replace(moved(source), plan=replace(plan(source, "mask"), method="snip")), "cannot train given masks"),
    ):
        with pytest.raises(SwampError, match=message):
            go(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
