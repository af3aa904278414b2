"""Who may import whom, and where each foreign package lives. Late imports count like early ones."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ckzd"

LEVELS = (
    (
        "errors",
        "assembly",
        "checkpoint",
        "cores",
        "defaults",
        "file_marks",
        "fingerprints",
        "gpus",
        "pace",
        "page_cache",
        "parts",
        "plain",
        "stages",
        "meanwhile",
        "state_dir",
        "streams",
        "zip_structs",
    ),
    ("formats", "codec", "archive", "durable", "locks", "priority", "access"),
    ("base_models",),
    ("chains",),
    ("series",),
    ("retention",),
    ("store",),
    ("operations",),
    ("config",),
    ("daemon",),
    ("screen", "failures"),
    ("cli", "reports", "demo", "demo_training", "__main__"),
)
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
APART = {"formats", "codec", "archive", "durable"}  # siblings that never import each other

HOMES = {
    "constriction": ("codec/entropy/range_coder.py",),
    "sklearn": ("codec/paper/kmeans.py",),  # apart from quantize.py, which a restore loads
    "scipy": ("codec/analysis/pairing.py",),
    "threadpoolctl": ("codec/parallel.py",),
    "torch": ("codec/algebra/on_torch.py", "codec/paper/train.py", "demo_training.py"),
    "watchdog": ("daemon/watch.py",),
    "prometheus_client": ("daemon/metrics.py",),
    "typer": ("cli.py",),
    "rich": ("screen.py", "reports.py", "cli.py"),
    "pydantic": ("archive/manifest.py", "config.py"),
    "pydantic_settings": ("config.py",),
    "zstandard": ("codec/zstd.py",),
    "numpy": ("checkpoint.py", "parts.py", "formats/", "codec/", "operations/", "demo_training.py"),
}


@dataclass(frozen=True)
class Import:
    importer: str  # "codec/entropy/range_coder.py"
    line: int
    module: str  # "ckzd.codec.entropy.tables"
    late: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}"


def imports_of(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    importer = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}:{node.lineno} imports relatively"
            names = [f"{node.module}.{a.name}" if node.module == "ckzd" else node.module for a in node.names]
        found += [Import(importer, node.lineno, name, id(node) in late) for name in dict.fromkeys(names)]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]
CODEC_IMPORTS = [
    found
    for path in FILES
    for found in (imports_of(path) if path.is_relative_to(PACKAGE / "codec") else [])
    if found.module.startswith("ckzd.codec.")
]


def part_of(importer: str) -> str:
    """codec/entropy/range_coder.py is of the part codec, store.py of the part store."""
    return importer.split("/", maxsplit=1)[0].removesuffix(".py")


def inner_part(module: str) -> str | None:
    """ckzd.codec.entropy.tables is of the part codec; a name of the package itself (ckzd.__version__) is of none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ckzd" and len(parts) > 1 and parts[1] in LEVEL_OF else None


def test_every_part_has_a_level():
    parts = {part_of(path.relative_to(PACKAGE).as_posix()) for path in FILES} - {"__init__"}
    assert parts <= set(LEVEL_OF)


def test_imports_point_downward():
    """The package's __init__ is the public surface and only points at its parts lazily."""
    upward = [
        str(found)
        for found in IMPORTS
        if (target := inner_part(found.module)) is not None
        and found.importer != "__init__.py"
        and LEVEL_OF[target] > LEVEL_OF[part_of(found.importer)]
    ]
    assert upward == []


def test_siblings_below_the_store_never_import_each_other():
    sideways = [
        str(found)
        for found in IMPORTS
        if {part_of(found.importer), inner_part(found.module)} <= APART
        and part_of(found.importer) != inner_part(found.module)
    ]
    assert sideways == []


def test_every_foreign_package_stays_in_its_home():
    strays = []
    for found in IMPORTS:
        package = found.module.split(".")[0]
        if package in sys.stdlib_module_names or package == "ckzd":
            continue
        homes = HOMES.get(package, ())
        if not any(found.importer.startswith(home) if home.endswith("/") else found.importer == home for home in homes):
            strays.append(str(found))
    assert strays == []


LATE = {  # seconds of every command that `resume` and `archive` do without
    ("codec/encode.py", "ckzd.codec.paper"): "torch",
    ("codec/encode.py", "ckzd.codec.algebra.on_torch"): "torch",
    ("operations/placement.py", "ckzd.codec.paper"): "torch",
    ("operations/placement.py", "ckzd.codec.algebra.on_torch"): "torch",
    ("codec/methods/codebook.py", "ckzd.codec.paper"): "scikit-learn",
    ("codec/analysis/pairing.py", "scipy.optimize"): "scipy",
}


def test_only_the_command_line_and_what_is_slow_to_load_is_imported_late():
    late = {(found.importer, found.module): str(found) for found in IMPORTS if found.late}
    assert [said for key, said in late.items() if key[0] != "cli.py" and key not in LATE] == []
    assert set(late) >= set(LATE)


CODEC = (  # the codec's rooms: each imports those before it, and what stands beside them as it likes
    ("arrays", "dtypes", "parsing", "zstd", "parallel", "svd"),
    ("kernels",),
    ("presets", "budget", "entropy", "scales", "algebra"),
    ("transform", "lossless"),
    ("records",),
    ("analysis", "paper"),
    ("methods",),
    ("ahead",),
    ("choose_exact", "choose_weights", "choose_moments", "choose_states", "choose"),
    ("encode", "decode"),
)
ROOM_OF = {room: level for level, rooms in enumerate(CODEC) for room in rooms}


def test_the_codecs_rooms_are_in_order():
    rooms = {path.name.removesuffix(".py") for path in (PACKAGE / "codec").iterdir()} - {"__init__", "__pycache__"}
    assert rooms == set(ROOM_OF)
    backward = [
        str(found)
        for found in CODEC_IMPORTS
        if ROOM_OF[found.module.split(".")[2]] > ROOM_OF[found.importer.split("/")[1].removesuffix(".py")]
    ]
    assert backward == []


PAPER = {"encode.py", "decode.py", "methods/codebook.py"}  # models, their stored bytes, and the one method of codebooks


def test_only_the_preset_paper_knows_what_it_alone_needs():
    inside = [found for found in CODEC_IMPORTS if found.module.startswith("ckzd.codec.paper")]
    assert {i.importer.removeprefix("codec/") for i in inside if not i.importer.startswith("codec/paper/")} == PAPER


def calls_of(path: Path) -> set[str]:
    """Dotted names that are used as an attribute: "os.environ", "torch.load"."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


RULES = [
    (("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"), ("demo_training.py",)),  # it plays the trainer
    (("importlib.import_module", "import_module"), ("__init__.py",)),
    (("pkgutil.resolve_name", "resolve_name"), ("daemon/worker.py",)),  # the operation that it is started for
    (("sys.executable",), ("operations/child.py", "demo.py")),  # the demo plays a user
    (
        ("os.environ", "os.getenv"),
        ("config.py", "state_dir.py", "codec/parallel.py", "demo.py", "operations/child.py"),
    ),  # or to a child
    (("os.rename", "os.replace", "os.unlink", "os.remove", "shutil.move", "shutil.rmtree"), ("durable.py",)),
]


@pytest.mark.parametrize(("names", "homes"), RULES, ids=lambda value: value[0])
def test_dangerous_calls_stay_in_their_home(names, homes):
    strays = [
        f"{importer} uses {name}"
        for path in FILES
        if (importer := path.relative_to(PACKAGE).as_posix()) not in homes
        for name in sorted(calls_of(path) & set(names))
    ]
    assert strays == []


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after running `code`."""
    heavy = ("torch", "numpy", "sklearn", "scipy", "pydantic", "rich")
    script = f"import sys\n{code}\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.splitlines()[-1].split())


def test_importing_ckzd_loads_nothing_heavy():
    assert loaded_by("import ckzd") == set()


@pytest.mark.parametrize(
    "module", ["ckzd.operations.restore", "ckzd.operations.verify", "ckzd.operations.inspect", "ckzd.operations.ensure"]
)
def test_giving_back_never_loads_torch(module):
    assert "torch" not in loaded_by(f"import {module}")


def test_what_two_presets_do_without_is_not_loaded():
    assert loaded_by("import ckzd.operations.compress") == {"numpy", "pydantic"}


def test_the_daemon_never_loads_torch():
    assert "torch" not in loaded_by("import ckzd.daemon.service")


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "/nowhere.ckz"], ["compress", "--help"]])
def test_the_command_line_starts_without_torch(arguments):
    assert "torch" not in loaded_by(f"from ckzd.cli import run\nrun({arguments!r})")


BENCH = Path(__file__).parent / "bench"


@pytest.mark.parametrize("script", sorted(path.name for path in BENCH.glob("*.py")))
def test_what_a_benchmark_imports_of_the_tests_stands_beside_it(script):
    """`python tests/bench/NAME.py` finds the modules of its own directory; the tests' paths are pytest's."""
    if script.startswith(("test_", "conftest")):
        return
    imports = (node for node in ast.walk(ast.parse((BENCH / script).read_text())) if isinstance(node, ast.ImportFrom))
    of_tests = {path.stem for path in BENCH.parent.iterdir()} - {path.stem for path in BENCH.glob("*.py")}
    assert not {node.module.split(".")[0] for node in imports if node.module} & of_tests
