"""How one model is trained: task, data, order, loop, averages."""

from swamp.training.augment import Augment, crop_flip, shift_scale_noise
from swamp.training.average import RunningMean, State, copied, interpolate, mean
from swamp.training.batchnorm import norm_layers, refresh, refreshed
from swamp.training.data import Batch, BatchList, Data, DatasetData, TensorData, as_batch, batch_to
from swamp.training.dropout import draws_globally
from swamp.training.dynamic import Dynamic, dense_gradients, density_at, regrown, within_budget
from swamp.training.flops import FlopCounter
from swamp.training.loop import Fit, TrainState, fit, reset_statistics, smoothed, train_loop
from swamp.training.memory_format import to_fastest_memory_format
from swamp.training.nan_checks import (
    require_finite,
    require_finite_given,
    require_finite_memory,
    require_finite_start,
    require_finite_weights,
)
from swamp.training.optimizers import OptimizerFactory, build_optimizer
from swamp.training.options import Sharpness, Training
from swamp.training.order import Seed, isolated
from swamp.training.retrain import Retraining, norm_change, retraining
from swamp.training.shard import Shard
from swamp.training.snapshot import Snapshot, masked
from swamp.training.sources import as_data
from swamp.training.stacked import gather_rows, stacked_batches
from swamp.training.task import Task, evaluate, predict
from swamp.training.tokens import TokenData

__all__ = [
    "Augment",
    "Batch",
    "BatchList",
    "Data",
    "DatasetData",
    "Dynamic",
    "Fit",
    "FlopCounter",
    "OptimizerFactory",
    "Retraining",
    "RunningMean",
    "Seed",
    "Shard",
    "Sharpness",
    "Snapshot",
    "State",
    "Task",
    "TensorData",
    "TokenData",
    "TrainState",
    "Training",
    "as_batch",
    "as_data",
    "batch_to",
    "build_optimizer",
    "copied",
    "crop_flip",
    "dense_gradients",
    "density_at",
    "draws_globally",
    "evaluate",
    "fit",
    "gather_rows",
    "interpolate",
    "isolated",
    "masked",
    "mean",
    "norm_change",
    "norm_layers",
    "predict",
    "refresh",
    "refreshed",
    "regrown",
    "require_finite",
    "require_finite_given",
    "require_finite_memory",
    "require_finite_start",
    "require_finite_weights",
    "reset_statistics",
    "retraining",
    "shift_scale_noise",
    "smoothed",
    "stacked_batches",
    "to_fastest_memory_format",
    "train_loop",
    "within_budget",
]
