"""Tensors of another model are found by the ends of their names and their shapes."""

import pytest

from ckzd.codec.analysis.counterparts import Named, counterparts

LAYERS = {
    "wte.weight": (20, 8),
    "h.0.weight": (8, 8),
    "h.1.weight": (8, 8),
    "h.0.norm.weight": (8,),
    "norm.weight": (8,),
}


def named(prefix: str = "", layers: dict[str, tuple[int, ...]] = LAYERS) -> list[Named]:
    return [Named((f"{prefix}{name}",), shape) for name, shape in layers.items()]


@pytest.mark.parametrize("theirs", ["", "model.", "module.", "transformer.", "state_dict.model."])
@pytest.mark.parametrize("ours", ["", "model.", "module.", "base_model.model.", "model._orig_mod."])
def test_what_stands_before_a_name_does_not_count(ours, theirs):
    assert counterparts(named(ours), named(theirs)) == dict(enumerate(range(len(LAYERS))))


def test_a_path_of_several_texts_is_one_name():
    ours = [Named(("model", "module.h.0.weight"), (8, 8))]
    assert counterparts(ours, [Named(("state_dict", "h.0", "weight"), (8, 8))]) == {0: 0}


def test_what_wrappers_put_into_a_name_does_not_count():
    ours = [
        Named(("base_model.model.h.0.base_layer.weight",), (8, 8)),
        Named(("h.1._fsdp_wrapped_module.weight",), (8, 8)),
    ]
    assert counterparts(ours, named()) == {0: 1, 1: 2}


def test_another_shape_is_another_tensor():
    assert counterparts(named(), named(layers=LAYERS | {"wte.weight": (24, 8)})) == {1: 1, 2: 2, 3: 3, 4: 4}


def test_an_average_has_what_its_weight_has():
    ours = named("model.") + named("ema.")
    assert counterparts(ours, named("module.")) == {n: n % len(LAYERS) for n in range(2 * len(LAYERS))}


def test_of_several_that_are_called_alike_most_stand_under_one_name():
    theirs = [Named(("ema.wte.weight",), (20, 8)), *named("model."), *named("old.", {"h.0.weight": (8, 8)})]
    assert counterparts(named(), theirs) == {n: n + 1 for n in range(len(LAYERS))}


def test_a_last_word_alone_is_no_name():
    assert counterparts([Named(("a.weight",), (8,))], [Named(("b.weight",), (8,))]) == {}
    assert counterparts([Named(("a.weight",), (8,))], [Named(("weight",), (8,))]) == {0: 0}
