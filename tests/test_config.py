"""Settings come from a file, the environment and flags, in that order; every mistake names its field."""

from pathlib import Path

import pytest

from ckzd import config
from ckzd.config import DaemonSettings, KeepSettings, Settings, WatchSettings, load
from ckzd.errors import ConfigError
from ckzd.retention import Quota, Rules

GOOD = '[[watch]]\npath = "/ckpts"\nreplace = true\n'


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "ckzd.toml"
        path.write_text(text)
        return path

    return _write


def test_a_minimal_file_has_the_documented_defaults(write, tmp_path):
    settings = load(write(GOOD))

    (watch,) = settings.watch
    assert watch == WatchSettings(path=Path("/ckpts"), replace=True)
    assert (watch.preset, watch.keep_raw, watch.settle_seconds, watch.store) == ("resume", 2, 30.0, None)
    assert (watch.stride, watch.on_rotate) == (1, "keep")
    assert settings.daemon.state_dir == tmp_path / "state" / "ckzd"
    assert (settings.daemon.host, settings.daemon.port, settings.daemon.devices) == ("127.0.0.1", 19840, ("auto",))


def test_replace_must_be_decided_and_the_error_says_what_to_decide(write):
    with pytest.raises(ConfigError) as caught:
        load(write('[[watch]]\npath = "/ckpts"\n'))

    assert caught.value.subject == "watch[0].replace"
    assert "expected true or false, got nothing" in caught.value.problem
    assert "replace = true" in caught.value.hint
    assert "replace = false" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        (GOOD + "keepraw = 1", "watch[0].keepraw", "unknown setting"),
        ("[demon]\nx = 1", "demon", "unknown setting"),
        ("[daemon]\nports = 1", "daemon.ports", "unknown setting"),
        ('[[watch]]\nreplace = true\npath = ""', "watch[0].path", "expected a path"),
        ("[[watch]]\nreplace = true", "watch[0].path", "expected a directory, got nothing"),
        ("[[watch]]\nreplace = true\npath = 3", "watch[0].path", "got 3"),
        ('[[watch]]\npath = "/a"\nreplace = "perhaps"', "watch[0].replace", "expected a valid boolean"),
        (GOOD + 'preset = "best"', "watch[0].preset", "'resume', 'archive', 'paper' or 'lossless'"),
        ('[[watch]]\npath = "/no/run_*"\nreplace = true', "watch[0].path", "expected a directory, got the pattern"),
        (GOOD + "keep_raw = -1", "watch[0].keep_raw", "expected greater than or equal to 0, got -1"),
        (GOOD + "keep_raw = 1.5", "watch[0].keep_raw", "expected a valid integer"),
        (GOOD + "settle_seconds = inf", "watch[0].settle_seconds", "finite"),
        (GOOD + 'settle_seconds = "soon"', "watch[0].settle_seconds", "got 'soon'"),
        (GOOD + "store = 1", "watch[0].store", "got 1"),
        (GOOD + "stride = 0", "watch[0].stride", "got 0"),
        (GOOD + "max_depth = 0", "watch[0].max_depth", "got 0"),
        (GOOD + "base_model = 1", "watch[0].base_model", "got 1"),
        (GOOD + 'base_model = "/models/a\\u0007"', "watch[0].base_model", "got '/models/a\\x07'"),
        (GOOD + f'base_model = "/models/{"x" * 256}"', "watch[0].base_model", "255 between slashes"),
        (GOOD + 'effort = "slow"', "watch[0].effort", "'best' or 'fast'"),
        (GOOD + "min_free = -1", "watch[0].min_free", "got -1"),
        (GOOD + "trash_seconds = -1", "watch[0].trash_seconds", "got -1"),
        (GOOD + "keep = 3", "watch[0].keep", "got 3"),
        (GOOD + "keep = {}", "watch[0].keep", "expected newest, days, moments, max_bytes or max_share"),
        (GOOD + "keep.every = 1000", "watch[0].keep", "or nothing would ever go"),
        (GOOD + "keep.newest = 0", "watch[0].keep.newest", "got 0"),
        (GOOD + "keep = {newest = 1, every = 0}", "watch[0].keep.every", "got 0"),
        (GOOD + "keep.days = -1", "watch[0].keep.days", "got -1"),
        (GOOD + "keep.moments = 0", "watch[0].keep.moments", "got 0"),
        (GOOD + "keep.max_bytes = -1", "watch[0].keep.max_bytes", "got -1"),
        (GOOD + "keep.max_share = 1.5", "watch[0].keep.max_share", "got 1.5"),
        (GOOD + "keep.keep_newest = 1", "watch[0].keep.keep_newest", "unknown setting"),
        (GOOD + 'on_rotate = "delete"', "watch[0].on_rotate", "'keep' or 'drop'"),
        (GOOD + "scan_seconds = 0", "watch[0].scan_seconds", "greater than 0"),
        (GOOD + "max_lag = 0", "watch[0].max_lag", "got 0"),
        (GOOD + 'accept_command = "sh -c \'x"', "watch[0].accept_command", "no closing quotation"),
        (GOOD + 'accept_command = ""', "watch[0].accept_command", "expected a command, got ''"),
        (GOOD + "accept_command = []", "watch[0].accept_command", "expected a command, got ()"),
        (GOOD + "accept_command = 3", "watch[0].accept_command", "expected a valid list, got 3"),
        (GOOD + 'accept_command = ["x", 3]', "watch[0].accept_command[1]", "expected a valid string, got 3"),
        (GOOD + "accept_seconds = 0", "watch[0].accept_seconds", "greater than 0"),
        (GOOD + "accept_seconds = inf", "watch[0].accept_seconds", "finite"),
        ("[daemon]\nstate_dir = 1", "daemon.state_dir", "got 1"),
        ('[daemon]\nhost = ""', "daemon.host", "got ''"),
        ("[daemon]\nport = 99999", "daemon.port", "65535, got 99999"),
        ('[daemon]\ndevices = ["gpu"]', "daemon.devices[0]", "expected auto, cpu, cuda or cuda:<number>, got 'gpu'"),
        ("[daemon]\ndevices = []", "daemon.devices", "at least 1"),
        ("[daemon]\nworkers = 0", "daemon.workers", "got 0"),
        ("[daemon]\nthreads = 0", "daemon.threads", "got 0"),
        ("[daemon]\nnice = 20", "daemon.nice", "got 20"),
        ("[daemon]\ndrain_seconds = -1", "daemon.drain_seconds", "got -1"),
        ("[daemon]\njob_seconds = -1", "daemon.job_seconds", "got -1"),
        ("[daemon]\njob_bytes_per_second = 0", "daemon.job_bytes_per_second", "got 0"),
        ("[daemon]\ndisk_bytes_per_second = 1000", "daemon.disk_bytes_per_second", "got 1000"),
        ("[daemon]\ncheck_percent_a_day = 101", "daemon.check_percent_a_day", "got 101"),
        ("watch = 3", "watch", "expected a valid list, got 3"),
        ('[watch]\npath = "/a"', "watch", "expected [[watch]] tables"),
        (GOOD + '[[watch]]\npath = "/ckpts/a"\nreplace = true', "watch[1].path", "lies in the tree of watch[0].path"),
    ],
)
def test_every_mistake_names_the_field_and_what_was_expected(write, text, field, words):
    with pytest.raises(ConfigError) as caught:
        load(write(text))

    assert caught.value.subject == field
    assert words in caught.value.problem


def test_every_field_has_a_mistake_in_the_list_above():
    """A new setting cannot be added without a test of its error."""
    source = Path(__file__).read_text(encoding="utf-8")

    for prefix, model in (
        ("watch[0]", WatchSettings),
        ("watch[0].keep", KeepSettings),
        ("daemon", DaemonSettings),
    ):
        for field in model.model_fields:
            assert f'"{prefix}.{field}' in source


def test_a_directory_whose_name_looks_like_a_pattern_can_be_watched(write, tmp_path):
    (tmp_path / "run[1]").mkdir()
    assert load(write(f'[[watch]]\npath = "{tmp_path}/run[1]"\nreplace = true')).watch[0].path.name == "run[1]"


def test_every_watch_has_a_name_of_its_own(write):
    text = "\n".join(f'[[watch]]\npath = "{path}"\nreplace = true' for path in ("/a/ckpts", "/b/runs", "/c/ckpts"))
    assert load(write(text)).watch_names == ("ckpts[0]", "runs", "ckpts[2]")


def test_an_unknown_name_gets_the_nearest_known_one(write):
    with pytest.raises(ConfigError, match="did you mean `keep_raw`"):
        load(write(GOOD + "keepraw = 1"))


def test_several_mistakes_are_all_named(write):
    with pytest.raises(ConfigError, match=r"also wrong: watch\[0\].stride"):
        load(write(GOOD + "keep_raw = -1\nstride = 0"))


def test_environment_lies_over_the_file_and_flags_over_both(write, monkeypatch):
    monkeypatch.setenv("CKZD_WATCH__0__REPLACE", "false")
    monkeypatch.setenv("CKZD_WATCH__0__KEEP_RAW", "5")
    monkeypatch.setenv("CKZD_DAEMON__PORT", "1234")
    monkeypatch.setenv("CKZD_DAEMON__DEVICES", "cuda:1, cpu")

    settings = load(write(GOOD + "keep_raw = 3\nstride = 4"), watch=[{"keep_raw": 7}], daemon={"port": 0, "nice": None})

    (watch,) = settings.watch
    assert (watch.replace, watch.keep_raw, watch.stride) == (False, 7, 4)
    assert (settings.daemon.port, settings.daemon.devices, settings.daemon.nice) == (0, ("cuda:1", "cpu"), 19)


def test_a_command_is_a_text_or_a_list_of_words(write, monkeypatch):
    for given in ("""'eval.py "a b"'""", '["eval.py", "a b"]'):
        assert load(write(f"{GOOD}accept_command = {given}")).watch[0].accept_command == ("eval.py", "a b")

    monkeypatch.setenv("CKZD_WATCH__0__ACCEPT_COMMAND", "eval.py 'c d'")
    assert load(write(GOOD)).watch[0].accept_command == ("eval.py", "c d")


def test_the_environment_alone_is_enough(monkeypatch):
    monkeypatch.setenv("CKZD_WATCH", '[{"path": "/runs", "replace": false}]')

    assert load().watch == (WatchSettings(path=Path("/runs"), replace=False),)


@pytest.mark.parametrize(("name", "value"), [("CKZD_WATCH", "[{"), ("CKZD_DAEMON", "3")])
def test_an_unreadable_variable_is_a_config_error(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match="environment"):
        load()


def test_a_missing_file_and_a_syntax_error_name_the_file(tmp_path, write):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"ckzd.toml: expected TOML"):
        load(write("x = "))


def test_without_a_file_the_user_s_own_is_found(tmp_path):
    file = tmp_path / "config" / "ckzd" / "ckzd.toml"
    file.parent.mkdir(parents=True)
    file.write_text(GOOD)

    assert load().watch[0].path == Path("/ckpts")


def test_no_file_at_all_gives_settings_that_watch_nothing():
    assert load().watch == ()


def test_relative_paths_become_absolute_and_symlinks_stay(tmp_path, monkeypatch, write):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)

    assert load(write('[[watch]]\npath = "link"\nreplace = false')).watch[0].path == tmp_path / "link"


def test_systemd_gives_the_state_directory_and_the_watchdog(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/ckzd:/var/lib/other")
    monkeypatch.setenv("NOTIFY_SOCKET", "@here")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")

    assert load().daemon.state_dir == Path("/var/lib/ckzd")
    assert config.systemd() == config.Systemd("@here", 30.0)
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert config.systemd().watchdog_seconds is None


def test_settings_are_frozen(write):
    settings: Settings = load(write(GOOD))

    with pytest.raises(ValueError, match="frozen"):
        settings.watch[0].keep_raw = 0  # type: ignore[misc]


def test_what_is_kept_is_a_table_of_its_watch_and_of_the_environment(write, monkeypatch):
    monkeypatch.setenv("CKZD_WATCH__0__KEEP__DAYS", "30")
    keep = load(write(GOOD + "[watch.keep]\nnewest = 5\nevery = 1000\nmax_share = 0.5")).watch[0].keep
    assert keep.rules == Rules(newest=5, every=1000, days=30)
    assert keep.quota == Quota(max_share=0.5)
    assert load(write(GOOD)).watch[0].keep.rules == Rules(days=30)
