"""FORMAT.md and the code name the same constants. That the page is enough is shown by tests/plain_decoder.py."""

import json
import re
from pathlib import Path

import ckzd.archive
from ckzd.checkpoint import FileLayout, FileStat, Hole
from ckzd.codec import scales
from ckzd.codec.entropy import context, escapes, lanes, planes
from ckzd.codec.entropy.context import DENSITIES, FIELDS, GRID, PASSES
from ckzd.codec.entropy.planes import Coder
from ckzd.codec.kernels import plain
from ckzd.codec.paper import lstm
from ckzd.codec.records import holes, index
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Layout
from ckzd.codec.transform import adaptive_basis, quantize, wide
from ckzd.fingerprints import Fingerprint

PAGE = (Path(ckzd.archive.__file__).parent / "FORMAT.md").read_text()
FLAT = " ".join(PAGE.split())


def section(name: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {name}\n")[1], flags=re.MULTILINE)[0]


def numbers_after(text: str, count: int) -> list[int]:
    place = FLAT.index(text) + len(text)
    return [int(number) for number in re.findall(r"\d+", FLAT[place:])[:count]]


def test_every_method_has_a_row():
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", section("Index"), re.MULTILINE) == [m.value for m in Method]


def test_adaptive_bases():
    assert f"at least {adaptive_basis.MIN_SIDE}." in FLAT
    assert f"k = N / {plain.MAX_DIRECTIONS}," in FLAT
    assert f"units of 2^-{adaptive_basis._VECTOR_BITS}, one a column" in FLAT
    assert f"eighths of an octave, -{adaptive_basis._MAX_VARIANCE_CODE}..{adaptive_basis._MAX_VARIANCE_CODE}." in FLAT
    assert f"`f = round((x / gain) * 2^{adaptive_basis.FINE_BITS})`; one beyond 2^26 is refused" in FLAT
    assert adaptive_basis.MAX_COEFFICIENT == 2.0**26
    assert f"`round(f * 2^-{adaptive_basis.FINE_BITS - adaptive_basis._LEARNING_BITS})` clipped" in FLAT
    assert f"`{1 - adaptive_basis._REMEMBERED} * (K * q)`" in FLAT
    assert f"`{adaptive_basis._REMEMBERED} * value(code i) + 2^-4`" in FLAT
    assert adaptive_basis._REGULAR == 2.0**-4
    assert f"`round(E * 2^{adaptive_basis._VARIANCE_BITS})`" in FLAT
    assert f"in units of 2^-{plain.ROW_BITS}, as below" in FLAT
    assert f"times 2^-{plain.ROW_BITS + adaptive_basis._VARIANCE_BITS}, at least" in FLAT
    assert f"nearest code of e, at least {adaptive_basis._FLOOR}." in FLAT
    assert f"taken in panels of {plain._PANEL}," in FLAT
    assert f"2^({plain._WORK_BITS} - k)" in FLAT
    assert "A new one learns in three" in FLAT
    assert adaptive_basis._COLD_PASSES == 3


def test_every_entry_has_a_row():
    rows = [line.split(" | ")[0] for line in section("Entries").splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([a-z_]+)(?:/N)?`", row)]
    assert names[:7] == ["index", "skeleton", "scales", "tables", "lstm", "base_model", "carried"]
    assert names[7:] == ["weights", "first_moment", "second_moment", "zeros", "state"]


def test_every_coder_is_named():
    named = FLAT[FLAT.index("| coder: ") :].split(";")[0].removeprefix("| coder: ").split(", ")
    assert named == ["0 empty", "1 raw", "2 order-0", "3 tables", "4 LSTM"]
    assert [coder.value for coder in Coder] == [0, 1, 2, 3, 4]
    assert f"plus {planes._HAS_CODES} if symbol codes follow" in FLAT


def test_the_layout_has_its_keys():
    hole = Hole(0, 0, 4, (10,), fingerprint=Fingerprint(30, (60,), (), ()))
    files = (FileLayout("a", 80, FileStat(0, 0, 0, 0), (hole,)),)
    written = json.loads(Layout(files, (), (), (), {1: 0}, {1: 2}).to_json())
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", section("Index"), re.MULTILINE)
    assert rows[: len(written)] == list(written)
    assert rows[len(written) :] == list(index.STEPS)


def test_contexts():
    table = dict(re.findall(r"^\| (\w+) \| (\d+) \| ", section("Planes"), re.MULTILINE))
    assert {name: int(size) for name, size in table.items()} == {"density": DENSITIES, **dict(FIELDS)}
    assert numbers_after("| density | 8 | how many of ", 7) == context._DENSITY_STEPS.tolist()
    assert numbers_after("Energy steps: ", 23) == list(context._ENERGY_STEPS)
    assert tuple(numbers_after("with total t: how many of ", 3)) == context._SURROUND_STEPS
    assert tuple(numbers_after("coded in earlier passes against ", 4)) == context._KNOWN_NEIGHBOURS
    assert f"cut off at {plain.MAGNITUDE_LIMIT}" in FLAT
    assert f"`(E + {context._PRIOR_ELEMENTS} * {context._ONE}) / (W + {context._PRIOR_ELEMENTS})`" in FLAT
    assert GRID == 5 * 24 * 4 * 4 * 3
    order = {
        0: "0 in pass 0",
        4: "4 in pass 1",
        2: "2 and 6 in pass 2",
        6: "2 and 6 in pass 2",
        1: "odd ones in pass 3",
    }
    for diagonal, said in order.items():
        assert said in FLAT
        assert plain._PASS_OF_DIAGONAL[diagonal] == int(said[-1])


def test_symbols():
    assert f"up to {plain.MAX_SYMBOL_LEVEL} and -{plain.MAX_SYMBOL_LEVEL}" in FLAT
    assert f"symbol {plain.ESCAPE} is an escape" in FLAT
    assert f"plus {planes._HAS_CODES} if symbol codes follow, plus {planes._PACKED} if" in FLAT
    assert f"plus {planes._LANES} if words are in lanes" in FLAT
    assert f"at most N / {lanes._ELEMENTS_A_LANE}, at least 1, at most {lanes._MOST}" in FLAT
    assert f"`max(floor(f (2^{plain.TOTAL_BITS} - {plain.ALPHABET}) / S), 1)`" in FLAT
    assert f"are at least 2^{plain.LEAST.bit_length() - 1};" in FLAT
    assert f"of magnitude {escapes.LEAST} + e" in FLAT
    assert f"k, at most {escapes._MAX_ORDER}" in FLAT
    assert f"n = {plain.ALPHABET} frequencies" in FLAT
    assert f"for m = 1..{plain.CENTRED_LEVELS}" in FLAT
    assert f"/ {quantize._CENTRE_UNITS}" in FLAT


def test_the_lstm():
    said = FLAT[FLAT.index("in this order: embedding") :].split(". ")[0]
    for name, shape in lstm.SHAPES.items():
        size = " x ".join(map(str, shape)).replace(f"{lstm.TOKENS} x", f"{lstm.TOKENS} tokens x")
        assert f"{name.replace('_', ' ')} ({size})" in said
    sizes = (lstm.KINDS * PASSES, DENSITIES, *(size for _, size in FIELDS))
    assert numbers_after("kind * 4 + pass (", 7) == list(sizes) or list(sizes) == [12, *numbers_after("density (", 6)]
    assert (
        f"`(z + {1 << (lstm.GATE_BITS - lstm.TABLE_STEP_BITS - 1)}) >> {lstm.GATE_BITS - lstm.TABLE_STEP_BITS}`" in FLAT
    )


def test_limits():
    assert f"-{scales.MAX_SCALE_CODE}..{scales.MAX_SCALE_CODE} stands for" in FLAT
    assert f"{int(scales.ZERO)} stands for 0" in FLAT
    assert holes.MAX_BYTES == 2**48
    assert "No number is above 2^48" in FLAT
    assert f"a count being 1 to {index.MAX_STEP_EXPONENT}." in FLAT
    assert f"u8 n, at most {wide.MAX_LOW_BITS}," in FLAT
    assert index.MAX_STEP == 2.0**128
    assert index.MAX_INDEX_BYTES == 2**30
    assert "at most 2^30 bytes decompressed" in FLAT
