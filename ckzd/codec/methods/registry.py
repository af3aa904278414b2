"""All coding methods, a row each; and which of them an index may name for which tensor.

Rows of one role stand in the order in which an encoder tries them, the cheapest first.
"""

from collections.abc import Mapping

from ckzd.checkpoint import CODED_FLOATS, STORED_AS
from ckzd.codec.methods.basis import BasisMoment, BasisWeight
from ckzd.codec.methods.codebook import CodebookFirst, CodebookSecond, CodebookWeight
from ckzd.codec.methods.factored import Factored
from ckzd.codec.methods.intra import Intra
from ckzd.codec.methods.method import CodingMethod, LossyMethod, MomentMethod, Streams, WeightMethod
from ckzd.codec.methods.rank1 import Rank1
from ckzd.codec.methods.scalar import Scalar
from ckzd.codec.methods.scaled import ScaledFirst, ScaledMomentum, ScaledSecond
from ckzd.codec.methods.state import StateFill, StateMean, StateMethod, StateVariance
from ckzd.codec.methods.trend import FollowTrend
from ckzd.codec.methods.ulps import ULPS
from ckzd.codec.methods.verbatim import Cast, Copy, Delta, Exact, Same, Verbatim
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import Code, Index, Method
from ckzd.codec.records.layout import Role

METHODS: tuple[CodingMethod, ...] = (
    # weights
    Intra(),
    Scalar(),
    BasisWeight(),
    Factored(),
    CodebookWeight(),
    # first moments and momenta
    FollowTrend(),
    BasisMoment(),
    ScaledFirst(),
    ScaledMomentum(),
    CodebookFirst(),
    # second moments
    Rank1(),
    CodebookSecond(),
    ScaledSecond(),
    # other states
    StateFill(),
    StateVariance(),
    StateMean(),
    # any tensor
    Copy(),
    Cast(),
    Same(),
    ULPS,
    Delta(),
    Exact(),
)
_ROWS = {(method.name, role): method for method in METHODS for role in method.roles}


def method_of(name: Method, role: Role) -> CodingMethod:
    """The method of that name for tensors of a role; ValueError if there is none."""
    if (name, role) not in _ROWS:
        raise ValueError(f"a {role.value} cannot be coded as {name}")
    return _ROWS[name, role]


def weight_method(name: Method) -> WeightMethod:
    """The lossy method of that name for weights; ValueError if there is none."""
    found = method_of(name, Role.WEIGHT)
    if not isinstance(found, WeightMethod):
        raise ValueError(f"{name} loses nothing of a weight")  # noqa: TRY004  # of an archive's words
    return found


def moment_method(name: Method, role: Role) -> MomentMethod:
    """The lossy method of that name for moments of a role; ValueError if there is none."""
    found = method_of(name, role)
    if not isinstance(found, MomentMethod):
        raise ValueError(f"{name} loses nothing of a {role.value}")  # noqa: TRY004  # of an archive's words
    return found


def state_method(name: Method) -> StateMethod:
    """The lossy method of that name for states; ValueError if there is none."""
    found = method_of(name, Role.STATE)
    if not isinstance(found, StateMethod):
        raise ValueError(f"{name} loses nothing of a state")  # noqa: TRY004  # of an archive's words
    return found


def verbatim(name: Method) -> Verbatim:
    """The method of that name that loses nothing; ValueError if there is none."""
    found = method_of(name, Role.REFERENCE)
    if not isinstance(found, Verbatim):
        raise ValueError(f"{name} is of no tensor by itself")  # noqa: TRY004  # of an archive's words
    return found


def is_lossy(name: Method, role: Role) -> bool:
    """Whether a tensor of that role that is coded so may come back otherwise."""
    return isinstance(_ROWS.get((name, role)), LossyMethod)


def weight_methods(scheme: Scheme) -> list[WeightMethod]:
    """Ways in which presets of a scheme may code weights."""
    return [method for method in METHODS if isinstance(method, WeightMethod) and scheme in method.schemes]


def moment_methods(role: Role, scheme: Scheme | None = None) -> list[MomentMethod]:
    """Ways in which presets of a scheme (none: all presets) may code moments of a role."""
    ways = [method for method in METHODS if isinstance(method, MomentMethod) and role in method.roles]
    return [method for method in ways if scheme is None or scheme in method.schemes]


def checked(index: Index) -> Index:
    """The index, if every tensor is coded in a way that fits its role; ValueError or IndexError else."""
    layout, codes = index.layout, index.codes
    if len(codes) != len(layout.tensors):
        raise ValueError(f"expected {len(layout.tensors)} codes, got {len(codes)}")
    roles = layout.roles()
    for number in range(len(codes)):
        _check_code(index, roles, number)
    for triple in layout.triples:
        if triple.second is not None:
            second = method_of(codes[triple.second].method, Role.SECOND)
            if not second.may_stand_beside(codes[triple.first_moment].method):
                raise ValueError(f"tensor {triple.second}: it cannot be coded as {second.name} beside its first moment")
    for number in index.step_exponents:
        method = _ROWS[codes[number].method, roles[number]]
        if not isinstance(method, WeightMethod) or method.step(index.steps) is None:
            raise ValueError(f"a step exponent of tensor {number}, which has no step")
    _check_predictions(index)
    maskable = {t.weight for t in layout.triples if is_lossy(codes[t.weight].method, Role.WEIGHT)}
    maskable |= {t.moments[0] for t in layout.triples if any(is_lossy(codes[n].method, roles[n]) for n in t.moments)}
    if not maskable.issuperset(index.zeros):
        raise ValueError("a mask of a tensor that is coded exactly")
    return index


def _check_code(index: Index, roles: Mapping[int, Role], number: int) -> None:
    """The code names what its method needs; a copy is one of an earlier reference tensor of the same bytes."""
    code, tensor = index.codes[number], index.layout.tensors[number]
    method = method_of(code.method, roles[number])
    if _streams_of(code) is not method.streams:
        raise ValueError(f"tensor {tensor.path}: coded as {method.name} with {_streams_of(code).value} stream")
    if isinstance(method, StateMethod) and tensor.dtype not in CODED_FLOATS:
        raise ValueError(f"tensor {tensor.path}: {tensor.dtype} coded as {method.name}")
    if method.streams is Streams.OTHER:
        _check_other(index, roles, number)


def _check_other(index: Index, roles: Mapping[int, Role], number: int) -> None:
    code, tensor = index.codes[number], index.layout.tensors[number]
    other, codes = index.layout.tensors[code.other], index.codes
    if code.method is Method.CAST:
        is_one = tensor.dtype in STORED_AS and other.shape == tensor.shape and code.other not in index.predictions
    else:
        is_one = code.other < number and other.nbytes == tensor.nbytes
    if not is_one or roles[code.other] not in (Role.REFERENCE, Role.WEIGHT):
        raise ValueError(f"tensor {tensor.path}: a {code.method} of tensor {code.other}")
    is_free = codes[code.other].method is Method.CAST and code.method is Method.COPY
    if _streams_of(codes[code.other]) is Streams.OTHER and not is_free:
        raise ValueError(f"tensor {tensor.path}: a {code.method} of tensor {code.other}, which is one itself")


def _check_predictions(index: Index) -> None:
    """What is predicted is a lossy weight; what it is predicted from has its shape and waits for nothing itself."""
    tensors, weights = index.layout.tensors, {triple.weight for triple in index.layout.triples}
    first, _ = map(frozenset, index.turns())
    for number, prediction in index.predictions.items():
        if number not in weights or prediction.other not in first:
            raise ValueError(f"tensor {number} cannot be predicted from tensor {prediction.other}")
        if tensors[number].shape != tensors[prediction.other].shape:
            raise ValueError(f"tensor {number} has not the shape of tensor {prediction.other}")


def _streams_of(code: Code) -> Streams:
    if code.stream is not None:
        return Streams.ONE
    return Streams.NONE if code.other < 0 else Streams.OTHER
