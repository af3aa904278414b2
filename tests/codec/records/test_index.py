"""An index says the same of the same, whatever order it was found in."""

from ckzd.checkpoint import FileLayout, FileStat, Hole, TensorSpec
from ckzd.codec.records.index import Code, Index, LinearPrediction, Method, QuantizationSteps
from ckzd.codec.records.layout import Layout


def test_predictions_are_listed_in_order_whatever_order_they_were_found_in():
    """A decoder refuses others: averages that stand before their weights in a file were never archived."""
    tensors = tuple(TensorSpec((str(number),), "float32", (2, 2), 16) for number in range(4))
    holes = tuple(Hole(number, 16 * number, 16) for number in range(4))
    layout = Layout((FileLayout("f", 64, FileStat(0, 0, 0, 0), holes),), tensors, (0, 1, 2, 3), ())
    predictions = {number: LinearPrediction(0, 0.5, 0.5, 0.0) for number in (3, 1)}
    index = Index(layout, (Code(Method.SAME),) * 4, QuantizationSteps(), predictions=predictions)
    assert [*Index.from_bytes(index.to_bytes(b""), b"").predictions] == [1, 3]
