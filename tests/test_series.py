"""Series: what follows each other in one directory, which of it stays at hand, and how deep chains get."""

from pathlib import Path

import pytest
from making import made_manifest, put, put_chain, sha256

from ckzd.chains import ArchiveRecord
from ckzd.formats.names import series_in_name
from ckzd.series import LIVE_ARCHIVES, by_series, next_references, split, within_depth


def record(name: str, step: int | None, reference: ArchiveRecord | None = None, mtime_ns: int = 0) -> ArchiveRecord:
    """In memory: a base, or a delta."""
    before = reference.manifest if reference else None
    fields = {
        "name": name,
        "step": step,
        "reconstruction": sha256(f"{name} {step}".encode()),
        "reference": before.reconstruction if before else None,
        "depth": before.depth + 1 if before else 0,
    }
    made = made_manifest(**fields)
    files = [file.model_copy(update={"mtime_ns": mtime_ns}) for file in made.files]
    return ArchiveRecord(Path(f"/{name}.{step}"), made_manifest(files, **fields))


class TestNames:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("G_100.pth", "G_200.pth"),
            ("epoch=3-val_loss=2.31-step=400.ckpt", "epoch=12-val_loss=1.9-step=1600.ckpt"),
            ("epoch=3.ckpt", "epoch=3-v1.ckpt"),
            ("checkpoint-100", "checkpoint-2000"),
            ("step_10_rank_3.pt", "step_20_rank_3.pt"),
            ("model.pth.tar", "model.pth.tar"),
            ("agent_100.pt", "agent_200.pt"),
            ("fold0_step_10.pt", "fold0_step_20.pt"),
        ],
    )
    def test_what_differs_in_numbers_alone_is_one_series(self, one, other):
        assert series_in_name(one) == series_in_name(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("G_100.pth", "D_100.pth"),
            ("weights_100.pt", "optim_100.pt"),
            ("step_100.pt", "step_100-EMA.pt"),
            ("step_100.pt", "step_100.safetensors"),
            ("step_10_rank_0.pt", "step_20_rank_1.pt"),
            ("best.pt", "last.pt"),
            ("fold0_step_10.pt", "fold1_step_20.pt"),
            ("seed_1_100.pt", "seed_2_200.pt"),
        ],
    )
    def test_what_differs_otherwise_is_another(self, one, other):
        assert series_in_name(one) != series_in_name(other)

    @pytest.mark.parametrize(
        "names", ["net_{model}_{step}.pt", "model{model}_step{step}.ckpt", "{model}-epoch={step}.pt"]
    )
    def test_numbers_in_which_names_of_one_step_differ_are_of_models(self, names):
        pairs = [(model, step) for model in (0, 1, 2) for step in (100, 200)]
        records = [record(names.format(model=model, step=step), step) for model, step in pairs]
        assert sorted(map(len, by_series(records).values())) == [2, 2, 2]
        own, others = split(records, names.format(model=1, step=300), 300)
        assert [found.manifest.name for found in own] == [names.format(model=1, step=step) for step in (100, 200)]
        assert len(others) == 2

    @pytest.mark.parametrize(
        "names",
        [
            ["epoch_1_100.pt", "epoch_1_200.pt", "epoch_2_100.pt"],
            ["run_1_100.pt", "run_2_200.pt", "run_3_300.pt"],
            ["m_2024-01-31_10-00.pt", "m_2024-01-31_11-00.pt", "m_2024-02-01_10-00.pt"],
            ["20240131T1000.pt", "20240131T1100.pt", "20240201T1000.pt"],
            ["step_10-loss=0.25.pt", "step_10-loss=0.26.pt", "step_20-loss=0.2.pt"],
        ],
    )
    def test_other_numbers_are_of_none(self, names):
        records = [record(name, step) for step, name in enumerate(names)]
        assert list(map(len, by_series(records).values())) == [3]

    def test_under_a_name_that_is_written_again_the_number_is_no_step(self):
        """Several agents, each saved over its last one, with its step inside."""
        agents = [record(f"agent_{number}.pt", step) for step in (100, 200) for number in (0, 1)]
        assert sorted(map(len, by_series(agents).values())) == [2, 2]
        steps = [record(f"step_{step}.pt", step) for step in (100, 200, 200, 300)]
        assert list(map(len, by_series(steps).values())) == [4]


class TestNextReferences:
    def test_the_next_checkpoints_are_deltas_against_the_newest_that_are_not_ruined(self, run, store):
        archives = put_chain(store, run, 3)
        put(store, run, 300, "step_200.pt", quality={"ruined": 1.0})
        assert next_references(store.archives(run), 1) == {archives[2]}
        assert next_references(store.archives(run), 2) == set(archives[1:])
        assert next_references(store.archives(run), 9) == set(archives)

    def test_each_series_keeps_its_own(self):
        records = [record(f"{name}_{step}.pt", step) for step in (1, 2, 3) for name in "GD"]
        assert next_references(records, 1) == {records[-2].path, records[-1].path}
        assert next_references(records, 2) == {each.path for each in records[-4:]}

    def test_one_that_has_ended_keeps_nothing(self):
        ended = [record(f"old_{step}.pt", step, mtime_ns=step) for step in (1, 2)]
        going_on = [record(f"new_{step}.pt", step, mtime_ns=step) for step in range(3, LIVE_ARCHIVES + 2)]
        assert ended[-1].path in next_references(ended + going_on, 1)
        going_on.append(record("new_99.pt", 99, mtime_ns=99))
        assert next_references(ended + going_on, 1) == {going_on[-1].path}

    def test_where_each_checkpoint_has_a_name_of_its_own_the_newest_alone_stays(self):
        records = [record("alpha.pt", 1)]
        for step, name in enumerate(["beta", "gamma", "delta"], 2):
            records.append(record(f"{name}.pt", step, records[-1]))
        assert next_references(records, 1) == {records[-1].path}


class TestDepth:
    """Of records in memory: each archive is a delta against what `within_depth` names, or a base."""

    def grown(self, count: int, max_depth: int, *, pruned: int = 0) -> list[ArchiveRecord]:
        """A run of so many; of every so many one that nothing needs is deleted, if it is pruned."""
        records, made = [], []
        for number in range(count):
            found = within_depth(records[-1], records, max_depth) if records else None
            reference, depth = (found.manifest.reconstruction, found.manifest.depth + 1) if found else (None, 0)
            manifest = made_manifest(reconstruction=sha256(str(number).encode()), reference=reference, depth=depth)
            made.append(ArchiveRecord(Path(f"/{number}"), manifest))
            records.append(made[-1])
            if pruned and number % pruned == pruned - 1:
                needed = {record.manifest.reference for record in records}
                free = [r for r in records[:-1] if r.manifest.reconstruction not in needed]
                records.remove(free[0]) if free else None
        return made

    @pytest.mark.parametrize("max_depth", [1, 2, 5, 20, 32])
    def test_no_chain_is_deeper_and_a_base_carries_half_the_square(self, max_depth):
        many = (max_depth + 1) * (max_depth + 2) // 2
        made = self.grown(2 * many + 1, max_depth)
        assert max(record.manifest.depth for record in made) == max_depth
        bases = [number for number, record in enumerate(made) if record.manifest.reference is None]
        assert bases == [0, many, 2 * many]

    def test_until_it_is_deep_a_chain_only_grows(self):
        assert [record.manifest.depth for record in self.grown(9, 8)] == list(range(9))

    def test_then_a_branch_begins_where_the_one_before_did(self):
        made = self.grown(12, 4)
        assert [record.manifest.depth for record in made] == [0, 1, 2, 3, 4, 1, 2, 3, 4, 2, 3, 4]
        number = {record.manifest.reconstruction: each for each, record in enumerate(made)}
        assert [number[made[each].manifest.reference] for each in (5, 9)] == [0, 5]

    @pytest.mark.parametrize("pruned", [1, 2, 7])
    def test_it_holds_whatever_was_deleted_of_what_nothing_needs(self, pruned):
        assert max(record.manifest.depth for record in self.grown(300, 12, pruned=pruned)) == 12

    def test_a_chain_that_is_deeper_already_is_left_at_once(self):
        made = self.grown(40, 39)
        assert within_depth(made[-1], made, 10) is made[0]

    def test_what_hangs_on_another_series_begins_a_branch_of_its_own(self):
        """And those that hang on a chain from outside begin none in it."""
        own = [record("model_0.pt", 0)]
        for step in (1, 2, 3):
            own.append(record(f"model_{step}.pt", step, own[-1]))
        beside = [record(f"last_{step}.pt", step, other) for step, other in enumerate(own)]
        other = [record("ema_1.pt", 1, own[1])]
        other.append(record("ema_2.pt", 2, other[-1]))
        records = own + beside + other
        assert within_depth(own[3], records, 4) is own[3]
        assert within_depth(own[3], records, 3) is own[0]
        assert within_depth(other[1], records, 3) is other[0]
        assert within_depth(other[0], records, 2) is None
