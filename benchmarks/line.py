"""A measured value, and ratios of two functions timed in turn, so that other load on the machine affects both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    name: str
    value: float
    spread: float
    """Interquartile range over the rounds."""
    unit: str
    goal: str


def median(name: str, found: list[float], unit: str, goal: str) -> Line:
    low, _, high = statistics.quantiles(found, n=4)
    return Line(name, statistics.median(found), high - low, unit, goal)


def ratio(name: str, ours: Callable[[], object], other: Callable[[], object], goal: str, rounds: int = 9) -> Line:
    """Median of time(ours) / time(other) over rounds in which both run in turn."""
    return median(name, ratios(ours, other, rounds), "ratio", goal)


def ratios(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> list[float]:
    ours(), other()
    return [seconds(ours) / seconds(other) for _ in range(rounds)]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
