"""Python's search for garbage, held off while much is imported."""

import gc
import subprocess
import sys
import weakref

import pytest

from archlab.base.collecting import no_collecting


class Cycle:
    """Something that no reference count frees."""

    def __init__(self):
        self.itself = self


def test_nothing_is_collected_inside_and_all_of_it_can_be_afterwards():
    with no_collecting():
        left = weakref.ref(Cycle())
        many = [[] for _ in range(100_000)]  # far more than the search waits for
        assert left() is not None and not gc.isenabled()
    assert gc.isenabled() and len(many) == 100_000
    gc.collect()
    assert left() is None


def test_an_error_ends_it_too_and_whoever_had_it_off_keeps_it_off():
    with pytest.raises(ZeroDivisionError), no_collecting():
        _ = 1 / 0
    assert gc.isenabled()
    with no_collecting():
        with no_collecting():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


PRICED_DRAWN_AND_TRAINED = """
import archlab, contextlib, io
str(archlab.show("size=nano")), archlab.draw("llama_7b")
tiny = "train.steps=2", "train.train_len=8", "train.batch_size=1", "eval.lengths=[1]", "eval.tokens=8"
with contextlib.redirect_stdout(io.StringIO()):
    for name in ("adamw", "muon", "sgd"):
        archlab.run(*tiny, f"optimizer={name}", plots=False)
"""


@pytest.mark.parametrize(
    ("statement", "there", "missing"),
    [
        (PRICED_DRAWN_AND_TRAINED, "torch", "torch._dynamo sympy"),
        ("from archlab.cli.results import CompareOptions, compared", "", "pandas"),
        ("import archlab.verbs.compare", "pandas", "scipy.stats torch"),
    ],
)
def test_what_is_imported_and_that_python_collects_again(statement, there, missing, tmp_path):
    """A comparison needs scipy.stats, the slowest of what it could import, only where runs failed; a model is priced,
    drawn and trained without torch's compiler, whose import takes nearly as long as that of torch."""
    code = f"import gc, sys\n{statement}\nprint(gc.isenabled(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    collects, *modules = done.stdout.split()
    assert collects == "True"
    assert set(there.split()) <= set(modules) and not set(missing.split()) & set(modules)


def test_what_forks_share_is_imported_and_gone_through_no_more():
    code = "import gc, sys, archlab.runs.imported_once; print(gc.isenabled(), gc.get_freeze_count(), len(gc.get_objects()), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    collects, shared, own, *modules = done.stdout.split()
    assert collects == "True" and int(shared) > 100 * int(own)
    assert {"torch", "torch.utils.tensorboard", "archlab.runs.lab"} <= set(modules)
