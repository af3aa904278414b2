"""The documents say what the code does: verbs, options, settings, exit codes, paths and examples."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from ckzd import cli, errors
from ckzd.config import DaemonSettings, KeepSettings, Settings, WatchSettings, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "ckzd" / "DESIGN.md", ROOT / "ckzd" / "archive" / "FORMAT.md"]

VERBS = {command.name or command.callback.__name__: command.callback for command in cli.app.registered_commands}


def fenced(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def table_rows(*, first: str) -> str:
    """The README's table whose heading row begins with the cell `first`."""
    return README.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb):
    assert re.search(rf"^\| `ckzd {verb}\b", README, re.MULTILINE)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"demo"}))
def test_every_option_is_in_the_readme(verb, capsys):
    assert cli.run([verb, "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--output"}
    row = next(line for line in README.splitlines() if line.startswith(f"| `ckzd {verb}"))
    assert options - {"--json"} <= set(re.findall(r"--[a-z-]+", row))
    assert "--json" in options


TABLES = {"`[[watch]]`": WatchSettings, "`[watch.keep]`": KeepSettings, "`[daemon]`": DaemonSettings}


@pytest.mark.parametrize("model", TABLES.values(), ids=TABLES)
def test_every_setting_is_in_the_readme(model, request):
    rows = table_rows(first=request.node.callspec.id)
    named = set(
        re.findall(r"`([a-z_]+)`", " ".join(line.split("|")[1] for line in rows.splitlines()[1:] if "|" in line))
    )
    assert named == set(model.model_fields)


def test_the_settings_defaults_in_the_readme_are_the_real_ones():
    for first, model in TABLES.items():
        for line in table_rows(first=first).splitlines()[2:]:
            _, names, values, *_ = line.split("|")
            fields = [model.model_fields[name] for name in re.findall(r"`([a-z_]+)`", names)]
            written = re.findall(r"`([^`]+)`", values)
            for field, text in zip(fields, written, strict=False):
                if field.default not in (None, ...) and field.default_factory is None and not field.is_required():
                    value = tomllib.loads(f"v = {text}")["v"]
                    assert value == (list(field.default) if isinstance(field.default, tuple) else field.default), names


def test_every_exit_code_is_in_the_readme():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CkzdError)]
    codes = {kind.exit_code for kind in kinds} | {errors.EXIT_DONE, errors.EXIT_SOME_FAILED, errors.EXIT_USAGE}
    assert {int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)} == codes


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document):
    """In ckzd/DESIGN.md paths may be written from the package too."""
    words = re.findall(r"`([\w./-]+)`", document.read_text()) + re.findall(r"\]\(([\w./-]+)\)", document.read_text())
    looks_like_ours = re.compile(r"^(ckzd|tests|deploy|systemd|\.ci|archive|codec|formats|operations|daemon)/[\w./-]+$")
    missing = [
        word
        for word in words
        if looks_like_ours.match(word) and not any((start / word).exists() for start in (ROOT, ROOT / "ckzd"))
    ]
    assert missing == []


def test_every_module_of_the_codec_stands_in_its_room():
    rooms = (ROOT / "ckzd" / "DESIGN.md").read_text().split("## Rooms of the codec", 1)[1].split("```")[1]
    modules = {path.stem for path in (ROOT / "ckzd" / "codec").rglob("*.py")} - {"__init__"}
    assert modules - set(re.findall(r"\w+", rooms)) == set()


def test_the_readmes_configuration_is_valid(tmp_path):
    for example in fenced("toml"):
        config = tmp_path / "ckzd.toml"
        config.write_text(example)
        settings = load(config)
        assert isinstance(settings, Settings)
        assert settings.watch[0].path == Path("/ckpts")


@pytest.mark.parametrize("document", DOCUMENTS[:2], ids=lambda path: path.name)
def test_lines_are_no_longer_than_120_columns(document):
    """Tables and what a program printed may be."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))] == []


def test_the_readmes_python_uses_what_there_is():
    import ckzd

    for example in fenced("python"):
        compile(example, "README.md", "exec")
        for name in re.findall(r"ckzd\.(\w+)\(", example):
            assert name in ckzd.__all__


def test_the_package_exports_what_the_readme_says():
    import ckzd

    listed = set(re.findall(r"`ckzd\.(\w+)`", README))
    assert listed == set(ckzd.__all__) - {"CkzdError", "__version__"}


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"sed -n '/(.*)/p' README.md", script)[1]
    commands = [line for line in README.splitlines() if re.search(pattern, line)]
    assert len(commands) == 1
    assert commands[0].endswith("sh deploy/install.sh test && pytest")


@pytest.mark.parametrize("script", [".ci/run", ".ci/frameworks", "deploy/install.sh"])
def test_shell_scripts_parse(script):
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def test_docstrings_stand_alone():
    """Who reads one in an editor does not see the one above it."""
    sources = sorted((ROOT / "ckzd").rglob("*.py"))
    assert [path.name for path in sources if '"""The same' in path.read_text()] == []
