"""Tasks of reinforcement learning: an algorithm in an environment, measured by its mean return in held-out episodes."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp.batches import Batch
from swamp.datasets.environments import ACTION_SPACES, Agent, episode_returns, episode_seeds, random_observations
from swamp.datasets.problem import DataOptions, Problem
from swamp.errors import SwampError
from swamp.training.data import TensorData
from swamp.training.rng import Seed
from swamp.training.task import Task

EPISODES = 20
"""Episodes of the validation and of the test set."""
_TRANSITIONS = 2_048
_SEED = Seed(0).at("observations")

_PPO: dict[str, Any] = {"n_steps": 32, "n_epochs": 5, "gamma": 0.98, "gae_lambda": 0.8}
_DQN: dict[str, Any] = {
    "train_freq": 4,
    "gradient_steps": 4,
    "buffer_size": 50_000,
    "learning_starts": 1_000,
    "target_update_interval": 500,
    "exploration_fraction": 0.3,
    "exploration_final_eps": 0.05,
    "gamma": 0.99,
}
_SAC: dict[str, Any] = {"train_freq": 1, "gradient_steps": 1, "buffer_size": 50_000, "learning_starts": 1_000}
_USUAL = {"ppo": (8, _PPO), "dqn": (4, _DQN), "sac": (1, _SAC)}
"""Algorithm -> environments and options, for an environment without a task of its own."""


def ppo_on_cartpole(options: DataOptions, seed: Seed) -> Problem:
    """PPO on CartPole-v1; mean return of 20 greedy episodes, at most 500 (pip install "swamp[rl]")."""
    return problem(Agent("ppo", "CartPole-v1", 8, _PPO), options, best=500, worst=0)


def ppo_on_acrobot(options: DataOptions, seed: Seed) -> Problem:
    """PPO on Acrobot-v1; mean return of 20 greedy episodes, -500 at worst (pip install "swamp[rl]")."""
    own = {"n_steps": 64, "n_epochs": 5, "gamma": 0.99, "gae_lambda": 0.94}
    return problem(Agent("ppo", "Acrobot-v1", 8, own), options, best=0, worst=-500)


def dqn_on_lunarlander(options: DataOptions, seed: Seed) -> Problem:
    """DQN on LunarLander-v3; mean return of 20 greedy episodes, solved at 200 (pip install "swamp[rl]")."""
    own = {**_DQN, "target_update_interval": 250, "exploration_fraction": 0.2}
    return problem(Agent("dqn", "LunarLander-v3", 4, own), options, best=300, worst=-300)


def dqn_on_breakout(options: DataOptions, seed: Seed) -> Problem:
    """DQN on MinAtar's Breakout; mean return of 20 greedy episodes of 1,000 steps (pip install "swamp[rl]")."""
    return problem(Agent("dqn", "MinAtar/Breakout-v1", 4, _DQN, 1_000), options, best=30, worst=0)


def dqn_on_asterix(options: DataOptions, seed: Seed) -> Problem:
    """DQN on MinAtar's Asterix; mean return of 20 greedy episodes of 1,000 steps (pip install "swamp[rl]")."""
    return problem(Agent("dqn", "MinAtar/Asterix-v1", 4, _DQN, 1_000), options, best=30, worst=0)


def is_agent(name: str) -> bool:
    """Whether the name of a task is ALGORITHM:ENVIRONMENT, such as ppo:CartPole-v1."""
    return name.partition(":")[0] in ACTION_SPACES and ":" in name


def agent_task(name: str, options: DataOptions, seed: Seed) -> Problem:
    """The problem of a task ALGORITHM:ENVIRONMENT. Its returns have no scale, so that barriers are not measured."""
    algorithm, _, env = name.partition(":")
    environments, own = _USUAL[algorithm]
    return problem(Agent(algorithm, env, environments, own), options)


def problem(agent: Agent, options: DataOptions, best: float | None = None, worst: float = 0.0) -> Problem:
    """The task of an agent; an epoch has `options.examples` transitions (0: 2,048).

    best, worst: returns with the errors 0 and 1 (None: the return gives no error, and barriers are not measured).

    Raises SwampError if an epoch has no update of the agent.
    """
    count = options.examples or _TRANSITIONS
    least = agent.rollout
    if count < least:
        raise SwampError(
            f"an epoch of {count} transitions is too short: {agent.algorithm} collects {least} per update."
        )
    observations = torch.as_tensor(random_observations(agent.make, count, _SEED), dtype=torch.float32)
    env = agent.make()
    outputs = int(getattr(env.action_space, "n", 0)) or math.prod(env.action_space.shape)
    env.close()
    task = Task.custom(
        _Experience(TensorData(observations, torch.empty(count, 0)), agent),
        _squared_outputs,
        partial(mean_return, agent=agent, split="test"),
        validate=partial(mean_return, agent=agent, split="validation"),
        error=None if best is None else partial(shortfall, best=best),
        error_scale=None if best is None else best - worst,
        higher_is_better=True,
    )
    return Problem(task, tuple(observations.shape[1:]), outputs, agent=agent)


def shortfall(metrics: Mapping[str, float], best: float) -> float:
    """How much the return is below `best`; 0 above it."""
    return max(0.0, best - metrics["return"])


def mean_return(model: nn.Module, *, agent: Agent, split: str) -> dict[str, float]:
    """The mean return of greedy episodes with the seeds of a split."""

    def act(observations: np.ndarray) -> np.ndarray:
        predict: Any = model.predict
        return predict(observations, deterministic=True)[0]

    return {"return": float(episode_returns(act, agent.make, episode_seeds(split, EPISODES)).mean())}


def _squared_outputs(model: Any, batch: Any) -> Tensor:
    """A number that depends on all outputs, to count FLOPs with. It is no algorithm's loss, and it is not trained."""
    observations = batch[0]
    if hasattr(model, "evaluate_actions"):
        actions = torch.zeros(len(observations), *model.action_space.shape, device=observations.device)
        outputs = model.evaluate_actions(observations, actions)[:2]
    elif "q_net" in model:
        outputs = [model["q_net"](observations)]
    else:
        actions = model["actor"](observations)
        outputs = [actions, *model["critic"](observations, actions)]
    return torch.stack([output.square().mean() for output in outputs]).sum()


@dataclass(frozen=True)
class _Experience:
    """Observations of random actions, to count FLOPs with; an epoch has the optimizer steps of the agent."""

    data: TensorData
    agent: Agent

    def __len__(self) -> int:
        """Transitions of an epoch."""
        return len(self.data)

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of an epoch."""
        return self.agent.updates(len(self.data), batch_size)

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Batch]:
        """As data in memory. No algorithm trains with these batches."""
        return self.data.shuffled(batch_size, seed, epoch, first)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All observations once."""
        return self.data.in_order(batch_size)

    def to(self, device: torch.device) -> "_Experience":
        """The same on `device`."""
        return replace(self, data=self.data.to(device))

    def subset(self, index: Tensor) -> TensorData:
        """The observations at `index`."""
        return self.data.subset(index)
