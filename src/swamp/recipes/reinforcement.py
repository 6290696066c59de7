"""Ready-made configurations of reinforcement learning."""

from dataclasses import replace

from swamp.algorithms import Plan
from swamp.runs.config import RunConfig
from swamp.training import Training


def cartpole_ppo() -> RunConfig:
    """PPO on CartPole, 20,480 environment steps per particle; minutes (pip install "swamp[rl]")."""
    return RunConfig(
        recipe="cartpole-ppo",
        task="cartpole-ppo",
        model="mlp-64-64",
        # The output layers have few weights, and PPO begins with small ones: pruning would empty them first.
        plan=Plan(
            sparsity=0.95,
            prune_fraction=(0.55,),
            ticket_epochs=1,
            barrier_points=3,
            exclude=("action_net.*", "value_net.*"),
        ),
        training=Training(
            epochs=10, batch_size=64, optimizer="Adam", lr=3e-3, weight_decay=0.0, clip=0.5, swa_fraction=0.3
        ),
        threads=1,
    )


def acrobot_ppo() -> RunConfig:
    """PPO on Acrobot, 40,960 environment steps per particle; minutes (pip install "swamp[rl]")."""
    cartpole = cartpole_ppo()
    training = replace(cartpole.training, epochs=20, lr=1e-3)
    return replace(cartpole, recipe="acrobot-ppo", task="acrobot-ppo", training=training)


def lunarlander_dqn() -> RunConfig:
    """DQN on LunarLander, 40,960 environment steps per particle, not solved; minutes (pip install "swamp[rl]")."""
    return RunConfig(
        recipe="lunarlander-dqn",
        task="lunarlander-dqn",
        model="mlp-64-64",
        plan=Plan(
            sparsity=0.9,
            particles=(2,),
            prune_fraction=(0.55,),
            ticket_epochs=2,
            barrier_points=1,
            prune_output_layer="no",
        ),
        training=Training(
            epochs=20, batch_size=64, optimizer="Adam", lr=1e-3, weight_decay=0.0, clip=10.0, swa_fraction=0.3
        ),
        threads=1,
    )


def minatar_breakout_dqn() -> RunConfig:
    """DQN on MinAtar's Breakout, 40,960 environment steps per particle; minutes (pip install "swamp[rl]")."""
    return replace(lunarlander_dqn(), recipe="minatar-breakout-dqn", task="minatar-breakout-dqn", model="mlp-128-64")


def minatar_asterix_dqn() -> RunConfig:
    """DQN on MinAtar's Asterix, 40,960 environment steps per particle; minutes (pip install "swamp[rl]")."""
    return replace(minatar_breakout_dqn(), recipe="minatar-asterix-dqn", task="minatar-asterix-dqn")


def cartpole_cloning() -> RunConfig:
    """Imitation of a trained agent on CartPole, as classification: the control for cartpole-ppo; a minute."""
    cartpole = cartpole_ppo()
    return replace(
        cartpole,
        recipe="cartpole-cloning",
        task="cartpole-cloning",
        plan=replace(cartpole.plan, exclude=(), prune_output_layer="no"),
        training=replace(cartpole.training, epochs=20),
    )
