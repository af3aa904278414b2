"""A first moment that is not worth its bits moves its weight on as it moved; nothing moves where nothing did."""

import numpy as np
import pytest
import torch
from codec.chains import Archive, encode, restored
from torch import nn

from ckzd.codec.decode import MALFORMED, Decoder
from ckzd.codec.records.index import Method

DEAD_ROWS = 4
EIGHTH_OF_AN_OCTAVE = 2 ** (1 / 8) - 1  # the archive tells lengths to the nearest


class Drift:
    """A matrix under AdamW whose gradients agree a little from step to step; some rows never get one."""

    def __init__(self, learning_rate=1e-3) -> None:
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, 40))
        self.optimizer = torch.optim.AdamW([self.weight], lr=learning_rate, betas=(0.9, 0.99))
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


def test_it_points_where_the_original_does_and_is_as_long_where_that_is_not_enough(chain):
    archives, original = chain
    assert archives[2].methods(archives[1])["optimizer.state.0.exp_avg"] is Method.TREND
    assert archives[2].encoded.parts["first_moment"] == 2
    found = restored(archives[2], archives[1])["optimizer"]["state"][0]["exp_avg"]
    assert found.norm() / original.norm() == pytest.approx(1.0, rel=EIGHTH_OF_AN_OCTAVE)
    assert (found * original).sum() > 0.2 * found.norm() * original.norm()
    assert 0 < archives[2].encoded.quality["regained"] < archives[2].encoded.quality["first_order_loss"]


def test_it_is_as_long_as_it_takes_to_regain_what_the_weight_lost(tmp_path):
    """All measured on files. Of what the restored moment wins the original would have won the part along it."""
    run, archives = Drift(learning_rate=1e-2), []
    for number in range(3):
        run.save(tmp_path / f"step_{number}.pt")
        archives.append(encode(tmp_path / f"step_{number}.pt", archives[-1] if archives else None))
    state, quality = restored(archives[2], archives[1]), archives[2].encoded.quality
    moments = state["optimizer"]["state"][0]
    gradient, used = run.optimizer.state[run.weight]["exp_avg"], moments["exp_avg_sq"] > 0
    lost = (gradient * (state["model"]["w"] - run.weight.detach())).sum().item()
    original, found = (each[used] / moments["exp_avg_sq"][used].sqrt() for each in (gradient, moments["exp_avg"]))
    won = 1e-2 * 0.9 / (1 - 0.9) * (gradient[used] * found).sum().item()
    own = won * ((original * found).sum() / (found * found).sum()).item()
    assert won == pytest.approx(own + lost, rel=EIGHTH_OF_AN_OCTAVE / 2)
    assert quality["first_order_loss"] == pytest.approx(quality["regained"]) == pytest.approx(lost, rel=1e-4)


def test_a_young_run_codes_what_has_no_trend_and_a_fresh_one_all(tmp_path):
    """The steps are told, not taken: a momentum of 0.9 has 20 memories after 200 and 60 after 600."""
    run, archives, found = Drift(), [], []
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(128), "exp_avg_sq": torch.ones(128)}
    moments["exp_avg"][:8] = 1
    for number, step in enumerate((100, 150, 400, 1000)):
        path, before = tmp_path / f"{number}.pt", archives[-1] if archives else None
        run.save(path)
        state = torch.load(path)
        state["model"]["b"], state["optimizer"]["state"][1] = torch.randn(128), moments
        state["optimizer"]["param_groups"][0]["params"].append(1)
        for own in state["optimizer"]["state"].values():
            own["step"] = torch.tensor(float(step))
        torch.save(state | {"step": step}, path)
        archives.append(encode(path, before))
        method = archives[-1].methods(before)["optimizer.state.0.exp_avg"]
        found.append((method, bool(restored(archives[-1], before)["optimizer"]["state"][1]["exp_avg"].any())))
    assert found == [(Method.SCALED, True), (Method.FRAMED, True), (Method.TREND, True), (Method.TREND, False)]


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
