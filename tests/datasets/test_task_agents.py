from functools import partial

import numpy as np
import pytest
import stable_baselines3
import torch
from torch import nn

import swamp.datasets.agents as agents
import swamp.datasets.cloning as cloning
from swamp import Seed, SwampError
from swamp.cli import main
from swamp.datasets import build_problem
from swamp.datasets.environments import Agent, episode_returns, episode_seeds, make_environment, random_observations
from swamp.datasets.problem import DataOptions
from swamp.recipes import RECIPES, configuration

OPTIONS = {"n_steps": 16, "n_epochs": 2}


def left(observations: np.ndarray) -> np.ndarray:
    return np.zeros(len(observations), np.int64)


def upright(observations: np.ndarray) -> np.ndarray:
    """A hand-made controller that balances CartPole."""
    return (observations[:, 2] + 0.3 * observations[:, 3] > 0).astype(np.int64)


CARTPOLE = partial(make_environment, "CartPole-v1")


def test_returns_are_those_of_single_episodes_one_after_another():
    seeds = episode_seeds("test", 4)
    together = episode_returns(upright, CARTPOLE, seeds)
    for seed, found in zip(seeds, together, strict=True):
        env, total, over = CARTPOLE(), 0.0, False
        observation, _ = env.reset(seed=seed)
        while not over:
            observation, reward, terminated, truncated, _ = env.step(int(upright(observation[None])[0]))
            total, over = total + float(reward), terminated or truncated
        assert found == total
    assert (together > 100).all()
    assert (episode_returns(left, CARTPOLE, seeds) < 12).all()


def test_validation_and_test_have_other_seeds():
    validation, test = (episode_seeds(split, 20) for split in ("validation", "test"))
    assert len({*validation, *test}) == 40
    assert max(*validation, *test) < 2**31


def test_an_episode_ends_at_its_longest_length():
    found = episode_returns(upright, partial(make_environment, "CartPole-v1", 7), [0, 1])
    assert found.tolist() == [7.0, 7.0]


def test_observations_follow_from_the_seed():
    first, again = (random_observations(CARTPOLE, 40, Seed(1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (40, 4)
    assert not np.array_equal(first, random_observations(CARTPOLE, 40, Seed(2)))


@pytest.mark.parametrize(
    ("agent", "batch_size", "updates"),
    [
        (Agent("ppo", "CartPole-v1", 2, OPTIONS), 8, 3 * 2 * 4),
        (Agent("ppo", "CartPole-v1", 2, OPTIONS), 32, 3 * 2),
        (Agent("dqn", "CartPole-v1", 4, {"train_freq": 2, "gradient_steps": 3}), 32, 12 * 3),
    ],
)
def test_an_epoch_has_the_updates_of_its_transitions(agent: Agent, batch_size: int, updates: int):
    assert agent.updates(100, batch_size) == updates


def test_the_error_is_the_shortfall_in_units_of_the_range_of_returns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agents, "EPISODES", 2)
    problem = agents.problem(Agent("ppo", "CartPole-v1", 1, OPTIONS), DataOptions(examples=32), best=500, worst=100)

    class Left(nn.Linear):
        def predict(self, observations: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
            assert deterministic
            return left(observations), None

    measured = problem.task.evaluate(Left(1, 1), "validation")
    assert measured.error == pytest.approx((500 - measured.metrics["return"]) / 400)
    assert (problem.shape, problem.classes) == ((4,), 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppo:CartPol-v1", "unknown environment 'CartPol-v1'. Did you mean CartPole-v1"),
        ("dqn:Pendulum-v1", "dqn takes the action spaces Discrete, and Pendulum-v1 has Box. Choose ppo or sac."),
        ("sac:CartPole-v1", "sac takes the action spaces Box, and CartPole-v1 has Discrete. Choose ppo or dqn."),
        ("ppo:FrozenLake-v1", "observations in a Discrete space"),
    ],
)
def test_what_an_algorithm_cannot_train_is_refused_before_any_work(name: str, message: str, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--task", name, "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named_with_the_extra_and_its_bracket(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path):
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(SystemExit) as ended:
        main(["run", "cartpole-ppo", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "swamp[rl]" in capsys.readouterr().err


def test_an_environment_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch):
    import gymnasium

    def missing(name: str, **options: object) -> None:
        raise gymnasium.error.DependencyNotInstalled('Box2D is not installed, run `pip install "gymnasium[box2d]"`')

    monkeypatch.setattr(gymnasium, "make", missing)
    with pytest.raises(SwampError, match=r'Box2D is not installed. Install it: pip install "swamp\[rl\]"'):
        make_environment("LunarLander-v3")


@pytest.mark.parametrize("task", ["lunarlander-dqn", "minatar-breakout-dqn", "minatar-asterix-dqn", "acrobot-ppo"])
def test_the_environment_of_each_task_can_be_made(task: str):
    problem = build_problem(task, "mlp-8", DataOptions(examples=600), Seed(0))
    assert problem.agent is not None
    assert problem.task.train.steps(64) > 0


def test_an_epoch_shorter_than_one_rollout_is_refused():
    with pytest.raises(SwampError, match="an epoch of 100 transitions is too short: ppo collects 256"):
        build_problem("cartpole-ppo", "mlp-8", DataOptions(examples=100), Seed(0))


def test_another_environment_gets_the_recipe_of_its_algorithm():
    assert configuration(task="ppo:Acrobot-v1").training == RECIPES["cartpole-ppo"]().training
    assert configuration(task="dqn:Acrobot-v1").training == RECIPES["lunarlander-dqn"]().training


def test_cloning_measures_agreement_with_the_agent_and_return(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agents, "EPISODES", 2)
    monkeypatch.setattr(cloning, "EPISODES", 2)
    seen = torch.as_tensor(random_observations(CARTPOLE, 10_000, Seed(0)))
    labels = torch.as_tensor(upright(seen.numpy()))
    monkeypatch.setattr(cloning, "cached", lambda name, make: {"observations": seen, "actions": labels})
    problem = build_problem("cartpole-cloning", "mlp-8", DataOptions(), Seed(0))
    assert (problem.agent, problem.shape, problem.classes, len(problem.task.train)) == (None, (4,), 2, 7_200)

    class Controller(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            score = input[:, 2] + 0.3 * input[:, 3]
            return torch.stack([-score, score], 1)

    for split in ("validation", "test"):
        measured = problem.task.evaluate(Controller(1, 1), split)
        assert measured.metrics["accuracy"] == 1
        assert measured.metrics["return"] > 100
        assert measured.error == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_demonstrations_are_what_a_trained_agent_prefers(monkeypatch: pytest.MonkeyPatch):
    for name, small in (("_EXPERT_STEPS", 1_024), ("_TRAIN", 200), ("_TEST", 50)):
        monkeypatch.setattr(cloning, name, small)
    before = torch.get_rng_state()
    found = cloning._demonstrations(stable_baselines3)
    assert torch.equal(before, torch.get_rng_state())
    assert found["observations"].shape == (250, 4)
    assert set(found["actions"].tolist()) == {0, 1}
