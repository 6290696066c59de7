"""Training of one model: task, data, random streams, the training loop, averages of weights."""

from swamp.training.augment import crop_flip
from swamp.training.average import RunningMean
from swamp.training.batchnorm import with_reestimated_batchnorm
from swamp.training.data import TensorData
from swamp.training.options import Training
from swamp.training.rng import Seed
from swamp.training.task import Task, evaluate, predict
from swamp.training.tokens import TokenData

__all__ = [
    "RunningMean",
    "Seed",
    "Task",
    "TensorData",
    "TokenData",
    "Training",
    "crop_flip",
    "evaluate",
    "predict",
    "with_reestimated_batchnorm",
]
