"""Training of one model: task, data, random streams, the training loop, averages of weights."""

from swamp.training.augment import Augment, crop_flip, shift_scale_noise
from swamp.training.average import RunningMean, State, copied, interpolate, mean
from swamp.training.batchnorm import batchnorm_layers, reestimate_batchnorm, with_reestimated_batchnorm
from swamp.training.data import Batch, BatchList, Data, DatasetData, TensorData, as_batch, batch_to
from swamp.training.dropout import uses_global_rng
from swamp.training.flops import FlopCounter
from swamp.training.loop import Fit, TrainState, fit, reset_statistics, smoothed, train_loop
from swamp.training.mask_updates import Dynamic, dense_gradients, density_at, drop_and_grow, prune_to_budget
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
from swamp.training.retrain import Retraining, norm_change, retraining
from swamp.training.rng import Seed, isolated
from swamp.training.shard import Shard
from swamp.training.snapshot import Snapshot, masked_snapshot
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
    "batchnorm_layers",
    "build_optimizer",
    "copied",
    "crop_flip",
    "dense_gradients",
    "density_at",
    "drop_and_grow",
    "evaluate",
    "fit",
    "gather_rows",
    "interpolate",
    "isolated",
    "masked_snapshot",
    "mean",
    "norm_change",
    "predict",
    "prune_to_budget",
    "reestimate_batchnorm",
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
    "uses_global_rng",
    "with_reestimated_batchnorm",
]
