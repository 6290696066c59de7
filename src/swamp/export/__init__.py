"""The sparse model leaves: smaller on disk, and faster on an ordinary CPU.

Reads a model and its mask; imports torch, numpy and safetensors and nothing of training.
"""

from swamp.export.archive import read, save, state_dict
from swamp.export.compact import compacted
from swamp.export.compiler import NoCompiler, kernels
from swamp.export.finalise import finalise
from swamp.export.gpu import OnGpu
from swamp.export.program import Dense, Program
from swamp.export.rewrite import folded
from swamp.export.runtime import Sparse, Tuned, load
from swamp.export.trace import trace

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
