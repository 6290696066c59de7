"""swamp.transfer from Python: what it trains, and that its run directory is resumed and refused as others are."""

from dataclasses import replace

import pytest
import torch
from tests.api.conftest import OPTIONS, TRAINING, examples, network

import swamp
from swamp.backends import Sequential
from swamp.cli import main
from swamp.training.mask_updates import Dynamic


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "run"
    return path, swamp.prune(network(), examples(), out=path, backend="sequential", **OPTIONS)


def moved(source, model=None, **options):
    task = examples(number=1)
    return swamp.transfer(source, model or network(number=2), task, training=TRAINING, backend="sequential", **options)


def test_a_run_and_the_model_it_made_give_the_same_transfer(pruned):
    path, sparse = pruned
    one, two = moved(path), moved(sparse)
    assert one.mask == two.mask == sparse.mask
    states = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [cycle.index for cycle in one.cycles] == [0]
    one.mask.require_zeros(one.model.state_dict())


def test_a_mask_needs_the_ticket_of_a_run(pruned):
    path, sparse = pruned
    with pytest.raises(swamp.SwampError, match="the sparse model has no ticket"):
        moved(sparse, keep="mask")
    half = moved(path, keep="mask", sparsity=0.5, method="swamp", particles=2, barrier_threshold=1.0)
    assert half.sparsity == pytest.approx(0.5, abs=0.01)
    assert len(half.cycles[0].particles) == 2


def test_the_same_call_again_reads_it_from_disk_and_another_one_is_refused(pruned, tmp_path, monkeypatch):
    path, _ = pruned
    model, out = network(number=2), tmp_path / "run"
    first = moved(path, model, out=out)
    assert (out / "summary.json").exists()
    with pytest.raises(swamp.SwampError, match=r"plan.transfer.keep: weights -> sparsity"):
        moved(path, model, out=out, keep="sparsity")
    monkeypatch.setattr(Sequential, "train", lambda *_, **__: pytest.fail("trained again"))
    assert moved(path, model, out=out).mask == first.mask


def test_a_transfer_goes_on_with_its_source_named_from_another_folder(pruned, tmp_path, monkeypatch):
    path, _ = pruned
    out = tmp_path / "run"
    monkeypatch.chdir(path.parent)
    first = moved(path.name, out=out)
    monkeypatch.chdir(tmp_path)
    assert moved(path, out=out).mask == first.mask
    with pytest.raises(swamp.SwampError, match=r"another run.*model.weights"):
        moved(path, out=out, sparsity=0.5)


def test_wrong_options_are_refused(pruned):
    path, _ = pruned
    with pytest.raises(swamp.SwampError, match="keep"):
        moved(path, keep="head")
    with pytest.raises(swamp.SwampError, match="densities has no effect: mask and initial weights are those"):
        moved(path, densities=(1, 0.5))
    how = replace(TRAINING, lr_after_rewind="advance")
    with pytest.raises(swamp.SwampError, match="lr_after_rewind has no effect: mask and initial weights are those"):
        swamp.transfer(path, network(), examples(number=1), training=how)
    with pytest.raises(swamp.SwampError, match="update_interval has no effect: the mask of imp does not change"):
        moved(path, dynamic=Dynamic(update_interval=3))
    with pytest.raises(swamp.SwampError, match=r"0.weight \(16, 6\) -> \(4, 6\); 0.bias"):
        moved(path, network(width=4))


def test_the_sparsity_of_a_sparse_model_is_the_one_of_its_mask(pruned):
    path, sparse = pruned
    with pytest.raises(swamp.SwampError, match=r"the sparse model has sparsity 0.75, not 0.5. Leave sparsity out"):
        moved(sparse, sparsity=0.5)
    with pytest.raises(swamp.SwampError, match=r"no cycle of sparsity 1. It has: 0, 0.5, 0.75"):
        moved(path, sparsity=1)
    assert moved(sparse, sparsity=0.75).mask == sparse.mask


@pytest.mark.slow
def test_a_run_from_python_is_transferred_by_a_command_that_names_its_model(pruned, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(
        "from tests.api.conftest import examples, network\n"
        "def model(): return network(number=3)\n"
        "def task(): return examples(number=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    target = ["transfer", str(pruned[0]), "--task", "own.py:task", "--quiet", "--backend", "sequential"]
    with pytest.raises(SystemExit) as refused:
        main(target)
    assert refused.value.code == 2
    assert "Name a function that makes it for the target" in " ".join(capsys.readouterr().err.split())
    main([*target, "--model", "own.py:model", "--epochs", "2", "--out", "run"])
    assert swamp.load_run("run", network()).mask == pruned[1].mask
