"""How many examples a property is tried on: few, the same each time, and without a clock on a shared machine."""

from hypothesis import settings

few_examples = settings(max_examples=40, deadline=None, derandomize=True)
