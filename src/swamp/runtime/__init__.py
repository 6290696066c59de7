"""Exported networks: a sparse network as a small file, and its fast execution on a CPU with C kernels.

A model and its mask are the input. The package imports torch, numpy and safetensors, and no training code.
"""

from swamp.runtime.archive import read, save, state_dict
from swamp.runtime.gpu import GpuNetwork
from swamp.runtime.network import SparseNetwork, Tuning, load
from swamp.runtime.program import DenseNetwork, Program
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import bake_mask, trace

__all__ = [
    "DenseNetwork",
    "GpuNetwork",
    "Program",
    "SparseNetwork",
    "Tuning",
    "bake_mask",
    "fold_batchnorm",
    "load",
    "read",
    "remove_dead_units",
    "save",
    "state_dict",
    "trace",
]
