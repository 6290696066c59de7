"""Exported networks: a sparse network as a small file, and its fast execution on a CPU with C kernels.

A model and its mask are the input. The package imports torch, numpy and safetensors, and no training code.
"""

from swamp.runtime.archive import state_dict
from swamp.runtime.exporting import Exported, export
from swamp.runtime.network import SparseNetwork, load

__all__ = ["Exported", "SparseNetwork", "export", "load", "state_dict"]
