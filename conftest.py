"""What all tests share, those of the runtime and those of the plugins."""

from hypothesis import settings

# Tests never judge by the clock: a busy machine is no bug.
settings.register_profile("hedgerow", deadline=None)
settings.load_profile("hedgerow")
