"""Execute a configuration in a run directory, from the start or from the last checkpoint."""

import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from threading import Event
from typing import Any

import torch
from torch import nn

from swamp.algorithms import Cycle, ensemble
from swamp.algorithms.backend_choice import backend_of
from swamp.algorithms.loop import cycles, train_on
from swamp.algorithms.store import Store
from swamp.backends import Backend, Sequential, Ticket
from swamp.backends.autotune import Choice
from swamp.backends.coordinator import Coordinator
from swamp.backends.distributed import Distributed, follow
from swamp.datasets import build_problem, network_for
from swamp.datasets.problem import Problem
from swamp.errors import CorruptFile, Diverged, Interrupted, SwampError, warn
from swamp.files import quarantine
from swamp.integrations import timm
from swamp.masks import Mask
from swamp.references import PYTHON_PREFIX
from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory, add_checksum, read_json, replace_nonfinite, write_json
from swamp.runs.environment import environment
from swamp.runs.overview import overview
from swamp.runs.ranks import distributed_job, restarted, wait_until_prepared
from swamp.runs.read import open_run, read_origin, read_sessions, verify_config_owner, write_config
from swamp.runs.reference_origin import reference_origin, verify_references
from swamp.runs.run_progress import Reporter
from swamp.runs.transfer import TRANSFER, Transferred, transferred
from swamp.runs.validation import (
    check_disk_space,
    check_examples,
    check_rank_count,
    check_shard,
    check_static_masks,
    device_named,
    device_type,
    most_particles,
    require_new_directory,
)
from swamp.training import Seed, Task
from swamp.training.optimizers import build_optimizer
from swamp.training.rng import isolated
from swamp.training.shard import Shard


def start(config: RunConfig, path: Path, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Run `config` in a new directory.

    Args:
        config: What to run.
        path: The run directory; it is created.
        reporter: Shows progress.
        stop: When another thread or a signal handler sets this event, the run is saved and stops.

    Returns:
        The summary, as in summary.json. Under torchrun only rank 0 returns it; the other ranks return an empty one.

    Raises:
        SwampError: `path` holds a run, or the configuration is not possible.
        Diverged: See `swamp.cycles`.
        Interrupted: `stop` was set; `resume` continues.
    """
    directory = RunDirectory(path, config.digest())
    if restarted() and directory.config.exists() and not differences(RunConfig.load(directory.config), config):
        return resume(path, reporter, stop)
    check_shard(config)
    return _run(directory, config, reporter, stop, new=True)


def resume(path: Path, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Continue the run in `path`; finished parts are read from disk. Otherwise as `start`."""
    directory, config = open_run(path)
    if config.model.startswith(PYTHON_PREFIX):
        raise SwampError(
            f"{path} was started from Python, with a model and a task that are objects of that program. Continue it "
            "with the same call there: swamp.prune(..., out=...)"
        )
    verify_config_owner(directory)
    return _run(directory, config, reporter, stop, new=False)


def _run(directory: RunDirectory, config: RunConfig, reporter: Reporter, stop: Event, *, new: bool) -> dict[str, Any]:
    with distributed_job(config, device_type(config), directory.path, stop) as coordinator:
        if coordinator is not None and coordinator.rank:
            return _follow(config, directory, coordinator)
        if new:
            require_new_directory(directory, config)
        check_static_masks(config, coordinator)
        reporter.stage("preparing the data and the network", once=True)
        problem, model = prepare(config)
        check_examples(config, problem)
        taken = transferred(config.plan, model, None if new else directory)
        check_rank_count(config, problem, coordinator)
        with directory.locked():
            if new:
                require_new_directory(directory, config)
            check_disk_space(directory, config, model, problem.task.train.steps(config.training.batch_size))
            wait_until_prepared(coordinator)
            if new:
                transfer = {TRANSFER: dict(taken.about)} if taken else {}
                write_config(directory, config, {**reference_origin(config, model, problem.task), **transfer})
            else:
                verify_references(directory, config, model, problem.task)
            if taken is not None:
                taken.keep(directory)
            if coordinator is not None:
                stop = _stop_of(config, coordinator)
            store = store_of(config, directory, reporter, stop)
            records: list[dict[str, Any]] = []
            with executing(config), _advice(config, directory):
                ranks = [] if coordinator is None else [str(member) for member in coordinator.members]
                append_session(directory, config, ranks)
                about = overview(config, problem.task, model, problem.available, problem.agent)
                reporter.started(replace(about, text=f"{about.text}\n{taken.line(config.plan)}") if taken else about)
                for cycle in _cycles(config, problem, model, store, coordinator, taken):
                    # Not the cycles themselves: their weights would fill the memory.
                    records.append(cycle.to_json())
            return write_summary(directory, run_summary(directory, config, records))
    return {}


@contextmanager
def _advice(config: RunConfig, directory: RunDirectory) -> Generator[None]:
    """Add what to do next to the errors that end a run."""
    try:
        yield
    except Diverged as error:
        raise Diverged(
            f"{error} Try a lower learning rate: "
            f"swamp run --config {quote(str(directory.config))} --lr ... --clip 1 --out NEW"
        ) from error
    except Interrupted as error:
        raise Interrupted(f"{error} Continue with: swamp resume {quote(str(directory.path))}") from error


def _follow(config: RunConfig, directory: RunDirectory, coordinator: Coordinator) -> dict[str, Any]:
    """The part of a rank other than 0: train particles for rank 0."""
    problem, model = prepare(config)
    coordinator.publish(f"prepared/{coordinator.rank}", True)
    store = store_of(config, directory, Reporter(), _stop_of(config, coordinator), announce=False)

    def build(choice: Any) -> Backend:
        chosen = None if choice is None else Choice.from_json(choice)
        return backend_for(config, problem, model, choice=chosen)

    with executing(config):
        shard_backend = partial(_shard_backend, model, problem.task)
        follow(coordinator, directory.path, build, store.opened, shard_backend)
    return {}


def backend_for(config: RunConfig, problem: Problem, model: nn.Module, **choice: Any) -> Backend:
    """The backend of a configuration: of the problem's agent, or of this name; choice: see `backend_of`."""
    if problem.agent is None:
        return backend_of(config.backend, model, problem.task, config.plan, **choice)
    if config.backend != "auto":
        raise SwampError(f"an agent is trained one particle at a time, without the backend {config.backend}. Omit it.")
    if config.device not in ("auto", "cpu"):
        raise SwampError(f"an agent is trained on the CPU, and the device is {config.device}. Omit it.")
    return _agents().agent_backend(model, problem.task, problem.agent, config.model, config.plan, config.training)


def _agents() -> Any:
    # Imported here: Stable-Baselines3 is an extra, and its import takes seconds.
    from swamp.integrations import stable_baselines3

    return stable_baselines3


def _stop_of(config: RunConfig, coordinator: Coordinator) -> Event:
    """The event that stops a training. Ranks that train one particle together must stop at the same step."""
    return coordinator.stop if coordinator.size <= most_particles(config) else coordinator.agreed


def _shard_backend(model: nn.Module, task: Task, shard: Shard) -> Backend:
    return Sequential(model, task, shard=shard)


def prepare(config: RunConfig) -> tuple[Problem, nn.Module]:
    """Data and initial network of a configuration. Raises every error in either before any training."""
    device_named(config.device)  # before reading the data, which may take long
    problem = build_problem(config.task, config.model, config.data, Seed(config.plan.seed))
    if config.model.startswith(timm.TIMM_PREFIX):
        problem = timm.preprocessed(problem, config.model)
    if not config.test_data:
        problem = replace(problem, task=problem.task.without_test())
    model = initial_network(config, problem, config.plan.seed)
    with warnings.catch_warnings(action="ignore"):  # they come again when the run starts
        _cycles(config, problem, model, Store())
    return problem, model


def initial_network(config: RunConfig, problem: Problem, seed: int) -> nn.Module:
    """The network with the initial weights of `seed`."""
    with isolated(Seed(seed).at("init")), _fitting(config.model):
        if problem.agent is not None:  # trained on the CPU
            return _agents().agent_networks(problem.agent, config.model)
        if config.model.startswith(timm.TIMM_PREFIX):
            network = timm.network(config.model, problem.classes)
        else:
            network = network_for(problem, config.model)
        return (network if problem.adapt is None else problem.adapt(network)).to(device_named(config.device))


@contextmanager
def _fitting(model: str) -> Generator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no specific error for it on the CPU.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise SwampError(
            f"the network {model} does not fit into memory. Choose a smaller one, or free some."
        ) from error


def run_summary(directory: RunDirectory, config: RunConfig, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summary of a run from the records of its cycles: its path, metrics and cost."""
    last = _reached(records[-1])
    origin = read_origin(directory)
    return {
        "run": str(directory.path),
        "method": config.plan.method,
        **({TRANSFER: origin[TRANSFER]} if TRANSFER in origin else {}),
        **last,
        # Methods that train each sparsity independently have no dense network.
        "dense": _reached(records[0]) if records[0]["sparsity"] == 0 else None,
        "cycles": [*records],
        "seconds": sum(record["seconds"] for record in records),
    }


def _reached(record: Mapping[str, Any]) -> dict[str, Any]:
    density = {name: record["density"][name] for name in ("prunable", "all")}
    return {"sparsity": record["sparsity"], "density": density, "test": record["test"]}


def append_session(directory: RunDirectory, config: RunConfig, ranks: Sequence[str]) -> None:
    """Append this session's environment to environment.json. ranks: of a distributed job."""
    here = add_checksum(environment(device_named(config.device), ranks), directory.provenance(directory.environment))
    write_json(directory.environment, [*_sessions(directory), here])


def write_summary(directory: RunDirectory, done: dict[str, Any]) -> dict[str, Any]:
    """Write the summary, which marks the run as finished."""
    done = replace_nonfinite(done)
    if directory.summary.is_dir():
        quarantine(directory.summary)
    directory.write(directory.summary, done)
    return done


def _sessions(directory: RunDirectory) -> list[Any]:
    """The earlier sessions in environment.json, with their provenance."""
    path = directory.environment
    if not path.exists():
        return []
    try:
        read_sessions(directory)
        return read_json(path)
    except CorruptFile as error:
        warn(f"{error} It is written again. (Kept as {quarantine(path)}.)")
        return []


def store_of(
    config: RunConfig, directory: RunDirectory, reporter: Reporter, stop: Event, *, announce: bool = True
) -> RunStore:
    """The store of a run."""
    return RunStore(
        directory,
        reporter,
        stop,
        config.keep_checkpoints == "particles",
        config.snapshot_seconds,
        announce,
        trajectory_every=config.trajectory_every,
    )


def _cycles(
    config: RunConfig,
    problem: Problem,
    model: nn.Module,
    store: Store,
    coordinator: Coordinator | None = None,
    taken: Transferred | None = None,
) -> Iterator[Cycle]:
    """The cycle loop. Raises every error of the configuration here, before the first step.

    taken: start of a transfer; without it, its settings are checked with the dense network.
    """
    task, plan, training = problem.task, config.plan, config.training
    build_optimizer(model.parameters(), training)
    backend = backend_for(config, problem, model, choice=store.choice(), on_choice=store.keep_choice)
    if coordinator is not None and isinstance(store, RunStore):
        backend = Distributed(
            backend,
            coordinator,
            store.directory.path,
            particles=most_particles(config),
            data_parallel=partial(_shard_backend, model, task),
            sharded=config.shard,
            choice=lambda: (choice := store.choice()) and choice.to_json(),
        )
    if plan.transfer.source:
        mask = taken.mask if taken else Mask.ones(model, plan.scope)
        ticket = taken.ticket if taken else Ticket(model.state_dict(), 0)
        return train_on({0: mask}, ticket, model, task, plan, training, backend=backend, store=store)
    if plan.spec.ensemble:
        initial = partial(initial_network, config, problem)
        return ensemble(initial, task, plan, training, backend=backend, store=store)
    return cycles(model, task, plan, training, backend=backend, store=store)


@contextmanager
def executing(config: RunConfig) -> Generator[None]:
    """Set threads and determinism for a run; restore them afterwards."""
    threads = torch.get_num_threads()
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(config.threads or threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
