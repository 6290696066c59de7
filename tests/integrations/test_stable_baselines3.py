from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import swamp.datasets.agents as agents
from swamp import Mask, MaskError, Plan, Seed, SwampError, Training, cycles
from swamp.analysis.ablations import ParticleAblation
from swamp.backends import Progress, Ticket, TrainJob, TrainRequest
from swamp.datasets.agents import problem
from swamp.datasets.environments import Agent
from swamp.datasets.problem import DataOptions
from swamp.errors import Diverged, Interrupted
from swamp.integrations.stable_baselines3 import HoldMask, agent_backend, agent_networks, backend, networks
from swamp.training.rng import isolated

PPO_OPTIONS: dict[str, Any] = {"n_steps": 16, "n_epochs": 2}
DQN_OPTIONS: dict[str, Any] = {"train_freq": 4, "gradient_steps": 2, "learning_starts": 8, "buffer_size": 200}
SAC_OPTIONS: dict[str, Any] = {**DQN_OPTIONS, "train_freq": 8}
TRAINING = Training(epochs=2, batch_size=16, optimizer="Adam", lr=0.01, weight_decay=0.0, clip=0.5, swa_fraction=0.5)
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1)]
KINDS = {
    "ppo": (PPO, "CartPole-v1", {**PPO_OPTIONS, "batch_size": 8}),
    "dqn": (DQN, "CartPole-v1", {**DQN_OPTIONS, "target_update_interval": 4, "tau": 0.5}),
    "sac": (SAC, "Pendulum-v1", SAC_OPTIONS),
}


def algorithm(kind: str, **options: Any) -> Any:
    build, env, own = KINDS[kind]
    return build("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, **{**own, **options})


def half(model: Any) -> Mask:
    generator = torch.Generator().manual_seed(3)
    ones = Mask.ones(networks(model))
    return Mask({name: torch.rand(active.shape, generator=generator) < 0.5 for name, active in ones.items()})


def zeros(mask: Mask, tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool((tensors[name][~active] == 0).all()) for name, active in mask.items())


@pytest.fixture(autouse=True)
def _few_episodes_and_generators_kept(monkeypatch: pytest.MonkeyPatch):
    """Stable-Baselines3 seeds the global generators, also in the tests' own calls of it."""
    monkeypatch.setattr(agents, "EPISODES", 2)
    with isolated(Seed(9)):
        yield


@pytest.mark.slow_cases("sac")
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_of_every_network_and_of_adam_stay_after_each_step_of_an_optimizer(kind: str):
    model = algorithm(kind)
    mask, seen = half(model), [0]
    parts = [one for one in (model.policy, *model.policy.children()) if getattr(one, "optimizer", None) is not None]

    def check(optimizer: Any, args: Any, kwargs: Any) -> None:
        own = dict(networks(model).named_parameters())
        assert zeros(mask, dict(own))
        for name, active in mask.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                state = optimizer.state.get(own[name], {})
                assert moment not in state or bool((state[moment][~active] == 0).all())
        seen[0] += 1

    for part in parts:
        part.optimizer.register_step_post_hook(check)
    model.learn(48, callback=HoldMask(mask))
    assert seen[0] >= 8
    assert all(parameter.abs().sum() for parameter in model.policy.parameters() if parameter.dim() > 1)
    targets = {
        name.replace("_target", ""): value for name, value in model.policy.state_dict().items() if "_tar" in name
    }
    assert bool(targets) == (kind != "ppo")
    if targets:
        followed = {name: active for name, active in mask.items() if name in targets}
        assert len(followed) == (len(mask) if kind == "dqn" else 4)
        assert zeros(Mask(followed), targets)


def test_a_sparse_agent_keeps_its_own_zeros_and_a_dense_one_is_refused():
    model = algorithm("dqn")
    with pytest.raises(SwampError, match="has no zeros to keep"):
        model.learn(16, callback=HoldMask())
    mask = half(model)
    mask.apply_(networks(model))
    model.learn(40, callback=HoldMask())
    assert Mask.from_zeros(networks(model)) == mask


def test_an_optimizer_replaced_while_learning_is_an_error():
    class Replace(BaseCallback):
        def _on_step(self) -> bool:
            self.model.policy.optimizer = torch.optim.Adam(self.model.policy.parameters())
            return True

    model = algorithm("dqn")
    with pytest.raises(MaskError, match="is not the one that it had when learning began"):
        model.learn(40, callback=[HoldMask(half(model)), Replace()])


def built(agent: Agent, training: Training = TRAINING, plan: Plan | None = None) -> tuple[Any, Any, Any]:
    task = problem(agent, DataOptions(examples=64)).task
    model = agent_networks(agent, "mlp-8")
    return model, task, agent_backend(model, task, agent, "mlp-8", plan or Plan(), training)


def trained(agent: Agent, seeds: Any = SEEDS, **options: Any) -> list[Any]:
    with isolated(Seed(9)):
        model, _, made = built(agent)
    ones = Mask.ones(model)
    mask = Mask(
        {name: active & (torch.arange(active.numel()).view(active.shape) % 2 == 0) for name, active in ones.items()}
    )
    request = TrainRequest(Ticket(model.state_dict(), 0), mask, TRAINING, seeds, **options)
    found = made.train(request)
    assert all(zeros(mask, dict(particle.weights)) for particle in found)
    return found


AGENTS = {
    "ppo": Agent("ppo", "CartPole-v1", 2, PPO_OPTIONS),
    "dqn": Agent("dqn", "CartPole-v1", 2, {**DQN_OPTIONS, "target_update_interval": 8}),
    "sac": Agent("sac", "Pendulum-v1", 1, SAC_OPTIONS),
}


@pytest.mark.slow_cases("sac")
@pytest.mark.parametrize("kind", AGENTS)
def test_particles_follow_from_their_seeds_alone_and_no_global_generator_moves(kind: str):
    before = torch.get_rng_state(), np.random.get_state()[1]
    first, second = trained(AGENTS[kind])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    (again,) = trained(AGENTS[kind], SEEDS[1:])
    assert all(torch.equal(again.weights[name], value) for name, value in second.weights.items())
    assert any(not torch.equal(first.weights[name], value) for name, value in second.weights.items())
    assert again.averaged == 2
    assert again.steps == 2 * built(AGENTS[kind])[1].train.steps(16)


def test_an_interrupted_particle_starts_again_and_gives_the_same_weights():
    class Stop(Progress):
        places = 2

        def on_step(self, index: int, step: int, total: int, snapshot: Any) -> None:
            if step == 9:
                raise Interrupted("stop")

    with pytest.raises(Interrupted):
        trained(AGENTS["dqn"], progress=Stop())
    (again,) = trained(AGENTS["dqn"], SEEDS[:1])
    (plain,) = trained(AGENTS["dqn"], SEEDS[:1])
    assert all(torch.equal(again.weights[name], value) for name, value in plain.weights.items())


def test_the_rate_of_the_optimizer_is_that_of_the_schedule():
    rates: list[float] = []

    def make(job: TrainJob) -> Any:
        made = algorithm("ppo", batch_size=16)
        made.policy.optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
        )
        return made

    model = networks(algorithm("ppo"))
    task = problem(AGENTS["ppo"], DataOptions(examples=32)).task
    training = Training(epochs=2, batch_size=16, lr=0.01, swa=False, swa_fraction=0.0)
    backend(model, task, make).train(TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), training, SEEDS[:1]))
    # Two updates of each rollout of 16 transitions; the rate is set once per rollout.
    assert len(rates) == 8
    assert rates == [training.rate(2 * (step // 2), 4) for step in range(8)]


@pytest.mark.slow
def test_the_loop_trains_particles_from_one_ticket_and_keeps_exact_counts():
    agent = AGENTS["dqn"]
    plan = Plan(method="swamp", sparsity=0.75, particles=(2,), cycles=2, ticket_epochs=1, barrier_points=0)
    model, task, made = built(agent, plan=plan)
    *_, last = cycles(model, task, plan, TRAINING, backend=made)
    assert last.mask.nnz == round(0.25 * last.mask.prunable)
    assert zeros(last.mask, dict(last.weights))
    assert set(last.metrics.test) == {"return"}
    assert [particle.steps for particle in last.particles] == [2 * task.train.steps(16)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_kl": 0.1}, "omit target_kl"),
        ({"policy_kwargs": {"net_arch": [4]}}, "with the networks of the model"),
    ],
)
def test_an_algorithm_that_does_not_fit_is_refused(options: dict[str, Any], message: str):
    def make(job: TrainJob) -> Any:
        return PPO("MlpPolicy", "CartPole-v1", **{"policy_kwargs": {"net_arch": [8]}, **KINDS["ppo"][2], **options})

    model = networks(algorithm("ppo"))
    task = problem(AGENTS["ppo"], DataOptions(examples=32)).task
    request = TrainRequest(
        Ticket(model.state_dict(), 0), Mask.ones(model), Training(epochs=2, batch_size=32), SEEDS[:1]
    )
    with pytest.raises(SwampError, match=message):
        backend(model, task, make).train(request)


def test_a_training_by_episodes_is_refused():
    model = networks(algorithm("dqn"))
    task = problem(AGENTS["dqn"], DataOptions(examples=32)).task
    request = TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), Training(epochs=2), SEEDS[:1])
    with pytest.raises(SwampError, match="train_freq must be a number of steps"):
        backend(model, task, lambda job: algorithm("dqn", train_freq=(1, "episode"))).train(request)


def test_weights_that_are_not_finite_are_a_divergence():
    agent = AGENTS["ppo"]
    model, _, made = built(agent, replace(TRAINING, lr=1e30, optimizer="sgd", clip=0.0))
    training = replace(TRAINING, lr=1e30, optimizer="sgd", clip=0.0)
    with pytest.raises(Diverged):
        made.train(TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), training, SEEDS[:1]))


@pytest.mark.parametrize(
    ("plan", "training", "message"),
    [
        (Plan(method="snip"), TRAINING, "the score snip needs the loss of a batch"),
        (Plan(), replace(TRAINING, label_smoothing=0.1), "label_smoothing"),
        (Plan(), replace(TRAINING, sam=0.1), "no sharpness-aware steps"),
    ],
)
def test_settings_without_effect_on_an_agent_are_refused(plan: Plan, training: Training, message: str):
    with pytest.raises(SwampError, match=message):
        built(AGENTS["ppo"], training, plan)


def test_only_networks_of_layers_are_built_by_name():
    with pytest.raises(SwampError, match="lenet-5 is no network of a ready-made agent: expected mlp-W1-W2"):
        agent_networks(AGENTS["ppo"], "lenet-5")


def test_an_agent_of_images_takes_minatar():
    agent = Agent("dqn", "MinAtar/Breakout-v1", 2, {**DQN_OPTIONS, "target_update_interval": 8}, 50)
    model = agent_networks(agent, "mlp-8")
    assert dict(model.named_parameters())["q_net.q_net.0.weight"].shape == (8, 400)
    assert DummyVecEnv([agent.make]).reset().dtype == bool


def test_an_ablation_of_batch_orders_is_refused_for_an_agent():
    directory = SimpleNamespace(backend=None)
    run: Any = SimpleNamespace(problem=SimpleNamespace(agent=AGENTS["ppo"]), directory=directory)
    with pytest.raises(SwampError, match="an agent is trained by its own experience"):
        ParticleAblation._backend.func(SimpleNamespace(run=run))  # pyright: ignore
