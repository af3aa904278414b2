"""`ckzd list` and `ckzd check`: what they print, where, and with which exit code."""

import json
from pathlib import Path

import pytest
from making import put_chain
from serving import write_checkpoint

from ckzd import cli
from ckzd.store import Store


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def chain(run) -> list[Path]:
    return put_chain(Store.open_or_create(run.parent / ".ckzd"), run, 3)


def rot(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes().replace(b"first", b"fIrst"))


def config_for(run: Path, store: Path | None = None) -> Path:
    file = run.parent / "ckzd.toml"
    more = f"store = {json.dumps(str(store))}\n" if store is not None else ""
    file.write_text(f"[[watch]]\npath = {json.dumps(str(run.parent))}\nreplace = true\n{more}")
    return file


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_list_prints_a_table_for_each_run(run, chain, capsys):
    assert cli.run(["list", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run}\n")
    for part in ("step_0.pt", "base", "step_200.pt", "delta", "nothing", "3 archives"):
        assert part in out


def test_list_prints_one_object_a_checkpoint(run, chain, capsys):
    assert cli.run(["list", "--json", str(run)]) == 0
    rows = objects(capsys.readouterr().out)
    assert [row["archive"] for row in rows] == list(map(str, chain))
    assert {row["stands"] for row in rows} == {"nothing"}


@pytest.mark.parametrize("verb", ["list", "check"])
def test_without_a_path_it_is_all_that_the_configuration_watches(run, chain, verb, capsys):
    assert cli.run([verb, "--json", "--config", str(config_for(run))]) == 0
    assert [row["archive"] for row in objects(capsys.readouterr().out)] == list(map(str, chain))


@pytest.mark.parametrize("verb", ["list", "check"])
def test_a_store_elsewhere_is_named_or_configured(run, tmp_path, verb, capsys):
    store = Store.open_or_create(tmp_path / "stores" / "one")
    chain = put_chain(store, run, 2)
    assert cli.run([verb, "--json", str(run), "--store", str(store.root)]) == 0
    named = capsys.readouterr().out
    assert cli.run([verb, "--json", "--config", str(config_for(run, store.root))]) == 0
    assert capsys.readouterr().out == named
    assert len(objects(named)) == len(chain)


@pytest.mark.parametrize("verb", ["list", "check"])
def test_nothing_to_look_at_is_a_usage_error(tmp_path, monkeypatch, verb, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("ckzd.config.default_config_files", tuple)
    assert cli.run([verb]) == 2
    assert cli.run([verb, str(tmp_path / "nothing")]) == 2
    assert cli.run([verb, str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


@pytest.mark.parametrize("verb", ["list", "check", "prune", "gc"])
class TestWhatMayBeNamed:
    """It is the same for all verbs that take runs and stores."""

    @pytest.fixture(autouse=True)
    def _nothing_is_configured(self, monkeypatch):
        monkeypatch.setattr("ckzd.config.default_config_files", tuple)

    def test_stores_runs_directories_of_runs_and_what_leads_to_them(self, run, chain, verb):
        for path in (run, run.parent, run.parent / ".ckzd", run / "..", run / ".." / ".ckzd"):
            assert cli.run([verb, str(path)]) == 0

    def test_a_watched_run_without_a_store_yet_holds_nothing_and_is_no_error(self, run, verb, capsys):
        for store in (None, run.parent / "later"):
            config = ["--config", str(config_for(run, store))]
            assert cli.run([verb, *config]) == 0
            assert capsys.readouterr().err == ""
            write_checkpoint(run / "step_1.safetensors")
            for path in (run, run.parent):
                assert cli.run([verb, str(path), *config]) == 0
            assert capsys.readouterr().err == ""

    def test_a_watched_directory_that_is_not_there_is_said(self, run, verb, capsys):
        config = config_for(run)
        run.rmdir()
        config.write_text(config.read_text().replace(str(run.parent), str(run)))
        assert cli.run([verb, "--config", str(config)]) == 2
        assert str(run) in capsys.readouterr().err

    def test_a_run_is_found_in_the_store_that_is_configured_for_it(self, tmp_path, verb, capsys):
        run = tmp_path / "all" / "runs" / "gpt"
        run.mkdir(parents=True)
        store = Store.open_or_create(tmp_path / "stores" / "one")
        put_chain(store, run, 2)
        elsewhere = tmp_path / "another"
        elsewhere.mkdir()
        put_chain(store, elsewhere, 3)
        config = ["--config", str(config_for(run, store.root))]
        for path in (run, run.parent, run.parent.parent):
            assert cli.run([verb, "--json", str(path), *config]) == 0
            rows = objects(capsys.readouterr().out)
            if verb != "gc" and path == run:
                assert sum("archive" in row for row in rows) == 2

    def test_what_is_nothing_is_refused_by_name(self, tmp_path, verb, capsys):
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "empty", tmp_path / "nowhere"):
            assert cli.run([verb, str(path)]) == 2
            assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["list", "check"])
def test_a_store_that_is_none_is_refused_by_name(run, chain, tmp_path, verb, capsys):
    assert cli.run([verb, str(run), "--store", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'nowhere'}: is no store" in said
    assert "hint: " in said


@pytest.mark.parametrize("verb", ["list", "check"])
def test_a_store_alone_is_what_is_meant(run, chain, verb, capsys):
    assert cli.run([verb, "--json", "--store", str(run.parent / ".ckzd")]) == 0
    assert len(objects(capsys.readouterr().out)) == 3


def test_a_run_that_is_gone_is_listed_by_its_name(run, chain, capsys):
    run.rmdir()
    assert cli.run(["list", "--json", str(run)]) == 0
    assert [row["archive"] for row in objects(capsys.readouterr().out)] == list(map(str, chain))


def test_check_says_how_much_was_whole(run, chain, capsys):
    assert cli.run(["check", str(run)]) == 0
    assert capsys.readouterr().out == "read back: 3 whole\n"
    assert cli.run(["check", str(run), "--percent", "30"]) == 0
    assert capsys.readouterr().out == "read back: 1 whole\n"


def test_check_names_damage_and_what_is_lost_with_it(run, chain, capsys):
    rot(chain[1])
    assert cli.run(["check", "--json", str(run)]) == 3
    said = capsys.readouterr()
    *_, damaged = objects(said.out)
    assert damaged["outcome"] == "damaged"
    assert damaged["lost"] == [str(chain[2])]
    error = objects(said.err)[-1]
    assert (error["error"], error["subject"], error["exit_code"]) == ("CorruptArchive", str(chain[1]), 4)
    assert chain[2].name in error["problem"]
    assert cli.run(["check", str(run), "--percent", "0"]) == 4  # nothing else was looked at


def test_check_says_what_it_has_healed_and_that_is_no_failure(run, chain, tmp_path, capsys):
    (tmp_path / "copies").mkdir()
    for archive in chain:
        (tmp_path / "copies" / archive.name).write_bytes(archive.read_bytes())
    rot(chain[1])
    assert cli.run(["check", str(run), str(tmp_path / "copies")]) == 0
    out = capsys.readouterr().out
    assert f"healed {chain[1]}" in out
    assert str(tmp_path / "copies" / chain[1].name) in out


@pytest.mark.parametrize("percent", ["-1", "101", "x"])
def test_a_share_is_between_0_and_100(run, percent, capsys):
    assert cli.run(["check", str(run), "--percent", percent]) == 2
    assert "--percent" in capsys.readouterr().err
