"""Stable-Baselines3: a callback that keeps a sparse agent's zeros, and a backend that trains particles as agents."""

import math
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp.algorithms import Plan
from swamp.backends import Backend, CustomTrainer, TrainJob
from swamp.datasets.environments import Agent
from swamp.errors import MaskError, SwampError, final_line
from swamp.integrations.settings import mask_to_hold, require_supported
from swamp.masks import Mask, Scope, hold
from swamp.training import Task, Training
from swamp.training.nan_checks import require_finite_weights
from swamp.training.optimizers import build_optimizer

try:
    import stable_baselines3 as sb3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv
except ImportError as error:
    raise ImportError(f"this adapter needs stable-baselines3 ({error}): pip install 'swamp[rl]'") from error

_ELSEWHERE = {
    **dict.fromkeys(("optimizer", "momentum", "nesterov", "weight_decay"), "policy_kwargs"),
    "clip": "max_grad_norm",
}
_SCORES = ("magnitude", "random")
_CLASSES = {"ppo": sb3.PPO, "dqn": sb3.DQN, "sac": sb3.SAC}


class Networks(nn.ModuleDict):
    """The networks of an algorithm that an optimizer trains, without target networks: q_net, or actor and critic."""

    def predict(self, observations: Any, deterministic: bool = True) -> tuple[Any, Any]:
        """Actions, as `predict` of the policy."""
        acting: Any = self["q_net"] if "q_net" in self else self["actor"]
        return acting.predict(observations, deterministic=deterministic)


def networks(algorithm: Any) -> nn.Module:
    """The networks of an algorithm of Stable-Baselines3 to prune, as one module with the names of `algorithm.policy`.

    Args:
        algorithm: PPO, A2C, DQN, SAC, TD3 or another algorithm with one policy.

    Returns:
        The policy itself; where it has target networks, its other networks. It shares all weights with the algorithm,
        and its `predict` gives actions.

    Examples:
        >>> import swamp
        >>> from stable_baselines3 import DQN
        >>> agent = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]})
        >>> list(swamp.Mask.ones(networks(agent)))
        ['q_net.q_net.0.weight', 'q_net.q_net.2.weight']
    """
    children = dict(algorithm.policy.named_children())
    if not any(name.endswith("_target") for name in children):
        return algorithm.policy
    return Networks({name: child for name, child in children.items() if not name.endswith("_target")})


class HoldMask(BaseCallback):
    """Keeps pruned weights, gradients and optimizer state at zero while an algorithm learns; target networks too.

    The zeros are kept at each optimizer step (`swamp.hold`), not when Stable-Baselines3 calls its callbacks, which is
    once per step of the environments. Target networks start with the same zeros, and averages and copies of sparse
    weights are sparse.

    Args:
        mask: With the parameter names of `networks(model)`. By default `Mask.from_zeros(networks(model), scope)` when
            learning begins: weights that are zero then stay zero.
        scope: The prunable parameters for the default mask.

    Raises:
        MaskError: If an optimizer was replaced, or a pruned weight is not zero at the end of learning.
        SwampError: For a dense agent without a mask.

    Examples:
        ```python
        model.learn(100_000, callback=HoldMask(mask))
        ```
    """

    def __init__(self, mask: Mask | None = None, scope: Scope | None = None) -> None:
        super().__init__()
        self.mask, self.scope = mask, scope
        self.held, self.holding = ExitStack(), mask
        self.optimizers: list[torch.optim.Optimizer] = []

    def _on_training_start(self) -> None:
        with suppress(MaskError):
            self.held.close()  # of a training that failed
        pruned = networks(self.model)
        self.holding = mask_to_hold(self.mask, pruned, self.scope, "")
        self.optimizers = _optimizers(self.model)
        for optimizer in self.optimizers:
            self.held.enter_context(hold(pruned, self.holding, optimizer, only_backward=True))
        for name, weight in _targets(self.model, self.holding).items():
            weight.data.masked_fill_(~self.holding[name].to(weight.device), 0.0)

    def _on_rollout_start(self) -> None:
        if [id(one) for one in self.optimizers] != [id(one) for one in _optimizers(self.model)]:
            raise MaskError(
                "an optimizer of this agent is not the one that it had when learning began: something replaced it, so "
                "that pruned weights would become nonzero. Replace it before learn()."
            )

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        assert self.holding is not None
        followed = dict(networks(self.model).named_parameters()) | _targets(self.model, self.holding)
        self.holding.require_zeros(followed)
        self.held.close()


def _optimizers(algorithm: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of the policy, in the order in which they step: the critic's before the actor's."""
    found = [getattr(part, "optimizer", None) for part in (algorithm.policy, *algorithm.policy.children())]
    return [one for one in found if one is not None][::-1]


def _targets(algorithm: Any, mask: Mask) -> dict[str, Tensor]:
    """Name of a masked weight -> the weight of the target network that follows it."""
    parameters = dict(algorithm.policy.named_parameters())
    names = {name: re.sub(r"^(\w+)\.", r"\1_target.", name) for name in mask}
    return {name: parameters[target] for name, target in names.items() if target in parameters}


class _Finished(Exception):  # noqa: N818  (not an error)
    """The last optimizer step was taken."""


class _Steps(BaseCallback):
    """Counts optimizer steps and ends the learning after the last; collects the losses that the algorithm logs."""

    def __init__(self, job: TrainJob) -> None:
        super().__init__()
        self.job, self.losses = job, list[float]()

    def _on_training_start(self) -> None:
        # Registered after the hooks of HoldMask: the weights of a sample of the average are masked.
        # The critic's optimizer takes every step, and an actor's the last of a gradient step, or fewer (TD3).
        chosen = _optimizers(self.model)[0 if hasattr(self.model, "policy_delay") else -1]
        chosen.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.job.stepped()
        if self.job.step >= self.job.last:
            raise _Finished

    def _on_rollout_start(self) -> None:
        logged: dict[str, float] = self.model.logger.name_to_value
        self.losses += [float(logged[name]) for name in ("train/loss", "train/critic_loss") if name in logged]

    def _on_step(self) -> bool:
        return True


def backend(model: nn.Module, task: Task, make: Callable[[TrainJob], Any], *, rates: bool = True) -> CustomTrainer:
    """A backend that trains each particle as an agent of its own, by any algorithm of Stable-Baselines3.

    Each particle has its own environments, exploration and (empty) replay buffer, all seeded by the particle's seed;
    optimizer state, target networks, exploration rate and learned temperature start anew. A particle that was
    interrupted starts again; finished particles are kept.

    Args:
        model: `networks(algorithm)` of an algorithm like those of `make`; each particle is a copy.
        task: Evaluates the particles (`Task.custom`); its training data give the optimizer steps of an epoch.
        make: `job -> algorithm` with its environments. The backend sets its seed and its weights.
        rates: Whether swamp sets the learning rate (its schedule and constant SWA phase), once per rollout. False: the
            algorithm's own schedule runs over the whole training.

    Returns:
        A backend for `swamp.prune(..., backend=...)`.

    Raises:
        SwampError: During training: other networks than `model`, a `target_kl` or training by episodes, with which the
            number of optimizer steps is not known, or settings of `Training` that have no effect.

    Examples:
        See `examples/stable_baselines3_agent.py`.
    """

    def train(job: TrainJob) -> float:
        require_supported(job.training, _ELSEWHERE)
        return _learn(make(job), job, rates)

    return CustomTrainer(model, task, train)


def _learn(algorithm: Any, job: TrainJob, rates: bool) -> float:
    transitions = _transitions(algorithm, job.total)
    _share_weights(job.model, algorithm)
    algorithm.set_random_seed(job.number)
    algorithm.set_logger(Logger(None, []))
    if rates:
        algorithm.lr_schedule = partial(_rate, job)
    holding, steps = HoldMask(job.mask), _Steps(job)
    with holding.held:
        try:
            algorithm.learn(transitions, callback=[holding, steps], log_interval=None)
        except _Finished:
            holding.on_training_end()
        except ValueError:
            # Distributions refuse outputs that are not finite.
            require_finite_weights(dict(job.model.named_parameters()), job.step, job.training)
            raise
        finally:
            algorithm.env.close()
    return math.fsum(steps.losses) / max(1, len(steps.losses))


def _rate(job: TrainJob, progress_remaining: float) -> float:
    del progress_remaining
    return job.rate()


def _transitions(algorithm: Any, updates: int) -> int:
    """Steps of the environments in which `updates` optimizer steps are taken, and a rollout more."""
    if getattr(algorithm, "target_kl", None) is not None:
        raise SwampError("omit target_kl: with it the number of optimizer steps is not known before the training.")
    if hasattr(algorithm, "rollout_buffer"):
        rollout = algorithm.n_steps * algorithm.n_envs
        each = getattr(algorithm, "n_epochs", 1) * -(-rollout // getattr(algorithm, "batch_size", rollout))
        return (-(-updates // each) + 1) * rollout
    frequency = algorithm.train_freq
    if frequency.unit.value != "step" or algorithm.gradient_steps == 0:
        raise SwampError(
            "train_freq must be a number of steps, and gradient_steps not 0: otherwise the number of optimizer steps "
            "is not known before the training."
        )
    rollout = frequency.frequency * algorithm.n_envs
    each = algorithm.gradient_steps if algorithm.gradient_steps > 0 else rollout
    return algorithm.learning_starts + (-(-updates // each) + 2) * rollout


def _share_weights(model: nn.Module, algorithm: Any) -> None:
    """Give the algorithm the weights of `model`, and let both share them; target networks are set to them too."""
    trained = networks(algorithm)
    try:
        trained.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise SwampError(
            f"make(job) must return an algorithm with the networks of the model: {final_line(error)}"
        ) from error
    for name, child in algorithm.policy.named_children():
        if name.endswith("_target"):
            child.load_state_dict(getattr(algorithm.policy, name.removesuffix("_target")).state_dict())
    own = {**dict(trained.named_parameters()), **dict(trained.named_buffers())}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.data = own[name].data


# Agents of ready-made tasks, see swamp.datasets.agents.


def agent_backend(model: nn.Module, task: Task, agent: Agent, name: str, plan: Plan, training: Training) -> Backend:
    """The backend of an agent with the network `name`. Raises SwampError for settings that have no effect on it."""
    own = {field: getattr(Training(), field) for field in _ELSEWHERE}  # these are used
    require_supported(replace(plan.training(training, 0), **own), {})
    if plan.score_name not in _SCORES:
        raise SwampError(
            f"the score {plan.score_name} needs the loss of a batch, and an agent has none. Choose a method with "
            f"{' or '.join(_SCORES)}."
        )

    if agent.algorithm == "ppo" and agent.rollout % training.batch_size:
        raise SwampError(
            f"batch_size must divide the {agent.rollout} transitions that ppo collects, got {training.batch_size}."
        )

    def train(job: TrainJob) -> float:
        return _learn(_algorithm(agent, name, job.training), job, rates=True)

    return CustomTrainer(model, task, train)


def agent_networks(agent: Agent, name: str) -> nn.Module:
    """New networks of an agent, with random weights from torch's global generator.

    name: mlp-W1-W2-..., the hidden layers of actor and critic each, or of the network of values.
    """
    return networks(_algorithm(agent, name, Training(optimizer="Adam", batch_size=agent.rollout)))


def _algorithm(agent: Agent, name: str, training: Training) -> Any:
    def optimizer(parameters: Any, lr: Any, **_: Any) -> torch.optim.Optimizer:
        return build_optimizer(parameters, training)

    kwargs: dict[str, Any] = {"net_arch": _widths(name), "optimizer_class": optimizer}
    clip = {} if agent.algorithm == "sac" else {"max_grad_norm": training.clip or math.inf}
    return _CLASSES[agent.algorithm](
        "MlpPolicy",
        DummyVecEnv([agent.make] * agent.environments),
        learning_rate=training.lr,
        batch_size=training.batch_size,
        policy_kwargs=kwargs,
        device="cpu",
        **clip,
        **agent.options,
    )


def _widths(name: str) -> list[int]:
    if not re.fullmatch(r"mlp(-[1-9]\d{0,4})+", name, re.ASCII):
        raise SwampError(
            f"{name} is no network of a ready-made agent: expected mlp-W1-W2-..., e.g. mlp-64-64, for actor and critic "
            "each. Train other policies from Python: docs/howto/stable_baselines3.md."
        )
    return [int(width) for width in name.split("-")[1:]]
