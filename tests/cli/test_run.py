"""Which configuration `swamp run` starts from: a recipe, a saved configuration, or the settings of a task."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from swamp import cli
from swamp.cli.run import _print_summary, recipe_or_config
from swamp.datasets import TASKS
from swamp.errors import SwampError
from swamp.recipes import RECIPES, configuration
from swamp.runs.config import RunConfig
from swamp.runs.execute import prepare
from swamp.runs.study import Study

from .command import swamp

OFFLINE = ["mnist1d", "mnist1d-10k", "digits", "movie-reviews", "movie-reviews-rating", "movie-reviews-text"]


def started(*arguments: object) -> RunConfig:
    """The configuration that these arguments of `swamp run` start from."""
    return recipe_or_config([*map(str, arguments)])[0]


def texts(folder: Path, count: int) -> Path:
    folder.mkdir()
    for part, rows in (("train", count), ("test", 20)):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"a {word} film", word] for word in ["good", "bad"] * (rows // 2))
    return folder


def images(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for shade, name in enumerate(("cats", "dogs")):
            (folder / part / name).mkdir(parents=True)
            for number in range(10):
                image.new("RGB", (64, 64), (200 * shade + number,) * 3).save(folder / part / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_by_position_and_by_option(name):
    assert started(name) == started("--recipe", name) == started(f"--recipe={name}") == started(name, "--recipe", name)
    assert started(name) == RECIPES[name]()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-mlp", "--recipe", "mnist1d-mlp"], "two recipes were given, digits-mlp and mnist1d-mlp"),
        (["--recipe", "digits-mpl"], "unknown recipe 'digits-mpl'. Did you mean digits-mlp"),
        (["--recipe", "--out", "x"], "--recipe needs the name of a recipe"),
        (["--recipe", "digits-mlp", "--config", "x.json"], "not both"),
        (["--task", "digist"], "unknown task 'digist'. Did you mean digits"),
    ],
)
def test_what_names_no_single_configuration_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_a_task_without_a_recipe_uses_all_its_examples_and_a_training_of_such_data(task):
    config = started("--task", task)
    assert config.task == task
    assert config.data.examples == (RECIPES["mnist1d-mlp"]().data.examples if task == "mnist1d-10k" else 0)
    like = [recipe() for recipe in (*RECIPES.values(), RunConfig) if recipe().training == config.training]
    assert config.model in [recipe.model for recipe in like]


@pytest.mark.filterwarnings("ignore:.* of the .* parameters are prunable")  # embeddings
@pytest.mark.slow_cases("rating", "text")
@pytest.mark.parametrize("task", OFFLINE)
def test_the_settings_of_a_task_fit_its_data(task):
    config = started("--task", task)
    problem, model = prepare(config)
    inputs, _ = next(iter(problem.task.train.in_order(2)))
    with torch.no_grad():
        assert len(problem.task.forward(model, inputs)) == 2


def test_digits_are_trained_by_their_own_recipe_with_all_their_examples():
    assert started("--task", "digits") == RECIPES["digits-mlp"]()
    assert len(prepare(started("--task", "digits"))[0].task.train) == 1294


def test_of_several_tasks_the_last_one_decides_the_settings_too():
    assert started("--task", "mnist1d", "--task=digits") == RECIPES["digits-mlp"]()


def test_ranks_that_the_environment_announces_only_in_part_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert swamp("run", "digits-mlp", "--out", tmp_path / "run") == 2
    assert "Start them with torchrun, or unset WORLD_SIZE" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", ""), ("LOCAL_WORLD_SIZE", "0")])
def test_a_variable_of_torchrun_that_is_no_number_is_named(monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.setenv("WORLD_SIZE", "2" if name == "RANK" else "1")
    monkeypatch.setenv(name, value)
    assert swamp("run", "digits-mlp", "--backend", "threads", "--out", tmp_path / "run") == 2
    assert f"{name} is {value!r}, expected a whole number" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_folder_of_texts_is_used_whole(tmp_path):
    config = started("--task", "text-folder")
    assert (config.model, config.training.optimizer) == ("encoder-2-64", "adamw")
    problem, _ = prepare(replace(config, data=replace(config.data, folder=str(texts(tmp_path / "texts", 6000)))))
    assert len(problem.task.train) == 5400
    assert len(problem.task.validation or ()) == 600


def test_a_folder_of_images_gets_a_network_for_images(tmp_path):
    config = started("--task", "image-folder")
    assert config.model == "resnet-20"
    problem, _ = prepare(replace(config, data=replace(config.data, folder=str(images(tmp_path)))))
    assert len(problem.task.train) == 18


def test_a_model_that_a_recipe_has_brings_the_training_of_that_recipe():
    assert started("--task", "text-folder", "--model", "minilm").training == RECIPES["movie-reviews-minilm"]().training
    assert started("--task", "text-folder", "--model=hf:x").training == RECIPES["movie-reviews-minilm"]().training
    assert started("--task=fashion-mnist", "--model", "resnet-20").training.epochs == 30


def test_a_recipe_with_another_task_keeps_its_method_and_takes_the_data_model_and_training_of_the_task(tmp_path):
    base = RECIPES["mnist1d-mlp"]()
    config, digits = started("mnist1d-mlp", "--task", "digits"), RECIPES["digits-mlp"]()
    assert config.plan == replace(base.plan, ticket_epochs=digits.plan.ticket_epochs)
    assert (config.model, config.training, config.data.examples) == (digits.model, digits.training, 0)
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(replace(base, backend="sequential").to_json()))
    assert started("--config", saved, "--task", "digits") == replace(config, backend="sequential")


def test_a_recipe_with_its_own_task_is_the_recipe():
    assert started("--task", "mnist1d-10k") == started()


def test_a_study_over_tasks_starts_each_run_from_the_settings_of_its_task():
    study = Study(recipe="mnist1d-mlp", grid={"task": ["mnist1d-10k", "digits"]}, settings={"seed": 3})
    runs = study.configurations(configuration, "study")
    assert runs["mnist1d-10k"].data.examples == 3600
    digits = runs["digits"]
    assert (digits.model, digits.data.examples, digits.plan.seed) == (RECIPES["digits-mlp"]().model, 0, 3)
    with pytest.raises(SwampError, match="unknown task '5'"):
        Study(grid={"task": [5]}).configurations(configuration, "study")


def test_an_option_that_the_method_ignores_is_refused_before_the_run(tmp_path, capsys):
    path = str(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "digits-mlp", "--method", "imp", "--update-interval", "30", "--out", path])
    assert ended.value.code == 2
    assert "--update-interval has no effect: the mask of imp does not change" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    # The values of a recipe serve all methods.
    config, rest = recipe_or_config(["digits-mlp", "--method", "imp"])
    assert config.plan.particles != (1,)
    assert rest == ["--method", "imp"]


def test_an_option_that_a_comparison_gives_to_all_methods_is_named(tmp_path, capsys):
    small = [
        "--examples",
        "64",
        "--epochs",
        "1",
        "--ticket-epochs",
        "0",
        "--sparsity",
        "0.5",
        "--cycles",
        "1",
        "--quiet",
    ]
    cli.main(["run", "digits-mlp", "--method", "imp", "--particles", "3", *small, "--out", str(tmp_path / "run")])
    assert "warning: --particles has no effect: imp trains one particle per cycle." in capsys.readouterr().err


def test_the_last_table_has_one_definition_of_sparsity():
    dense, sparse = (
        {"sparsity": 1 - one, "density": {"all": 0.9 * one + 0.1}, "test": {"accuracy": 0.5}} for one in (1.0, 0.5)
    )
    done = {**sparse, "dense": dense, "method": "imp", "run": "runs/x", "seconds": 1.0, "cycles": []}
    shown = io.StringIO()
    _print_summary(done, Console(file=shown, width=100))
    table = [line.split() for line in shown.getvalue().splitlines()]
    assert ["sparsity", "%", "of", "all", "%", "test", "accuracy"] in table
    assert [words[:3] for words in table if words[:1] in (["dense"], ["sparse"])] == [
        ["dense", "0.00", "0.00"],
        ["sparse", "50.00", "45.00"],
    ]
