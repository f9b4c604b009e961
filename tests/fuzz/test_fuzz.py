"""Whatever is sent, stored or configured: a documented error or a right answer, soon, and in bounded memory.

A short run of each target; `python -m tests.fuzz` has the long ones.
"""

import time
from contextlib import contextmanager

import pytest
from extent import extent
from fuzz_engine import (
    INPUT_S_MAX,
    MIB,
    BrokenPromiseError,
    Report,
    Target,
    attempt,
    corpus,
    mutate_bytes,
    run,
)
from fuzz_targets import BY_NAME

SEED = 2026


@pytest.mark.parametrize("name", BY_NAME)
def test_no_kept_input_breaks_a_promise(name):
    target = BY_NAME[name]
    kept = corpus(name)
    assert kept, "each target has a corpus: python -m tests.fuzz TARGET --keep"
    report = Report(name, SEED)
    with target.open() as check:
        for data in kept:
            attempt(target, check, data, report, None)
    assert sum(report.outcomes.values()) == len(kept)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_generated_input_breaks_a_promise(name):
    target = BY_NAME[name]
    runs = extent(target.short_runs // 6, target.short_runs)
    report = run(target, runs, SEED)
    assert report.inputs == runs
    assert len(report.outcomes) > 1, "inputs of one outcome try nothing"


# ---------------------------------------------------------------------- the engine itself


def _target(check, **more):
    @contextmanager
    def opened():
        yield check

    return Target("made-up", opened, lambda: [b"seed"], mutate_bytes, **more)


def test_an_undocumented_error_is_a_broken_promise_and_names_its_input():
    def check(data):
        if data != b"seed":
            raise KeyError("x")
        return "fine"

    with pytest.raises(BrokenPromiseError, match="KeyError") as broken:
        run(_target(check), 10, SEED)
    assert broken.value.data != b"seed"


def test_an_input_that_takes_too_long_is_a_broken_promise(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def check(data):
        now_s[0] += INPUT_S_MAX + 1
        return "late"

    with pytest.raises(BrokenPromiseError, match=r"it took 16\.0 s"):
        run(_target(check), 10, SEED)


def test_memory_that_grows_is_a_broken_promise():
    kept = []

    def check(data):
        if data != b"seed":
            kept.append(b"x" * (40 * MIB))
        return "fine"

    with pytest.raises(BrokenPromiseError, match="memory grew"):
        run(_target(check, growth_bytes_max=8 * MIB), 3, SEED)


def test_the_same_seed_tries_the_same_inputs():
    def inputs(seed):
        tried = []
        run(_target(lambda data: tried.append(data) or str(len(data))), 200, seed)
        return tried

    assert inputs(1) == inputs(1) != inputs(2)
