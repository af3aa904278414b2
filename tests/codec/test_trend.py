"""A first moment that is not worth its bits moves its weight on as it moved; nothing moves where nothing did."""

import numpy as np
import pytest
import torch
from codec.chains import Archive, encode, restored
from torch import nn

from ckzd.codec.decode import MALFORMED, Decoder
from ckzd.codec.index import Method

DEAD_ROWS = 4


class Drift:
    """A matrix under AdamW whose gradients agree a little from step to step; some rows never get one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, 40))
        self.optimizer = torch.optim.AdamW([self.weight], lr=1e-3, betas=(0.9, 0.99))
        self.slope = 0.2 * torch.randn(48, 40)

    def save(self, path, steps=100):
        for _ in range(steps):
            self.weight.grad = self.slope + torch.randn(48, 40)
            self.weight.grad[:DEAD_ROWS] = 0
            self.optimizer.step()
        state = {"model": {"w": self.weight}, "optimizer": self.optimizer.state_dict(), "step": 100_000}
        torch.save(state, path)
        return path, self.optimizer.state[self.weight]["exp_avg"].clone()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    run, place = Drift(), tmp_path_factory.mktemp("drift")
    archives, moment = [], torch.zeros(())
    for number in range(3):
        path, moment = run.save(place / f"step_{number}.pt")
        archives.append(encode(path, archives[-1] if archives else None))
    return archives, moment


def test_it_points_where_the_original_does_and_is_half_as_long(chain):
    archives, original = chain
    assert archives[2].methods(archives[1])["optimizer.state.0.exp_avg"] is Method.TREND
    assert archives[2].encoded.parts["first_moment"] == 2
    found = restored(archives[2], archives[1])["optimizer"]["state"][0]["exp_avg"]
    assert found.norm() / original.norm() == pytest.approx(0.5, rel=0.1)
    assert (found * original).sum() > 0.2 * found.norm() * original.norm()


def test_nothing_moves_where_there_was_no_gradient(chain):
    """Weight decay alone moved these rows: a first moment beside a second of 0 would throw them far away."""
    archives, _ = chain
    found = restored(archives[2], archives[1])["optimizer"]["state"][0]
    assert not found["exp_avg"][:DEAD_ROWS].any()
    assert not found["exp_avg_sq"][:DEAD_ROWS].any()


def test_a_base_has_no_trend(chain):
    archives, _ = chain
    assert archives[0].methods()["optimizer.state.0.exp_avg"] is Method.SCALED


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0", (4001).to_bytes(2, "little"), b"\0\x80"])
def test_a_stream_that_is_no_code_is_malformed(chain, data):
    archives, _ = chain
    stream = archives[2].index(archives[1]).codes[1].stream
    damaged = Archive(archives[2].entries, archives[2].streams | {stream: data})
    own = archives[2].reconstruction
    decoder = Decoder.from_own(damaged.entry, damaged.streams.__getitem__, own)
    with pytest.raises(MALFORMED):
        decoder.payload(1, own)


def test_a_trend_that_is_not_there_is_malformed(chain, monkeypatch):
    archives, _ = chain
    own = archives[2].reconstruction
    get = own.get
    monkeypatch.setattr(own, "get", lambda key, field: None if field == "trend" else get(key, field))
    decoder = Decoder.from_own(archives[2].entry, archives[2].streams.__getitem__, own)
    with pytest.raises(MALFORMED, match="no trend"):
        decoder.payload(1, own)


def test_the_trend_is_the_decoded_movement(chain):
    """In 1/32 steps of the weighted residual, where it is not cut off."""
    archives, _ = chain
    before, after = (each.reconstruction.get(("model", "w"), "weights").astype(float) for each in archives[1:])
    trend = archives[2].reconstruction.get(("model", "w"), "trend").astype(float)
    inside = np.abs(trend) < 127
    moved = (after - before)[inside]
    assert np.corrcoef(trend[inside], moved)[0, 1] > 0.9
