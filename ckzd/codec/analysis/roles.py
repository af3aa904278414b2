"""What each tensor is to the codec: a weight with its moments, a weight alone, or what follows from another one.

Where a checkpoint has no moments that can be told, all its matrices are taken for weights. Beside weights with moments
a matrix is one if it changed since the reference: what did not is frozen, or a table, and costs little exactly.
Of vectors nothing says what an error costs: they are exact, and in a file of weights alone much finer than matrices.
What follows a weight, as its average does, may lose what that may.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

from ckzd.codec.analysis.candidates import has_changed, is_buffer
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import Paired, State, is_coded, pair
from ckzd.codec.analysis.twins import casts, predictions
from ckzd.codec.presets import Scheme
from ckzd.codec.records.index import LinearPrediction
from ckzd.codec.records.layout import Triple, plane_shape
from ckzd.codec.transform.adaptive_basis import has_basis


@dataclass(frozen=True, slots=True)
class Roles:
    """Tile by tile."""

    triples: tuple[Triple, ...]  # ascending by weight
    casts: dict[int, int]  # number of a tensor -> of the master that it is rounded from
    predictions: dict[int, LinearPrediction]  # of weights without moments
    states: dict[int, State]  # what optimizers keep beside moments
    factors: dict[int, tuple[int | None, ...]]  # of a weight's variance, as `Paired` has them


def find_roles(inputs: Inputs, scheme: Scheme, copies: Container[int]) -> Roles:
    """Of what presets of a scheme code otherwise than by itself and exactly; `copies` repeat an earlier tensor."""
    narrow = {number: master for number, master in casts(inputs).items() if master not in copies}
    if scheme is Scheme.EXACT:
        return Roles((), narrow, {}, {}, {})
    found = _of_masters(pair(inputs), narrow)
    if scheme is Scheme.KMEANS:  # codebooks are of weights with moments
        return Roles(found.triples, narrow, {}, {}, {})
    alone, following = _alone(inputs, found, narrow, copies)
    triples = sorted((*found.triples, *alone), key=attrgetter("weight"))
    return Roles(tuple(triples), narrow, following, found.states, found.factors)


def _of_masters(found: Paired, narrow: Mapping[int, int]) -> Paired:
    """Moments belong to what the optimizer moves, which is the master where there is one."""
    triples = [replace(triple, weight=narrow.get(triple.weight, triple.weight)) for triple in found.triples]
    states = {
        number: state if state.weight is None else replace(state, weight=narrow.get(state.weight, state.weight))
        for number, state in found.states.items()
    }
    factors = {narrow.get(weight, weight): own for weight, own in found.factors.items()}
    return Paired(tuple(sorted(triples, key=attrgetter("weight"))), states, factors)


def _alone(
    inputs: Inputs, found: Paired, narrow: Mapping[int, int], copies: Container[int]
) -> tuple[list[Triple], dict[int, LinearPrediction]]:
    """Weights that are in none of the triples, and linear predictions of those that follow from others.

    A master follows from none: its rounded copies, which cost nothing for that, are decoded in the same turn as those.
    """
    with_moments = {triple.weight for triple in found.triples}
    with_states = {state.weight for state in found.states.values()} - with_moments
    own = [n for n in inputs.tiles if n not in copies and _is_sound(inputs, n)]
    others = [n for n in own if n not in with_moments and n not in narrow]
    is_known = bool(with_moments or with_states)
    weights = [n for n in others if n in with_states or _is_trained(inputs, n, others_known=is_known)]
    optimized = [n for n in own if n in with_moments or n in with_states]
    fixed = with_states | set(narrow.values())
    followers = [n for n in others if n not in fixed and not is_buffer(inputs, n)]
    following = predictions(inputs, optimized or weights, followers)
    tiles = {tile for number in weights for tile in inputs.tiles[number]} | following.keys()
    return [Triple(number) for number in tiles], following


def _is_trained(inputs: Inputs, number: int, *, others_known: bool) -> bool:
    """A matrix that changed; where nothing tells weights from others any at a base, and vectors that changed.

    But for those of 16 bits at a base: exactly that takes half as much again, and what then hardly changes goes on so.
    """
    if inputs.contents.tensors[number].repeats:
        return False  # a mask, whole numbers
    is_narrow = inputs.tensor(number).dtype != "float32"
    if is_matrix(inputs, number):
        return has_changed(inputs, number) or not (others_known or is_narrow)
    return has_changed(inputs, number) and not others_known and not is_buffer(inputs, number)


def _is_sound(inputs: Inputs, number: int) -> bool:
    """Whether it is a tensor that may lose precision, and all of it is finite."""
    is_finite = all(inputs.contents.tensors[tile].is_finite for tile in inputs.tiles[number])
    return number in inputs.is_reference and is_coded(inputs, number) and is_finite


def is_matrix(inputs: Inputs, number: int) -> bool:
    """Whether a tensor, by its first tile, may have a basis."""
    return has_basis(plane_shape(inputs.whole_shape(number)))
