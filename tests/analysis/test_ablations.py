"""Particles that differ in one factor at a time."""

from dataclasses import replace
from threading import Event

import pytest
import torch

from swamp.analysis.ablations import _STREAMS, AblationSettings, ParticleAblation
from swamp.analysis.analysis_tasks import analyze, read_analysis
from swamp.analysis.run_data import RunData
from swamp.errors import Interrupted, SwampError
from swamp.report.figures import SECTIONS
from swamp.report.report_data import ReportData
from swamp.runs.run_progress import Reporter
from swamp.training import Seed, TensorData
from swamp.training.data import BatchList, DatasetData
from swamp.training.dropout import draws_random
from swamp.training.tokens import TokenData

from .runs import StopAt, blind, run

SETTINGS = AblationSettings(examples=64, points=3, particles=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "run")


def ablation(path, reporter=None, stop=None, settings=SETTINGS, cycle=1) -> ParticleAblation:
    return ParticleAblation(blind(RunData.open(path)), cycle, settings, reporter or Reporter(), stop or Event())


def test_a_seed_borrows_only_the_named_streams():
    own, other = Seed(1).at("a"), Seed(1).at("b")
    mixed = own.borrowing(other, "order")
    assert mixed.at("order", 3).number() == other.at("order", 3).number()
    assert mixed.at("augment", 3).number() == own.at("augment", 3).number()
    assert mixed.number() == own.number()


def _noisy(inputs, generator):
    return inputs + torch.rand(inputs.shape, generator=generator)


class _Transformed(torch.utils.data.Dataset):
    """Examples with a random transform, as of images in a folder."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.rand(1), index


def _tokens() -> TokenData:
    lengths = torch.arange(60) % 7 + 1
    tokens = torch.repeat_interleave(torch.arange(60), lengths)
    return TokenData({"input_ids": tokens}, lengths, torch.arange(60))


DATA = {
    "tensors": TensorData(torch.zeros(60, 1), torch.arange(60), augment=_noisy),
    "tokens": _tokens(),
    "dataset": DatasetData(_Transformed()),
    "batches": BatchList([(torch.zeros(3, 1), torch.arange(3) + n) for n in range(0, 60, 3)]),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_the_streams_of_the_factors_are_all_that_batches_depend_on(data):
    own, other = Seed(1).at("a"), Seed(1).at("b")

    def batches(seed):
        return list(data.shuffled(4, seed, 2))

    def targets(seed):
        return [batch[1].tolist() for batch in batches(seed)]

    ordered = own.borrowing(other, *_STREAMS["order"])
    assert targets(ordered) == targets(other) != targets(own)
    augmented = own.borrowing(other, *_STREAMS["augmentation"])
    assert targets(augmented) == targets(own)
    both = own.borrowing(other, *_STREAMS["order"], *_STREAMS["augmentation"])
    assert str(batches(both)) == str(batches(other))


def test_each_factor_changes_only_its_own_random_streams(path):
    here = ablation(path)
    names = ("order", "buckets", "augment", "loader", "noise")
    changed = {}
    for source in ("none", "order", "augmentation", "dropout", "rate", "all"):
        (*_, (_, training, seeds)) = here._jobs(source, [0, 1])
        first = here._seed(0)
        changed[source] = {name for name in names if seeds[-1][1].at(name, 0).number() != first.at(name, 0).number()}
        assert (training.lr == pytest.approx(0.05)) or source == "rate"
    assert changed == {
        "none": set(),
        "order": {"order", "buckets"},
        "augmentation": {"augment", "loader"},
        "dropout": {"noise"},
        "rate": set(),
        "all": set(names),
    }
    rates = [training.lr for _, training, _ in here._jobs("rate", [0, 1, 2])]
    assert rates == pytest.approx([0.045, 0.05, 0.055])
    heads = [ticket.weights for ticket, _, _ in here._jobs("head", [0, 1])]
    moved = {name for name in heads[0] if not torch.equal(heads[0][name], heads[1][name])}
    assert moved == {"output.weight", "output.bias"}


def test_the_control_gives_distance_zero_and_every_factor_a_positive_distance(path):
    here = ablation(path)
    found = {record["factor"]: record for record in map(here.record, ("none", "order", "rate", "head", "all"))}
    assert found["none"]["mean_distance"] == 0
    assert found["none"]["identical"]
    assert found["none"]["barrier"]["error"] == 0
    for name in ("order", "rate", "head", "all"):
        assert found[name]["mean_distance"] > 0
        assert not found[name]["identical"]
        corners = [corner["error"] for corner in found[name]["extreme_points"]]
        assert found[name]["gain"] == pytest.approx(sum(corners) / 3 - found[name]["mean"]["error"])
    # The particles that differ in all factors are the particles of the run.
    own = [particle.weights["output.weight"] for particle in here.run.particles(1)]
    assert all(
        torch.equal(one.weights["output.weight"], other) for one, other in zip(here.particles("all"), own, strict=True)
    )


def test_a_factor_that_does_not_apply_to_the_run_is_skipped(path, normed, task):
    here = ablation(path)
    assert here.record("dropout")["skipped"] == "its network draws no random numbers"
    plain = replace(here, run=replace(here.run, task=replace(here.run.task, train=task.train)))
    assert plain.record("augmentation")["skipped"] == "its training data has no random augmentation"
    text = replace(here, run=replace(here.run, task=replace(here.run.task, train=_tokens())))
    assert text.record("augmentation")["skipped"] == "its training data has no random augmentation"
    assert draws_random(normed, task, 8)


def test_a_stopped_ablation_resumes_and_the_figure_shows_it(path):
    stop = Event()
    (unit,) = ablation(path, StopAt(50, stop), stop).tasks(["order"])
    with pytest.raises(Interrupted):
        list(analyze(RunData.open(path), [unit], SETTINGS))
    assert list((path / "noise").rglob("particle-0.safetensors"))
    here = ablation(path)
    (order,) = analyze(here.run, here.tasks(["order"]), SETTINGS)
    whole = ablation(path, settings=replace(SETTINGS, seed=1)).record("order")
    assert order["distances"] == whole["distances"]
    assert not list((path / "noise").rglob("*.safetensors"))
    (none,) = analyze(here.run, here.tasks(["none"]), SETTINGS)
    assert [record["key"] for record in read_analysis(path)] == ["noise/cycle-01/order", "noise/cycle-01/none"]
    (figure,) = SECTIONS["noise"].build(ReportData.read([path]))
    distance = figure.panels[0].marks[0]
    assert distance.labels == ("nothing", "batch order")
    assert distance.values == (none["mean_distance"], pytest.approx(order["mean_distance"]))


def test_runs_and_settings_that_do_not_fit_are_refused(path, tmp_path):
    with pytest.raises(SwampError, match=r"cycle 9 is not finished: .* has finished cycles 0 to 2"):
        ablation(path, cycle=9)
    with pytest.raises(SwampError, match="do not start from a ticket"):
        ablation(run(tmp_path / "lrr", method="lrr", particles=1))
    trunk = run(tmp_path / "trunk", method="swamp-late", particles=2)
    with pytest.raises(SwampError, match=r"cycle 1 .* share the first part of their training"):
        ablation(trunk)
    for wrong in ({"particles": 1}, {"lr_spread": 1.0}):
        with pytest.raises(SwampError, match="must"):
            AblationSettings(**wrong)
