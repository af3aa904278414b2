"""Which reference tensors a part needs of each archive of its chain."""

from ckzd.checkpoint import FileLayout, FileStat, Hole, TensorSpec
from ckzd.codec.records.index import Code, Index, LinearPrediction, Method, QuantizationSteps
from ckzd.codec.records.layout import Layout, Triple
from ckzd.codec.records.needed import Followed, needed

NAMES = ("layers.0.w", "layers.1.w", "layers.2.w", "ema.2", "half.2", "m.2", "copy.m.2", "state")
PATHS = [(name,) for name in NAMES]


def index(codes: dict[int, Code], predictions: dict[int, LinearPrediction]) -> Index:
    """Weights of three layers; of the last an average, a rounded copy, and a moment that stands there twice."""
    tensors = tuple(TensorSpec(path, "float32", (2, 2), 16) for path in PATHS)
    holes = tuple(Hole(number, 16 * number, 16) for number in range(len(tensors)))
    files = (FileLayout("f", 16 * len(tensors), FileStat(0, 0, 0, 0), holes),)
    layout = Layout(files, tensors, (0, 1, 2, 3, 4), (Triple(2, 5),))
    every = tuple(codes.get(number, Code(Method.SAME)) for number in range(len(tensors)))
    return Index(layout, every, QuantizationSteps(), predictions=predictions)


OWN = index({4: Code(Method.CAST, other=2), 6: Code(Method.COPY, other=5)}, {3: LinearPrediction(2, 0.5, 0.5, 0.0)})
BEFORE = index({2: Code(Method.COPY, other=1)}, {})


def need(*tensors: int, sees_layers: bool = False) -> list[set[str]]:
    chain = [Followed.of(BEFORE, sees_layers=False), Followed.of(OWN, sees_layers=sees_layers)]
    return [{path[0] for path in paths} for paths in needed(chain, OWN, tensors)]


def test_a_tensor_needs_itself_and_what_it_follows_in_each_archive():
    assert need(0) == [{"layers.0.w"}, {"layers.0.w"}]
    assert need(2) == [{"layers.2.w", "layers.1.w"}, {"layers.2.w"}]
    assert need(3) == [{"ema.2", "layers.2.w", "layers.1.w"}, {"ema.2", "layers.2.w"}]
    assert need(4) == [{"half.2", "layers.2.w", "layers.1.w"}, {"half.2", "layers.2.w"}]


def test_a_moment_and_its_copy_need_their_weight_and_a_state_nothing():
    assert need(5)[1] == need(6)[1] == {"layers.2.w"}
    assert need(7) == [set(), set()]


def test_contexts_that_see_the_layer_before_need_it_in_the_reference():
    assert need(1, sees_layers=True) == [{"layers.0.w", "layers.1.w"}, {"layers.1.w"}]
