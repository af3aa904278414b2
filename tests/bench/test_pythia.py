"""The shape of Pythia, and that its layers do what GPT-NeoX's do."""

import pytest
import torch
from pythia import NeoX, PythiaJob, rotated


def test_it_has_the_parameters_of_pythia_410m():
    with torch.device("meta"):
        model = NeoX(width=1024, layers=24, vocabulary=50304)
    assert sum(parameter.numel() for parameter in model.parameters()) == 405_334_016
    assert "gpt_neox.layers.23.attention.query_key_value.weight" in model.state_dict()


def test_products_of_rotated_queries_and_keys_hang_on_their_distance_alone():
    query_key = torch.randn(2, 1, 1, 1, 64).expand(2, 1, 1, 10, 64)
    products = rotated(query_key[0]) @ rotated(query_key[1]).transpose(-1, -2)
    for distance in (0, 3):
        diagonal = products[0, 0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_no_prediction_sees_what_comes_after_it():
    model = NeoX(width=64, layers=2, vocabulary=256)
    tokens = torch.randint(256, (1, 8))
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 256
    same = (model(tokens) == model(other)).all(-1)[0]
    assert same[:5].all()
    assert not same[5:].any()


@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_both_states_train(state):
    job = PythiaJob(64, 1, 256, steps=20, every=10, batch=4, context=32, device="cpu", state=state)
    model, optimizer = job.make()
    losses = [job.train_step(model, optimizer, step) for step in range(10)]
    assert losses[-1] < losses[0]
    kept = {value.dtype for each in optimizer.state.values() for name, value in each.items() if name != "step"}
    assert kept == {getattr(torch, state)}
