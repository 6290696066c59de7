"""How one model is trained: task, data, order, loop, averages."""

from swamp.training.augment import Augment, crop_flip, shift_scale_noise
from swamp.training.average import RunningMean, State, copied, interpolate, mean
from swamp.training.batchnorm import norm_layers, refresh, refreshed
from swamp.training.data import BatchList, Data, DatasetData, TensorData, as_batch, batch_to
from swamp.training.dynamic import Dynamic, dense_gradients, density_at, regrown, within_budget
from swamp.training.finite import (
    require_finite,
    require_finite_given,
    require_finite_memory,
    require_finite_start,
    require_finite_weights,
)
from swamp.training.fit import Fit, Watch, fit, reset_statistics, smoothed
from swamp.training.layout import arrange
from swamp.training.noise import draws_globally
from swamp.training.operations import Operations
from swamp.training.optimizers import OptimizerFactory, build_optimizer
from swamp.training.options import Sharpness, Training
from swamp.training.order import Seed, isolated
from swamp.training.retrain import Retraining, norm_change, retraining
from swamp.training.shard import Shard
from swamp.training.snapshot import Snapshot, masked
from swamp.training.sources import as_data
from swamp.training.task import Task, evaluate, predict
from swamp.training.together import BySeed, a_seed, gathered, kinds, shuffled_together
from swamp.training.tokens import TokenData

__all__ = [
    "Augment",
    "BatchList",
    "BySeed",
    "Data",
    "DatasetData",
    "Dynamic",
    "Fit",
    "Operations",
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
    "Training",
    "Watch",
    "a_seed",
    "arrange",
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
    "gathered",
    "interpolate",
    "isolated",
    "kinds",
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
    "shuffled_together",
    "smoothed",
    "within_budget",
]
