"""Many processes that share the work of one proof."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


@contextmanager
def crew(task: Callable[[A], R], jobs: Iterable[A]) -> Iterator[Iterator[R]]:
    """What `task` answers to each job, as it comes, from a process for each core. Whoever leaves ends them all.

    `task` is a function of a module and answers with what it found, also where that refutes the proof.
    """
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        yield pool.imap_unordered(task, jobs)
