"""What the figures of the rebalance benchmark are made from."""

from benchmarks.rebalance_story import Schedule, tell

AT = Schedule(slow=11, recovered=31, steps=45)


def _steps(*parts):
    return [{"seconds": seconds} for seconds, count in parts for _ in range(count)]


def _move(step, seconds=0.5, error=""):
    return {"step": step, "seconds": seconds, "error": error}


def test_the_story_of_a_run_that_follows():
    steps = _steps((1.0, 10), (2.0, 9), (2.5, 1), (1.25, 10), (1.1, 5), (1.6, 1), (1.0, 9))
    story = tell(steps, [_move(20), _move(36, 0.6)], optimum=1.2, at=AT)
    assert (story.before, story.dropped, story.settled, story.again) == (1.0, 2.0, 1.25, 1.0)
    assert story.steps_to_reach == 9  # of three steps the last move in, by the median
    assert story.steps_to_return == 0  # 1.1 is within 90 % of the steps before
    assert story.moves == ((20, 0.5, 0.4), (36, 0.6, 0.6))


def test_a_run_that_does_not_follow_never_gets_there():
    story = tell(_steps((1.0, 10), (2.0, 20), (1.0, 15)), [_move(15, error="no room")], optimum=1.2, at=AT)
    assert story.steps_to_reach is None
    assert story.dropped == story.settled == 2.0
    assert story.moves == ()


def test_a_move_before_the_change_is_no_answer_to_it():
    steps = _steps((1.2, 5), (1.0, 5), (2.0, 20), (1.0, 15))
    assert tell(steps, [_move(5)], optimum=1.2, at=AT).dropped == 2.0
