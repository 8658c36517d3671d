import pytest
import torch

# Tiny products gain nothing from a second thread and lose much where another process wants the same cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_draws_in_every_test():
    torch.manual_seed(0)
