from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.llm.embedding_batches import PLANNED_RUNS, RunSizes, TextQueue, runs

lengths = st.lists(st.integers(1, 300), max_size=60)
sizes = st.builds(RunSizes, most_tokens=st.integers(1, 1000), run_cost=st.integers(0, 200))


@given(lengths, sizes)
def test_every_text_runs_once_and_the_longest_first(lengths, sizes):
    order = [text for run in runs(lengths, sizes) for text in run]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[text] for text in order] == sorted(lengths, reverse=True)


@given(lengths, sizes)
def test_no_run_is_too_large_unless_one_text_is(lengths, sizes):
    for run in runs(lengths, sizes):
        padded = len(run) * max(lengths[text] for text in run)
        assert len(run) == 1 or padded <= sizes.most_tokens


@given(lengths, sizes)
def test_no_run_is_padded_for_more_than_another_run_would_cost(lengths, sizes):
    for run in runs(lengths, sizes):
        longest = max(lengths[text] for text in run)
        assert sum(longest - lengths[text] for text in run) <= sizes.run_cost


def test_texts_of_one_length_fill_their_runs():
    assert list(map(len, runs([10] * 25, RunSizes(most_tokens=100, run_cost=0)))) == [10, 10, 5]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(1, 50), min_size=1, max_size=8), st.booleans()),
        st.tuples(st.just("drop"), st.integers(0, 10)),
        st.tuples(st.just("run")),
    ),
    max_size=40,
)


@given(steps, sizes)
def test_whatever_comes_and_goes_each_wanted_text_is_taken_once(steps, sizes):
    queue, added, dropped, taken = TextQueue(sizes), [], set(), Counter()
    left = Counter()
    for step in [*steps, *[("run",)] * 400]:
        match step:
            case "add", texts, batch:
                left[len(added)] = len(texts)
                queue.add(len(added), texts, batch=batch)
                added.append(texts)
            case "drop", caller:
                queue.drop(caller)
                dropped.add(caller)
                left.pop(caller, None)
            case _:
                run = queue.next_run()
                assert bool(run) == bool(left.total())
                assert all(text.caller in left for text in run)
                assert all(text.length == added[text.caller][text.row] for text in run)
                taken.update((text.caller, text.row) for text in run)
                left.subtract(text.caller for text in run)
        assert queue.waiting == left.total()
    assert not taken or max(taken.values()) == 1
    wanted = {(caller, row) for caller in left for row in range(len(added[caller]))}
    assert wanted <= set(taken)


def test_who_waits_for_an_answer_goes_before_batch_work_that_is_planned():
    queue = TextQueue(RunSizes(most_tokens=10, run_cost=0))
    queue.add("job", [10, 9, 8], batch=True)
    order = [queue.next_run()[0].caller]
    queue.add("user", [1], batch=False)
    order += [queue.next_run()[0].caller for _ in range(3)]
    assert order == ["job", "user", "job", "job"]


def test_a_short_text_is_not_overtaken_by_longer_ones_for_ever():
    queue, taken = TextQueue(RunSizes(most_tokens=10, run_cost=0)), []
    queue.add("short", [1], batch=False)
    for late in range(5):
        queue.add(late, [10], batch=False)
        taken += [text.caller for text in queue.next_run()]
    assert taken == [0, "short", 1, 2, 3]


def test_a_newcomer_waits_for_no_more_than_is_planned_at_once():
    queue = TextQueue(RunSizes(most_tokens=10, run_cost=0))
    queue.add("many", [10] * 1000, batch=False)
    queue.next_run()
    queue.add("newcomer", [11], batch=False)
    queue.drop("many")
    assert queue.next_run()[0].caller == "newcomer"


def test_many_texts_are_planned_a_part_at_a_time():
    queue = TextQueue(RunSizes(most_tokens=10, run_cost=0))
    queue.add("many", [5] * 4 * PLANNED_RUNS + [10], batch=False)
    lengths = [queue.next_run()[0].length for _ in range(2 * PLANNED_RUNS + 1)]
    assert lengths == [5] * 2 * PLANNED_RUNS + [10]
