"""Reinforcement learning: environments of gymnasium, and the mean return of a policy in them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swamp.errors import SwampError, need, unknown
from swamp.training.rng import Seed

INSTALL = "swamp[rl]"
ACTION_SPACES = {"ppo": ("Discrete", "Box", "MultiDiscrete", "MultiBinary"), "dqn": ("Discrete",), "sac": ("Box",)}
"""Algorithm of Stable-Baselines3 -> the action spaces that it takes."""

Act = Callable[[np.ndarray], np.ndarray]
"""Observations (n, ...) -> actions (n, ...)."""


@dataclass(frozen=True)
class Agent:
    """How a model is trained by reinforcement learning instead of by the batches of its task.

    Args:
        algorithm: ppo, dqn or sac, of Stable-Baselines3.
        env: Identifier of an environment in gymnasium's registry.
        environments: Copies of it in which transitions are collected.
        options: Other arguments of the algorithm's class. Learning rate, batch size, clipping and optimizer are those
            of `Training`.
        max_steps: Longest episode (None: as the environment has it).

    Raises:
        SwampError: The algorithm or environment is unknown or not installed, or one does not take the other's spaces.
    """

    algorithm: str
    env: str
    environments: int = 1
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ACTION_SPACES:
            raise unknown("algorithm", self.algorithm, ACTION_SPACES)
        need("stable_baselines3", INSTALL)
        env = self.make()
        actions, observations = type(env.action_space).__name__, type(env.observation_space).__name__
        env.close()
        takes = ACTION_SPACES[self.algorithm]
        if actions not in takes:
            others = [name for name, spaces in ACTION_SPACES.items() if actions in spaces]
            advice = f" Choose {' or '.join(others)}." if others else ""
            raise SwampError(
                f"{self.algorithm} takes the action spaces {', '.join(takes)}, and {self.env} has {actions}.{advice}"
            )
        if observations != "Box":
            raise SwampError(
                f"{self.env} has observations in a {observations} space, and arrays (Box) are supported. Wrap the "
                "environment, and train it from Python: docs/howto/stable_baselines3.md."
            )

    def make(self) -> Any:
        """A new environment."""
        return make_environment(self.env, self.max_steps)

    def updates(self, env_steps: int, batch_size: int) -> int:
        """Optimizer steps for this many transitions, without those before learning starts."""
        on_policy = self.algorithm == "ppo"
        each = (
            self.options["n_epochs"] * -(-self.rollout // batch_size) if on_policy else self.options["gradient_steps"]
        )
        return env_steps // self.rollout * each

    @property
    def rollout(self) -> int:
        """Transitions between two groups of optimizer steps."""
        return self.environments * self.options["n_steps" if self.algorithm == "ppo" else "train_freq"]


def make_environment(name: str, max_steps: int | None = None) -> Any:
    """A new environment by its identifier. Raises SwampError if it is unknown, or a library of it is missing."""
    gymnasium = need("gymnasium", INSTALL)
    if name.startswith("MinAtar/") and name not in gymnasium.registry:
        need("minatar.gym", INSTALL).register_envs()
    if name not in gymnasium.registry:
        raise unknown("environment", name, list(gymnasium.registry))
    try:
        # Box2D warns when it is imported, which ends the process where warnings are errors.
        with warnings.catch_warnings(action="ignore"):
            return gymnasium.make(name, max_episode_steps=max_steps)
    except gymnasium.error.DependencyNotInstalled as error:
        reason, _, advice = str(error).partition(", run `")
        box2d = "box2d" in str(gymnasium.registry[name].entry_point)
        install = f'pip install "{INSTALL}"' if box2d else advice.rstrip("`")
        raise SwampError(f"the environment {name} needs a library: {reason}. Install it: {install}") from error


def episode_seeds(split: str, episodes: int) -> list[int]:
    """Seeds of the episodes of a split, "validation" or "test", below 2 ** 31: the same for every run."""
    return [Seed(0).at("episodes", split, index).number() % 2**31 for index in range(episodes)]


def episode_returns(act: Act, make: Callable[[], Any], seeds: Sequence[int]) -> np.ndarray:
    """The return (sum of rewards) of one episode for each seed, float64 (episodes,).

    The episodes run side by side, each in a new environment, so that they depend on nothing but seed and actions.
    """
    envs = [make() for _ in seeds]
    observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    found, running = np.zeros(len(seeds)), list(range(len(seeds)))
    while running:
        actions = act(np.stack([observations[index] for index in running]))
        going: list[int] = []
        for index, action in zip(running, actions, strict=True):
            observations[index], reward, terminated, truncated, _ = envs[index].step(action)
            found[index] += float(reward)
            if not (terminated or truncated):
                going.append(index)
        running = going
    for env in envs:
        env.close()
    return found


def random_observations(make: Callable[[], Any], count: int, seed: Seed) -> np.ndarray:
    """Observations (count, ...) of uniformly random actions: typical inputs of an untrained policy."""
    env = make()
    env.action_space.seed(seed.at("actions").number() % 2**31)
    observation, _ = env.reset(seed=seed.at("environment").number() % 2**31)
    found = [observation]
    while len(found) < count:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            observation, _ = env.reset()
        found.append(observation)
    env.close()
    return np.stack(found)
