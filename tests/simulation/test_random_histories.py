from hypothesis import settings

from .histories import History

TestHistories = History.TestCase
TestHistories.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
