"""All tests of the benchmarks."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """As the scripts: the number of threads changes sums, and a run is to repeat bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
