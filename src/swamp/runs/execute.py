"""Execute a configuration in a run directory, from the start or from the last checkpoint."""

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import nn

from swamp.algorithms import Cycle, NoStore, backend_of, cycles, ensemble, method_named
from swamp.backends import Backend, Choice, Coordinator, Distributed, Sequential, follow
from swamp.datasets import Problem, build_problem, network_for
from swamp.errors import CorruptFile, Diverged, Interrupted, SwampError
from swamp.files import set_aside
from swamp.integrations import timm
from swamp.runs.checkpoints import RunStore
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory, add_checksum, finite, read_json, write_json
from swamp.runs.environment import environment
from swamp.runs.overview import overview
from swamp.runs.ranks import distributed_job, restarted, wait_until_prepared
from swamp.runs.read import open_run, read_sessions, verify_config_owner, write_config
from swamp.runs.run_progress import NullReporter, Reporter
from swamp.runs.validation import (
    check_disk_space,
    check_rank_count,
    check_shard,
    check_static_masks,
    device_named,
    device_type,
    most_particles,
    require_new_directory,
)
from swamp.training import Seed, Shard, Task, build_optimizer, isolated


def start(config: RunConfig, path: Path, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Run `config` in the new directory `path`; returns the summary. Raises SwampError if `path` holds a run.

    Under torchrun rank 0 returns the summary, and the other ranks return an empty one.
    """
    directory = RunDirectory(path, config.digest())
    if restarted() and directory.config.exists() and not differences(RunConfig.load(directory.config), config):
        return resume(path, reporter, stop)
    check_shard(config)
    with distributed_job(config, device_type(config), path, stop) as coordinator:
        if coordinator is not None and coordinator.rank:
            return _follow(config, directory, coordinator)
        require_new_directory(directory, config)
        check_static_masks(config, coordinator)
        problem, model = prepare(config)
        check_rank_count(config, problem, coordinator)
        with directory.locked():
            require_new_directory(directory, config)
            check_disk_space(directory, config, model, problem.task.train.steps(config.training.batch_size))
            wait_until_prepared(coordinator)
            write_config(directory, config)
            return _execute(config, directory, problem, model, reporter, stop, coordinator)
    return {}


def resume(path: Path, reporter: Reporter, stop: Event) -> dict[str, Any]:
    """Continue the run in `path`; finished parts are read from disk. Returns the summary, as `start` does."""
    directory, config = open_run(path)
    verify_config_owner(directory)
    with distributed_job(config, device_type(config), path, stop) as coordinator:
        if coordinator is not None and coordinator.rank:
            return _follow(config, directory, coordinator)
        check_static_masks(config, coordinator)
        problem, model = prepare(config)
        check_rank_count(config, problem, coordinator)
        with directory.locked():
            check_disk_space(directory, config, model, problem.task.train.steps(config.training.batch_size))
            wait_until_prepared(coordinator)
            return _execute(config, directory, problem, model, reporter, stop, coordinator)
    return {}


def _follow(config: RunConfig, directory: RunDirectory, coordinator: Coordinator) -> dict[str, Any]:
    """The part of a rank other than 0: train particles for rank 0."""
    problem, model = prepare(config)
    coordinator.publish(f"prepared/{coordinator.rank}", True)
    store = store_of(config, directory, NullReporter(), _stop_of(config, coordinator), announce=False)

    def build(choice: Any) -> Backend:
        chosen = None if choice is None else Choice.from_json(choice)
        return backend_of(config.backend, model, problem.task, config.plan, choice=chosen)

    with executing(config):
        shard_backend = partial(_shard_backend, model, problem.task)
        follow(coordinator, directory.path, build, store.opened, shard_backend)
    return {}


def _stop_of(config: RunConfig, coordinator: Coordinator) -> Event:
    """What stops a training: ranks that train one particle together must agree on the step."""
    return coordinator.stop if coordinator.size <= most_particles(config) else coordinator.agreed


def _shard_backend(model: nn.Module, task: Task, shard: Shard) -> Backend:
    return Sequential(model, task, shard=shard)


def prepare(config: RunConfig) -> tuple[Problem, nn.Module]:
    """Data and initial network of a configuration. Raises every error in either before any training."""
    device_named(config.device)  # before reading the data, which may take long
    problem = build_problem(config.task, config.model, config.data, Seed(config.plan.seed))
    if config.model.startswith(timm.PREFIX):
        problem = timm.preprocessed(problem, config.model)
    model = initial_network(config, problem, config.plan.seed)
    _records(config, problem, model, NoStore())
    return problem, model


def initial_network(config: RunConfig, problem: Problem, seed: int) -> nn.Module:
    """The network with the initial weights of `seed`."""
    with isolated(Seed(seed).at("init")), _fitting(config.model):
        if config.model.startswith(timm.PREFIX):
            return timm.network(config.model, problem.classes).to(device_named(config.device))
        return network_for(problem, config.model).to(device_named(config.device))


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


def summary(directory: RunDirectory, config: RunConfig, records: Iterable[Cycle]) -> dict[str, Any]:
    """Summary of a run: its path, metrics and cost. Holds the weights of at most two cycles in memory."""
    cycles: list[dict[str, Any]] = []
    first = last = None
    for record in records:
        # Not the cycles themselves: their weights would fill the memory.
        cycles.append(record.to_json())
        first, last = first or record, record
    assert first is not None
    assert last is not None
    dense = first if first.sparsity == 0 else None
    return {
        "run": str(directory.path),
        "method": config.plan.method,
        "sparsity": last.sparsity,
        "density": {"prunable": last.mask.density, "all": last.density_of_all},
        "test": last.metrics.test,
        # Methods that train each sparsity independently have no dense network.
        "dense": dense
        and {
            "sparsity": dense.sparsity,
            "density": {"prunable": dense.mask.density, "all": dense.density_of_all},
            "test": dense.metrics.test,
        },
        "cycles": cycles,
        "seconds": sum(record["seconds"] for record in cycles),
    }


def _execute(
    config: RunConfig,
    directory: RunDirectory,
    problem: Problem,
    model: nn.Module,
    reporter: Reporter,
    stop: Event,
    coordinator: Coordinator | None,
) -> dict[str, Any]:
    if coordinator is not None:
        stop = _stop_of(config, coordinator)
    store = store_of(config, directory, reporter, stop)
    with executing(config):
        ranks = [] if coordinator is None else [str(member) for member in coordinator.members]
        append_session(directory, config, ranks)
        reporter.started(overview(config, problem, model))
        try:
            done = summary(directory, config, _records(config, problem, model, store, coordinator))
        except Diverged as error:
            raise Diverged(
                f"{error} Try a lower learning rate: swamp run --config {directory.config} --lr ... --clip 1 --out NEW"
            ) from error
        except Interrupted as error:
            raise Interrupted(f"{error} Continue with: swamp resume {directory.path}") from error
        return write_summary(directory, done)


def append_session(directory: RunDirectory, config: RunConfig, ranks: Sequence[str]) -> None:
    """Append this session's environment to environment.json. ranks: of a distributed job."""
    here = add_checksum(environment(device_named(config.device), ranks), directory.provenance(directory.environment))
    write_json(directory.environment, [*_sessions(directory), here])


def write_summary(directory: RunDirectory, done: dict[str, Any]) -> dict[str, Any]:
    """Write the summary, which marks the run as finished."""
    done = finite(done)
    if directory.summary.is_dir():
        set_aside(directory.summary)
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
        warnings.warn(f"{error} It is written again. (Kept as {set_aside(path)}.)", stacklevel=2)
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


def _records(
    config: RunConfig,
    problem: Problem,
    model: nn.Module,
    store: RunStore | NoStore,
    coordinator: Coordinator | None = None,
) -> Iterator[Cycle]:
    """The cycle loop. Raises every error of the configuration here, before the first step."""
    task, plan, training = problem.task, config.plan, config.training
    build_optimizer(model.parameters(), training)
    backend = backend_of(config.backend, model, task, plan, choice=store.choice(), on_choice=store.keep_choice)
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
    if method_named(plan.method).ensemble:
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
