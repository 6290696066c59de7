"""How one model is trained: task, data, order, loop, averages."""

from swamp.training.augment import Augment, crop_flip, shift_scale_noise
from swamp.training.average import RunningMean, State, copied, interpolate, mean
from swamp.training.batchnorm import norm_layers, refreshed
from swamp.training.data import Data, DatasetData, TensorData
from swamp.training.fit import Fit, Watch, fit, reset_statistics
from swamp.training.optimizers import OptimizerFactory, build_optimizer
from swamp.training.options import Training
from swamp.training.order import Seed, isolated
from swamp.training.snapshot import Snapshot
from swamp.training.sources import as_data
from swamp.training.task import Task, evaluate, predict

__all__ = [
    "Augment",
    "Data",
    "DatasetData",
    "Fit",
    "OptimizerFactory",
    "RunningMean",
    "Seed",
    "Snapshot",
    "State",
    "Task",
    "TensorData",
    "Training",
    "Watch",
    "as_data",
    "build_optimizer",
    "copied",
    "crop_flip",
    "evaluate",
    "fit",
    "interpolate",
    "isolated",
    "mean",
    "norm_layers",
    "predict",
    "refreshed",
    "reset_statistics",
    "shift_scale_noise",
]
