"""What computes on processors does so on one thread of the process; a GPU is asked from anywhere."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiquery_serving.llm.processors import computed


def place(_=None):
    return threading.current_thread().name


def test_many_threads_compute_on_one():
    with ThreadPoolExecutor(4) as callers:
        places = set(callers.map(lambda _: computed("cpu", place), range(40)))
    assert places == {"aiquery-processors"}


def test_what_a_gpu_computes_is_asked_for_where_one_is():
    assert computed("cuda:0", place) == place()


def test_what_goes_wrong_is_the_callers_and_others_go_on():
    with pytest.raises(ZeroDivisionError):
        computed("cpu", lambda: 1 // 0)
    assert computed("cpu", lambda: 7) == 7
