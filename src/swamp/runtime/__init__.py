"""Exported networks: a sparse network as a small file, and its fast execution on a CPU with C kernels.

A model and its mask are the input. The package imports torch, numpy and safetensors, and no training code.
"""

from swamp.runtime.archive import save, state_dict
from swamp.runtime.network import SparseNetwork, load
from swamp.runtime.tracing import trace

__all__ = ["SparseNetwork", "load", "save", "state_dict", "trace"]
