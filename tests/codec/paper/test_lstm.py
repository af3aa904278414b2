"""The network in integers: the same rows on every machine, no matter what the weights are."""

import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckzd.codec.entropy.context import DENSITIES, FIELDS, GRID, PASSES
from ckzd.codec.entropy.tables import EXP2_NEGATIVE, SIGMOID
from ckzd.codec.paper import lstm
from ckzd.codec.paper.lstm import (
    ALPHABET,
    EMBEDDING,
    HIDDEN,
    LSTM_BYTES,
    SHAPES,
    TOKENS,
    LstmModel,
    LstmWeights,
    tokens_of,
)


def weights_of(fill):
    """`fill(name, shape)` for every parameter."""
    return LstmWeights(**{name: np.asarray(fill(name, shape)).astype(np.int8) for name, shape in SHAPES.items()})


def random_weights(seed, spread=127):
    draw = np.random.default_rng(seed)
    return weights_of(lambda _, shape: draw.integers(-spread, spread + 1, shape))


EXTREME = {
    "highest": weights_of(lambda _, shape: np.full(shape, 127)),
    "lowest": weights_of(lambda _, shape: np.full(shape, -128)),
    "zero": weights_of(lambda _, shape: np.zeros(shape)),
    "opposed": weights_of(lambda name, shape: np.full(shape, 127 if name in ("embedding", "hidden") else -128)),
    "signs": weights_of(lambda _, shape: np.random.default_rng(0).choice([-128, 127], shape)),
    "random": random_weights(1),
}


def plain_row(weights: LstmWeights, tokens: list[int]) -> list[int]:
    """FORMAT.md's LSTM in Python integers of any size, for one sequence of tokens."""
    table = {name: getattr(weights, name).astype(object) for name in SHAPES}

    def sigmoid(value):
        index = max(-256, min(256, (value + 64) >> 7))
        return SIGMOID[index] if index >= 0 else 32768 - SIGMOID[-index]

    def tanh(value):
        return 2 * sigmoid(2 * value) - 32768

    hidden = cell = [0] * HIDDEN
    for token in tokens:
        gates = np.array(hidden, object) @ table["hidden"] + 4 * (table["embedding"][token] @ table["gates"])
        gates = gates + 128 * table["bias"]
        enter, keep, show, candidate = gates.reshape(4, HIDDEN)
        cell = [
            (sigmoid(f) * c >> 15) + (sigmoid(i) * tanh(g) >> 18)
            for i, f, g, c in zip(enter, keep, candidate, cell, strict=True)
        ]
        hidden = [min(sigmoid(o) * tanh(c) >> 23, 127) for o, c in zip(show, cell, strict=True)]
    logits = np.array(hidden, object) @ table["output"] + 128 * table["output_bias"]
    below = [max(logits) - value for value in logits]
    return [(EXP2_NEGATIVE[(b >> 6) & 63] >> min(b >> 12, 30)) + 1 for b in below]


def tokens_of_context(kind, number, density, context):
    classes = [kind * PASSES + number, density, *np.unravel_index(context, [size for _, size in FIELDS])]
    return [tokens_of(field)[int(value)] for field, value in enumerate(classes)]


@pytest.mark.parametrize("name", EXTREME)
def test_rows_are_those_of_unbounded_integers(name):
    """So no product, sum or shift has ever left its type."""
    model = LstmModel(EXTREME[name])
    draw = np.random.default_rng(5)
    for kind, number, density in [(0, 0, 0), (lstm.KINDS - 1, PASSES - 1, DENSITIES - 1)]:
        rows = model.rows(kind, number, density)
        assert rows.shape == (GRID, ALPHABET)
        assert rows.min() >= 1
        assert rows.max() == 2**16 + 1
        for context in [0, GRID - 1, *draw.integers(0, GRID, 6)]:
            tokens = tokens_of_context(kind, number, density, int(context))
            assert rows[context].tolist() == plain_row(EXTREME[name], tokens)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 40, 127]))
def test_rows_of_random_weights_are_those_of_unbounded_integers(seed, spread):
    weights = random_weights(seed, spread)
    context = seed % GRID
    row = LstmModel(weights).rows(1, 2, 3)[context]
    assert row.tolist() == plain_row(weights, tokens_of_context(1, 2, 3, context))


def test_nothing_comes_near_the_end_of_its_type():
    """The largest that each intermediate can be, from the largest weights."""
    gates = 128 * 128 * EMBEDDING * 4 + 128 * 128 + HIDDEN * 128 * 128
    assert 2 * gates + 64 < 2**31
    cell = 7 * (32768 * 32768 >> 18) + 7  # seven tokens, each adds a candidate at most
    assert 32768 * cell < 2**31
    assert 2 * cell + 64 < 2**31
    assert 32768 * 32768 <= 2**30
    assert HIDDEN * 128 * 128 + 128 * 128 < 2**31


ROWS = """
import hashlib, numpy as np
from ckzd.codec.paper.lstm import SHAPES, LstmModel, LstmWeights
draw = np.random.default_rng(1)
weights = LstmWeights(**{n: draw.integers(-127, 128, s).astype(np.int8) for n, s in SHAPES.items()})
digest = hashlib.sha256()
for key in [(0, 0, 0), (1, 3, 5), (2, 2, 7)]:
    digest.update(LstmModel(weights).rows(*key).astype("<f8").tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_rows_do_not_depend_on_the_threads_of_a_blas(threads):
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    done = subprocess.run([sys.executable, "-c", ROWS], env=environment, capture_output=True, text=True, check=True)
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(ROWS, {})
    assert done.stdout == here.getvalue()


def test_weights_come_back_from_their_bytes():
    data = EXTREME["random"].to_bytes()
    assert len(data) == LSTM_BYTES
    assert LstmWeights.from_bytes(data).to_bytes() == data
    for wrong in (b"", data[:-1], data + b"x"):
        with pytest.raises(ValueError, match=r"expected .* bytes of LSTM weights"):
            LstmWeights.from_bytes(wrong)


def test_tokens_are_numbered_without_a_gap():
    numbers = [token for field in range(2 + len(FIELDS)) for token in tokens_of(field)]
    assert numbers == list(range(TOKENS))
    assert lstm.SHAPES["embedding"] == (TOKENS, EMBEDDING)
