"""What a study file says, and what is refused before anything runs."""

import re

import pytest

from swamp.algorithms import Plan
from swamp.errors import SwampError
from swamp.recipes import STUDIES, configuration, recipe_named
from swamp.runs.config import RunConfig, differences
from swamp.runs.study import Study
from swamp.runs.study_queue import StudyDirectory


def runs_of(path, text: str) -> dict[str, RunConfig]:
    (path / "study.toml").write_text(text)
    return Study.load(path / "study.toml").configurations(configuration, "study.toml")


def test_every_combination_of_a_grid_is_a_run_and_single_runs_come_after(tmp_path):
    runs = runs_of(
        tmp_path,
        """
        recipe = "digits-mlp"
        [settings]
        training.epochs = 2
        snapshot-seconds = 5
        [grid]
        method = ["imp", "swamp"]
        particles = 3
        seed = [0, 1]
        [runs.gentle]
        method = "imp-long"
        lr = 0.01
        """,
    )
    assert list(runs) == ["imp-seed0", "imp-seed1", "swamp-seed0", "swamp-seed1", "gentle"]
    assert {config.recipe for config in runs.values()} == {"digits-mlp"}
    assert {(config.training.epochs, config.snapshot_seconds) for config in runs.values()} == {(2, 5.0)}
    one = runs["swamp-seed1"]
    assert (one.plan.method, one.plan.particles, one.plan.seed) == ("swamp", (3,), 1)
    assert (runs["gentle"].plan.method, runs["gentle"].training.lr) == ("imp-long", 0.01)
    assert runs["gentle"].plan.particles == recipe_named("digits-mlp")().plan.particles


def test_an_option_goes_by_its_flag_its_field_or_its_last_part(tmp_path):
    names = ("ticket-epochs", "ticket_epochs", '"plan.ticket_epochs"', "plan.ticket_epochs", "plan.ticket-epochs")
    for name in names:
        runs = runs_of(tmp_path, f'recipe = "digits-mlp"\n[runs.a]\n{name} = 0.5')
        assert runs["a"].plan.ticket_epochs == 0.5


def test_an_option_that_no_run_uses_is_refused_and_one_that_some_use_is_shared(tmp_path):
    runs_of(tmp_path, 'recipe = "digits-mlp"\n[grid]\nmethod = ["imp", "swamp"]\nparticles = 3')
    with pytest.raises(SwampError, match=r"plan.particles has no effect in any run: imp trains one particle"):
        runs_of(tmp_path, 'recipe = "digits-mlp"\n[settings]\nparticles = 3\n[grid]\nmethod = ["imp", "lrr"]')


def test_several_grids_make_one_study_and_a_pattern_names_their_runs(tmp_path):
    runs = runs_of(
        tmp_path,
        """
        recipe = "digits-mlp"
        name = "{method}-{particles}-{plan.seed}"
        [[grid]]
        method = "imp"
        particles = 1
        seed = [0, 1]
        [[grid]]
        method = "swamp"
        particles = [2, [2, 4], "auto"]
        seed = 0
        """,
    )
    assert list(runs) == ["imp-1-0", "imp-1-1", "swamp-2-0", "swamp-2,4-0", "swamp-auto-0"]
    assert runs["swamp-2,4-0"].plan.particles == (2, 4)


def test_runs_may_start_from_several_recipes(tmp_path):
    runs = runs_of(tmp_path, '[grid]\nrecipe = ["digits-mlp", "mnist1d-conv"]\nseed = [3]')
    assert {name: config.model for name, config in runs.items()} == {
        "digits-mlp-seed3": "mlp-64-32",
        "mnist1d-conv-seed3": "conv1d",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gird]\nseed = [0]", r"unknown key 'gird'. Did you mean grid\?"),
        ("seed = [0]", r"unknown key 'seed'.*belong under \[settings\], \[grid\]"),
        ("[grid]\nlrr = [0.1]", r"\[grid\]: unknown option 'lrr'. Did you mean lr"),
        ("[grid]\nalpha = [0.1]", r"\[grid\]: unknown option 'alpha'. Did you mean prune_fraction\?"),
        ("[runs.a]\nplan.path-every = 1", r"unknown option 'plan.path-every'. Did you mean trajectory_every\?"),
        ("[runs.a]\ntraining.learning = 1", r"\[runs.a\]: unknown option 'training.learning'. Did you mean training"),
        ("[grid]\nseed = []", "seed has no value, so the grid is empty"),
        ("", "has no run"),
        ("[grid]\nlr = [0.1, -1]\nseed = [0]", "run 'lr-1-seed0': lr must be above 0"),
        ('[runs.a]\nlr = "fast"', r"run 'a': .*Expected `float`, got `str`.*training.lr"),
        ('[runs.a]\ntask = "digit"', "run 'a': unknown task 'digit'"),
        ('[runs.a]\nmethod = "swamp"\nswa_fraction = 0.0', "run 'a': this method averages weights over the last part"),
        ('[runs.a]\nrecipe = "digits"', "run 'a': unknown recipe 'digits'. Did you mean digits-mlp"),
        ("[runs.a]\nrecipe = 3", "a recipe is given by its name, got 3"),
        ("[runs.a]\nlr = 1\ntraining.lr = 2", "training.lr is set twice"),
        ("grid = 3", "does not fit"),
        ("[grid]\nseed = [0, 0]", r"two runs are named 'seed0': \[grid\] with plan.seed = 0, and \[grid\] with"),
        (
            '[grid]\nmethod = ["imp"]\n[runs.imp]\nlr = 0.2',
            r"two runs are named 'imp': \[grid\] with plan.method = imp, and \[runs.imp\] with training.lr = 0.2",
        ),
        ('name = "{method}"\n[grid]\nseed = [0]', "contains {method}, which is no option of the study"),
        ('[runs."a/b"]\nseed = 1', "'a/b' cannot be the name of a run"),
        ("[runs.comparison]\nseed = 1", "'comparison' cannot be the name of a run"),
        ("[grid", "is not TOML"),
        ("[grid]\n", r"has no run: give \[grid\] options"),
        ("[runs.a]\nmethods = 1", r"unknown option 'methods'. Did you mean method or threads or model\?"),
        ("[runs.a]\nswa_fractoin = 1", r"Did you mean swa-fraction"),
        ('[compare]\nbasline = "imp"', r"\[compare\]: unknown option 'basline'. Did you mean baseline"),
        ('[compare]\nsplit = "tset"', r"Invalid enum value 'tset'.*compare.split"),
        (
            "[grid]\nseed = [0, 1]\n[runs.again]\nseed = 1",
            r"seed1 and again are the same run: \[grid\] with plan.seed = 1, and \[runs.again\] with plan.seed = 1",
        ),
    ],
)
def test_what_a_study_cannot_be_is_refused_with_the_place(text, message, tmp_path):
    head = "" if "recipe" in text else 'recipe = "digits-mlp"\n'
    with pytest.raises(SwampError, match=message) as error:
        runs_of(tmp_path, head + text)
    assert error.value.exit_code == 2
    assert "study.toml" in str(error.value)


def test_an_ambiguous_name_must_be_given_in_full(tmp_path, monkeypatch):
    fields = {"a.lr": 1, "b.lr": 2}
    monkeypatch.setattr("swamp.runs.study.flattened", lambda values: fields if "plan" in values else values)
    with pytest.raises(SwampError, match=r"'lr' may be a.lr or b.lr; write the whole name"):
        runs_of(tmp_path, "[runs.a]\nlr = 1")


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_ready_made_study_can_be_resolved(name):
    assert STUDIES[name]().configurations(configuration, name)


def test_a_study_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(SwampError, match="cannot read the study"):
        Study.load(tmp_path / "none.toml")


def test_another_study_in_the_folder_is_refused_with_the_differences_and_more_runs_are_welcome(tmp_path):
    a, b = RunConfig(), RunConfig(plan=Plan(seed=1))
    StudyDirectory.join(tmp_path / "s", {"a": a})
    assert dict(StudyDirectory.join(tmp_path / "s", {"a": a, "b": b}).runs) == {"a": a, "b": b}
    assert dict(StudyDirectory.open(tmp_path / "s").runs) == {"a": a, "b": b}
    for other, message in (({"a": b, "b": b}, "a (plan.seed: 0 -> 1)"), ({"a": a}, "b (not in the study given)")):
        with pytest.raises(SwampError, match=re.escape(message)):
            StudyDirectory.join(tmp_path / "s", other)
    assert dict(StudyDirectory.open(tmp_path / "s").runs) == {"a": a, "b": b}


def test_where_runs_lie_matters_not_to_a_study_and_the_last_word_counts(tmp_path):
    StudyDirectory.join(tmp_path / "s", {"a": RunConfig()})
    changed = RunConfig(device="cpu")
    assert not differences(RunConfig(), changed)
    StudyDirectory.join(tmp_path / "s", {"a": changed})
    assert StudyDirectory.open(tmp_path / "s").runs["a"].device == "cpu"


def test_a_folder_without_a_study_or_with_a_damaged_one_is_said(tmp_path):
    with pytest.raises(SwampError, match="holds no study"):
        StudyDirectory.open(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(SwampError, match=r"study.json is damaged"):
        StudyDirectory.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SwampError, match="cannot write to the folder"):
        StudyDirectory.join(tmp_path / "file" / "s", {"a": RunConfig()})
