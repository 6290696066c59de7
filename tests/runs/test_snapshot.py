from dataclasses import fields

import pytest
import torch

from swamp.algorithms.store import Phase
from swamp.errors import CorruptFile
from swamp.masks import Mask
from swamp.runs.directory import RunDirectory
from swamp.runs.snapshot_files import load_phase, load_snapshot, save_phase, save_snapshot
from swamp.training.snapshot import Snapshot


def snapshot_of(step: int) -> Snapshot:
    parts = [{"a.weight": torch.randn(2, 3), "n": torch.tensor(number)} for number in range(5)]
    weights, optimizer, mean, gradient, anchor = parts
    return Snapshot(step, weights, optimizer, mean, 3, (0.1, 1 / 3), 0.7, 2, gradient, anchor)


def require_same(one: Snapshot, other: Snapshot) -> None:
    for field in fields(Snapshot):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if isinstance(before, dict):
            assert before.keys() == after.keys()
            assert all(torch.equal(value, after[name]) for name, value in before.items())
        else:
            assert before == after


def test_every_part_of_a_snapshot_comes_back_from_its_file(tmp_path):
    taken = snapshot_of(7)
    directory = RunDirectory(tmp_path, "run")
    save_snapshot(tmp_path / "one", taken, directory.provenance(tmp_path / "one"))
    require_same(taken, load_snapshot(tmp_path / "one"))
    directory.verify_owner(tmp_path / "one")
    with pytest.raises(CorruptFile, match="another run"):
        RunDirectory(tmp_path, "other").verify_owner(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    with pytest.raises(CorruptFile, match="two is one of its run, moved"):
        directory.verify_owner(tmp_path / "two")


def test_every_part_of_a_phase_comes_back_from_its_file(tmp_path):
    masks = tuple(Mask({"a.weight": torch.rand(2, 3) < 0.5}) for _ in range(2))
    snapshots = tuple(snapshot_of(number) for number in range(2))
    taken = Phase(
        7, masks, snapshots, {"a.weight": torch.randn(2, 3)}, 3, 1e17 + 16, 0.1, {"a.weight": torch.randn(2, 3)}
    )
    save_phase(tmp_path / "one", taken, {"run": "run"})
    found = load_phase(tmp_path / "one")
    assert (found.step, found.averaged, found.flops, found.seconds) == (7, 3, 1e17 + 16, 0.1)
    assert found.masks == masks
    assert torch.equal(found.mean["a.weight"], taken.mean["a.weight"])
    assert torch.equal(found.dual["a.weight"], taken.dual["a.weight"])
    for before, after in zip(snapshots, found.snapshots, strict=True):
        require_same(before, after)
