"""Many processes that share the work of one proof."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

R = TypeVar("R")


@contextmanager
def crew(jobs: Iterable[Callable[[], R]]) -> Iterator[Iterator[R]]:
    """What each job answers, as it comes, from a process for each core; whoever leaves before the last ends them all.

    Which job is next is asked when an answer has been dealt with. A job is picklable, and answers with what it found
    also where that refutes the proof.
    """
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        left, answers = iter(jobs), SimpleQueue[R | BaseException]()

        def begin(number: int) -> int:
            begun = list(islice(left, number))
            for job in begun:
                pool.apply_async(job, callback=answers.put, error_callback=answers.put)
            return len(begun)

        def come() -> Iterator[R]:
            working = begin(cores)
            while working:
                answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
                working += begin(1) - 1

        yield come()
