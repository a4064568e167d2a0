"""Puts this folder on the path, so that every test can import ``records``, and fixes the examples.

Hypothesis draws the same examples in every run, so that a red test means a change of the code;
``pytest --hypothesis-profile explore`` looks for new ones.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("repeatable")
