"""What all tests share, those of the runtime and those of the plugins."""

from hypothesis import settings

# Neither profile judges by the clock: a busy machine is no bug.
# `quick` tries the same examples each time, so that a failure is the change's; `full` looks for new ones.
settings.register_profile("quick", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("full", deadline=None, max_examples=100)
settings.load_profile("quick")
