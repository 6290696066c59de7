"""The sparse model leaves: smaller on disk, and faster on an ordinary CPU.

Reads a model and its mask; imports torch, numpy and safetensors and nothing of training.
"""

from swamp.runtime.archive import read, save, state_dict
from swamp.runtime.compact import compacted
from swamp.runtime.compiler import NoCompiler, kernels
from swamp.runtime.finalise import finalise
from swamp.runtime.gpu import OnGpu
from swamp.runtime.program import Dense, Program
from swamp.runtime.rewrite import folded
from swamp.runtime.runtime import Sparse, Tuned, load
from swamp.runtime.trace import trace

__all__ = [
    "Dense",
    "NoCompiler",
    "OnGpu",
    "Program",
    "Sparse",
    "Tuned",
    "compacted",
    "finalise",
    "folded",
    "kernels",
    "load",
    "read",
    "save",
    "state_dict",
    "trace",
]
