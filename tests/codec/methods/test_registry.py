"""A row each: what a method says of itself is all that an index is held against."""

import dataclasses

import pytest

from ckzd.checkpoint import TensorSpec
from ckzd.codec.methods.registry import METHODS, checked, is_lossy, method_of, moment_methods, weight_methods
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Code, Index, Method, QuantizationSteps
from ckzd.codec.records.layout import Layout, Role, Triple

ROLES = {
    Method.COPY: {Role.REFERENCE, Role.WEIGHT},
    Method.SAME: {Role.REFERENCE, Role.WEIGHT},
    Method.DELTA: {Role.REFERENCE, Role.WEIGHT},
    Method.ULPS: {Role.REFERENCE, Role.WEIGHT},
    Method.EXACT: set(Role),
    Method.SCALAR: {Role.WEIGHT},
    Method.FRAMED: {Role.WEIGHT, Role.FIRST, Role.MOMENTUM},
    Method.FACTORED: {Role.WEIGHT},
    Method.WHOLE: {Role.WEIGHT},
    Method.KMEANS: {Role.WEIGHT, Role.FIRST, Role.SECOND},
    Method.FILL: {Role.SECOND},
    Method.TREND: {Role.FIRST},
    Method.CAST: {Role.REFERENCE, Role.WEIGHT},
    Method.STATE_FILL: {Role.STATE},
    Method.STATE_VARIANCE: {Role.STATE},
    Method.STATE_MEAN: {Role.STATE},
    Method.SCALED: {Role.FIRST, Role.SECOND, Role.MOMENTUM},
}


def test_every_method_of_the_format_has_its_rows():
    """And no two rows are of one name and role: a decoder would take either."""
    rows = [(method.name, role) for method in METHODS for role in method.roles]
    assert len(rows) == len(set(rows))
    assert {name: {role for own, role in rows if own is name} for name in Method} == ROLES


@pytest.mark.parametrize("name", Method)
@pytest.mark.parametrize("role", Role)
def test_a_method_is_found_for_its_roles_alone(name, role):
    if role in ROLES[name]:
        assert method_of(name, role).name is name
        return
    assert not is_lossy(name, role)
    with pytest.raises(ValueError, match="cannot be coded as"):
        method_of(name, role)


def test_a_scheme_has_ways_to_code_what_it_loses():
    assert [method.name for method in weight_methods(Scheme.KMEANS)] == [Method.KMEANS]
    assert Method.KMEANS not in {method.name for method in weight_methods(Scheme.UNIFORM)}
    for role in (Role.FIRST, Role.SECOND, Role.MOMENTUM):
        assert all(moment_methods(role, scheme) for scheme in (Scheme.UNIFORM, Scheme.KMEANS) if role != Role.SECOND)
        assert moment_methods(role)
    assert not weight_methods(Scheme.EXACT)


def pair_of(first: Method, second: Method) -> Index:
    tensors = tuple(TensorSpec((name,), "float32", (16, 16), 1024) for name in ("w", "m", "v"))
    layout = Layout((), tensors, (0,), (Triple(0, 1, 2),))
    codes = [Code(method, None if method is Method.FILL else ("a", 0, 1)) for method in (Method.EXACT, first, second)]
    return Index(layout, tuple(codes), QuantizationSteps())


@pytest.mark.parametrize("second", [Method.FILL, Method.KMEANS, Method.SCALED, Method.EXACT])
@pytest.mark.parametrize("first", [Method.TREND, Method.FRAMED, Method.SCALED, Method.KMEANS, Method.EXACT])
def test_a_codebook_stands_beside_a_codebook_and_a_fill_beside_all_others(first, second):
    fits = {Method.KMEANS: first is Method.KMEANS, Method.FILL: first is not Method.KMEANS}.get(second, True)
    if fits:
        assert checked(pair_of(first, second)).codes[2].method is second
        return
    with pytest.raises(ValueError, match="beside its first moment"):
        checked(pair_of(first, second))


def test_a_mask_is_of_what_may_come_back_otherwise():
    lossy, exact = pair_of(Method.SCALED, Method.FILL), pair_of(Method.EXACT, Method.EXACT)
    assert checked(dataclasses.replace(lossy, zeros={1: None})).zeros == {1: None}
    for index, number in ((exact, 1), (lossy, 0), (lossy, 2)):
        with pytest.raises(ValueError, match="a mask of"):
            checked(dataclasses.replace(index, zeros={number: None}))
