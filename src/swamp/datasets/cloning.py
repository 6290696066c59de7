"""Behaviour cloning: the actions of a trained agent as plain labelled data, measured by accuracy and by return."""

import importlib.metadata
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.datasets.agents import EPISODES
from swamp.datasets.cache import cached
from swamp.datasets.environments import INSTALL, episode_returns, episode_seeds, make_environment
from swamp.datasets.problem import DataOptions, Problem, split_index
from swamp.errors import need
from swamp.training.rng import Seed, isolated
from swamp.training.task import Task

_ENV = "CartPole-v1"
_EXPERT_STEPS = 40_000
_TRAIN, _TEST = 8_000, 2_000
_RANDOM_ACTIONS = 0.2
"""Fraction of random actions: without them all observations are near the upright pole."""


def cartpole_clone(options: DataOptions, seed: Seed) -> Problem:
    """The actions of a PPO agent on CartPole as 2 classes: 8,000 training and 2,000 test observations of 4 numbers."""
    sb3 = need("stable_baselines3", INSTALL)
    version = importlib.metadata.version("stable-baselines3")
    found = cached(f"cartpole-expert-{version}-{_EXPERT_STEPS}", lambda: _demonstrations(sb3))
    observations, actions = found["observations"], found["actions"]
    train, held_out = split_index(_TRAIN, options, seed)
    test = torch.arange(_TRAIN, _TRAIN + _TEST)
    parts = {"test": test, "validation": train if held_out is None else held_out}
    measures = {
        split: partial(_measured, observations=observations[index], actions=actions[index], split=split)
        for split, index in parts.items()
    }
    task = Task.custom(
        (observations[train], actions[train]),
        _cross_entropy,
        measures["test"],
        validate=measures["validation"],
        error=_mistakes,
    )
    return Problem(task, (observations.shape[1],), 2, available=_TRAIN)


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    observations, actions = batch
    return F.cross_entropy(model(observations), actions)


def _mistakes(metrics: Any) -> float:
    return 1 - metrics["accuracy"]


def _measured(model: nn.Module, *, observations: Tensor, actions: Tensor, split: str) -> dict[str, float]:
    """Agreement with the agent, and the mean return of greedy episodes."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def act(batch: np.ndarray) -> np.ndarray:
        return model(torch.as_tensor(batch, device=device)).argmax(1).cpu().numpy()

    agreed = act(observations.cpu().numpy()) == actions.cpu().numpy()
    returns = episode_returns(act, partial(make_environment, _ENV), episode_seeds(split, EPISODES))
    return {"accuracy": float(agreed.mean()), "return": float(returns.mean())}


def _demonstrations(sb3: Any) -> dict[str, Tensor]:
    """Observations under the actions of a trained agent, some of them random, and the action that it prefers."""
    with isolated(Seed(0).at("expert")):
        agent = sb3.PPO(
            "MlpPolicy", _ENV, seed=0, device="cpu", learning_rate=1e-3, n_steps=1024, gamma=0.98, gae_lambda=0.9
        )
        agent.learn(_EXPERT_STEPS)
    env, random = make_environment(_ENV), np.random.default_rng(0)
    seen: list[np.ndarray] = []
    chosen: list[int] = []
    observation, _ = env.reset(seed=0)
    while len(seen) < _TRAIN + _TEST:
        preferred = int(agent.predict(observation, deterministic=True)[0])
        seen.append(observation)
        chosen.append(preferred)
        action = int(random.integers(2)) if random.random() < _RANDOM_ACTIONS else preferred
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    agent.env.close()
    return {"observations": torch.as_tensor(np.stack(seen), dtype=torch.float32), "actions": torch.as_tensor(chosen)}
