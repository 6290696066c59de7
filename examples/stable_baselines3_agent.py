"""Stable-Baselines3: particles are agents trained by the user's own algorithm; then a sparse agent goes on learning.

python examples/stable_baselines3_agent.py FOLDER  (takes seconds; needs pip install "swamp[rl]")
"""

import sys
from pathlib import Path

import torch
from gymnasium import make
from stable_baselines3 import PPO

import swamp
from swamp.backends import TrainJob
from swamp.integrations import stable_baselines3

ENV = "CartPole-v1"


def agent(batch_size: int = 64) -> PPO:
    return PPO(
        "MlpPolicy", ENV, n_steps=128, n_epochs=5, batch_size=batch_size, gamma=0.98, policy_kwargs={"net_arch": [32]}
    )


def train_agent(job: TrainJob) -> PPO:
    return agent(job.training.batch_size)


def mean_length(model: torch.nn.Module) -> dict[str, float]:
    """Mean return of two greedy episodes with fixed seeds, at most 200 steps each."""
    env, steps = make(ENV, max_episode_steps=200), 0
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        over = False
        while not over:
            observation, _, fell, late, _ = env.step(model.predict(observation, deterministic=True)[0])
            over, steps = fell or late, steps + 1
    return {"return": steps / 2}


def outputs(model: torch.nn.Module, observations: torch.Tensor) -> torch.Tensor:
    """Not trained with: the library counts FLOPs by it."""
    values, log_probabilities, _ = model.evaluate_actions(observations, torch.zeros(len(observations)))
    return values.square().mean() - log_probabilities.mean()


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = stable_baselines3.networks(agent())
    # An epoch: 4 rollouts of 128 steps, each used for 5 passes in batches of 64.
    task = swamp.Task.custom([torch.randn(64, 4)] * (4 * 5 * 2), outputs, mean_length, error_scale=200, error=below_200)
    plan = swamp.Plan(sparsity=0.8, particles=(2,), cycles=2, exclude=("action_net.*", "value_net.*"), barrier_points=0)
    training = swamp.Training(epochs=2, batch_size=64, lr=3e-3, swa_fraction=0.5)
    backend = stable_baselines3.backend(model, task, train_agent)
    for cycle in swamp.cycles(model, task, plan, training, backend=backend):
        print(f"sparsity {cycle.sparsity:.4f}, return {cycle.metrics.test['return']:.1f}")
    cycle.mask.save(folder / "mask.safetensors")

    sparse = agent()
    sparse.policy.load_state_dict(dict(cycle.weights))
    sparse.learn(128, callback=stable_baselines3.HoldMask(cycle.mask))
    sparse.save(folder / "agent.zip")
    print(f"{cycle.mask}, zeros kept: {swamp.Mask.from_zeros(sparse.policy, plan.scope) == cycle.mask}")


def below_200(metrics: dict[str, float]) -> float:
    return 200 - metrics["return"]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("."))
