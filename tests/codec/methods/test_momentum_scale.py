"""A first moment that follows its weight is as long as it takes to make up for what the weights lost."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckzd.checkpoint import ParamGroup
from ckzd.codec.kernels.plain_elementwise import AlongTrend
from ckzd.codec.methods.momentum_scale import MomentumScale, rate_of, share_for

RATE = 2.0
positive = st.floats(1e-3, 1e3)


def scale_of(first, root, moving, rate=RATE):
    """Of exp_avg, the root of exp_avg_sq, and a trend seen as an update."""
    update = first / root
    terms = (update * moving, first * moving, update**2, moving**2)
    return MomentumScale.of(AlongTrend(*(term.sum(-1) for term in terms)), rate)


def scale(seed=0, agreement=0.3, rate=RATE, spread=1.0):
    """Of a gradient that a weight has moved against for so much of its length; scales of rows differ by so much."""
    draw = np.random.default_rng(seed)
    root = np.exp(spread * draw.standard_normal((20, 1))) * np.ones((20, 30))
    update, noise = draw.standard_normal((2, 20, 30))
    return scale_of(update * root, root, noise + agreement * update, rate)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.05, 3)), min_size=1, max_size=5), positive)
def test_what_is_lost_is_regained_until_all_are_as_long_as_the_originals(drawn, lost):
    scales = [each for seed, agreement in drawn if (each := scale(seed, agreement)) is not None]
    share = share_for(lost, scales)
    within_reach = sum((1 - each.along) * each.reach for each in scales)
    assert sum(each.regained(share) for each in scales) == pytest.approx(min(lost, within_reach), rel=1e-4, abs=1e-4)
    assert all(each.along <= each.length(share) <= 1 for each in scales)


@given(st.integers(0, 200), st.floats(0, 0.2), st.floats(0, 4))
def test_no_length_raises_the_loss(seed, agreement, spread):
    """Update and gradient may disagree on it where rows are of very different scales."""
    following = scale(seed, agreement, spread=spread)
    assert following is None or (following.reach > 0 and following.along > 0)


@pytest.mark.parametrize("lost", [0.0, -3.0])
def test_where_nothing_is_lost_it_keeps_what_the_original_had_along_the_trend(lost):
    following = scale()
    length = following.length(share_for(lost, [following]))
    assert length == pytest.approx(following.along) == pytest.approx(0.3, abs=0.1)


def test_the_full_length_is_the_originals_and_its_reach_the_first_order_fall_of_the_loss():
    draw = np.random.default_rng(1)
    first, noise = draw.standard_normal((2, 8, 9))
    moving = noise + 0.5 * first
    following = scale_of(first, np.full((8, 9), 2.0), moving)
    update = following.unit * moving
    assert np.linalg.norm(update) == pytest.approx(np.linalg.norm(first / 2))
    assert following.reach == pytest.approx(RATE * (first * update).sum())


def test_a_weight_that_moved_along_its_gradient_does_not_follow():
    assert scale(agreement=-0.3) is None
    assert scale_of(np.ones((4, 4)), np.ones((4, 4)), np.zeros((4, 4))) is None
    assert scale_of(np.zeros((4, 4)), np.ones((4, 4)), np.ones((4, 4))) is None
    assert scale_of(np.zeros((0, 1)), np.ones((0, 1)), np.ones((0, 1))) is None


def test_without_a_learning_rate_it_is_half_as_long_or_what_the_original_had_along_the_trend():
    unknown, straight = scale(rate=None), scale(rate=None, agreement=3.0)
    assert unknown.length(share_for(1.0, [unknown])) == 0.5
    assert straight.length(1.0) == straight.along > 0.9
    assert unknown.regained(1.0) == straight.regained(1.0) == 0


@pytest.mark.parametrize("step", [300, 100_000])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.99)])
def test_the_rate_is_how_far_adam_goes_before_a_first_moment_has_faded(betas, step):
    """Torch's own, fed gradients that keep the second moment as it is and say nothing of the first."""
    weight = nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=1e-3, betas=betas)
    weight.grad = torch.zeros(1)
    adam.step()
    full = 1 - betas[1] ** step
    adam.state[weight] = {"step": torch.tensor(float(step)), "exp_avg": torch.tensor([0.3])}
    adam.state[weight]["exp_avg_sq"] = torch.tensor([4.0 * full])
    for done in range(step, step + 60):
        adam.state[weight]["exp_avg_sq"].fill_(4.0 * (1 - betas[1] ** done))
        adam.step()
    group = ParamGroup(("0",), betas=betas, learning_rate=1e-3)
    went = rate_of(group, step) * 0.3 / (4.0 * full) ** 0.5
    assert -weight.item() == pytest.approx(went, rel=0.05)
    if step > 1000:  # long filled, as a step that is not known or never counted is taken to be
        assert rate_of(group, None) == rate_of(group, 0) == pytest.approx(rate_of(group, step))


@pytest.mark.parametrize(
    "group",
    [
        None,
        ParamGroup(("0",)),
        ParamGroup(("0",), betas=(0.9, 0.999)),
        ParamGroup(("0",), None, (1.0, 0.999), 1e-3),
        ParamGroup(("0",), None, (0.9, 1.0), 1e-3),
    ],
)
def test_a_rate_that_no_optimizer_tells_is_unknown(group):
    assert rate_of(group, 1000) is None
