"""Being told to stop while a library is being imported, which may make another exception of it."""

import os
import signal
from contextlib import suppress

import pytest

from archlab.base.signals import Stopped, raising


def half_imported() -> None:
    """As a library that hides what was raised in it, and fails later for want of a part."""
    with suppress(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    raise AttributeError("half imported")


def test_an_error_that_follows_from_a_signal_is_the_signal():
    with pytest.raises(Stopped) as stopped, raising():
        half_imported()
    assert stopped.value.status == 143
