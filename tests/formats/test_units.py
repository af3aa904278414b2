"""What is one checkpoint: known whole, left alone whole, or one of several files of a step."""

from pathlib import Path

import pytest
from damaged.inputs import make_safetensors, torch_file
from formats.test_directory import make_directory

from ckzd.formats import KINDS, completeness, list_checkpoints, look_into, looks_like_checkpoint
from ckzd.formats import left_alone as left_alone_of
from ckzd.formats.names import labelled_step, shard_number

TORCH = torch_file()
SAFE = make_safetensors({"w": ("F32", (100,), bytes(400))})


def write(place: Path, *names: str) -> None:
    """Files by name; a name that ends with a slash is a directory."""
    for name in names:
        path = place / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = path.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar"}
        path.write_bytes(SAFE if path.suffix == ".safetensors" else TORCH if tensors else b"x")


def seen(root: Path) -> tuple[set[str], dict[str, str]]:
    """Checkpoints and what is left alone, by relative name, below a watched directory, as a daemon sees them."""
    own, left, pending = set(), {}, [root]
    while pending:
        contents = look_into(pending.pop())
        own |= {str(path.relative_to(root)) for path in contents.checkpoints}
        left |= {str(found.path.relative_to(root)): found.kind for found in contents.left_alone}
        pending += contents.folders
    return own, left


WHOLE = {
    "DeepSpeed with experts": (
        ["global_step1/mp_rank_00_model_states.pt", "global_step1/layer_0_expert_0_mp_rank_00_model_states.pt"],
        {"global_step1": "deepspeed"},
    ),
    "DeepSpeed, universal": (
        ["u/mp_rank_00_model_states.pt", "u/zero/w/fp32.pt", "u/zero/w/exp_avg.pt"],
        {"u": "deepspeed"},
    ),
    "DeepSpeed in Lightning": (
        ["x.ckpt/latest", "x.ckpt/checkpoint/mp_rank_00_model_states.pt"],
        {"x.ckpt/checkpoint": "deepspeed"},
    ),
    "Megatron, with more beside it": (
        ["iter_0000001/mp_rank_00/model_optim_rng.pt", "iter_0000001/more.pt"],
        {"iter_0000001": "megatron"},
    ),
    "beside Megatron's tracker": (["latest_checkpointed_iteration.txt", "v5/model.pt"], {"v5": "megatron"}),
    "Accelerate with DeepSpeed's experts": (
        ["checkpoint_0/pytorch_model/expp_rank_0_mp_rank_00_optim_states.pt", "checkpoint_0/random_states_0.pkl"],
        {"checkpoint_0": "deepspeed"},
    ),
    "Accelerate, a run of them in it": (
        ["all/random_states_0.pkl", "all/checkpoint_1/random_states_0.pkl"],
        {"all": "accelerate"},
    ),
    "Accelerate, not done yet": (
        ["checkpoint_3/model.safetensors", "checkpoint_3/optimizer.bin"],
        {"checkpoint_3": "several_files"},
    ),
    "FSDP, a file for the names of each rank": (
        ["s/pytorch_model_fsdp_0/__0.metadata", "s/optimizer_0/__0.metadata", "s/random_states_0.pkl"],
        {"s": "dcp"},
    ),
    "FSDP, a file a rank": (["s/pytorch_model_fsdp_rank0.bin", "s/optimizer_rank0.bin"], {"s": "fsdp"}),
    "DCP, a file for the names of each rank": (["d/__0_0.distcp", "d/__0.metadata"], {"d": "dcp"}),
    "DCP, with a step in it": (["d/__0_0.distcp", "d/.metadata", "d/step-1/"], {"d": "dcp"}),
    "Orbax": (["100/_CHECKPOINT_METADATA", "100/default/manifest.ocdbt", "100/extra.pt"], {"100": "orbax"}),
    "weights in numbered files, an optimizer beside them": (
        ["step-7/model-00001-of-00001.safetensors", "step-7/model.safetensors.index.json", "step-7/optimizer.pt"],
        {"step-7": "several_files"},
    ),
    "by ranks, in directories": (
        ["global_step_10/actor/model_world_size_2_rank_0.pt", "global_step_10/actor/model_world_size_2_rank_1.pt"],
        {"global_step_10": "several_files"},
    ),
    "a directory a step, numbers alone": (["000100/net.pt", "000100/optim.pt"], {"000100": "several_files"}),
    "a directory a time": (
        ["2024-01-31_10-00/net.pt", "2024-01-31_10-00/optim.pt"],
        {"2024-01-31_10-00": "several_files"},
    ),
    "with layers": (
        ["epoch=3/layer_1.pth", "epoch=3/layer_2.pth", "epoch=3/layer_3.pth"],
        {"epoch=3": "several_files"},
    ),
    "deeper": (["run/save_4/model/net.safetensors", "run/save_4/optim/adam.pt"], {"run/save_4": "several_files"}),
    "in a directory a rank": (
        ["run/rank_0/step_1.pt", "run/rank_0/step_2.pt", "run/rank_1/step_1.pt", "run/rank_1/step_2.pt"],
        {"run/rank_0": "shards", "run/rank_1": "shards"},
    ),
    "in a directory a rank, one of which was replaced": (
        ["ckpt/host0/a/net.pt.ckz", "ckpt/host1/a/net.pt"],
        {"ckpt/host0": "shards", "ckpt/host1": "shards"},
    ),
    "of which one part was replaced": (["step_2/net.pt.ckz", "step_2/optim.pt"], {"step_2": "several_files"}),
    "of pickles": (["iter_9/net.pkl", "iter_9/optim.pkl"], {"iter_9": "several_files"}),
}


@pytest.mark.parametrize("layout", WHOLE)
def test_a_checkpoint_of_several_files_is_left_alone_whole(tmp_path, layout):
    files, left = WHOLE[layout]
    write(tmp_path, *files)
    assert seen(tmp_path) == (set(), left)
    for name in files:
        unit = next((unit for unit in left if Path(unit) in Path(name).parents), None)
        if unit:
            found = left_alone_of(tmp_path / name)
            assert (found.path, found.kind) == (tmp_path / unit, left[unit])


DIRECTORIES = {
    "DCP": ["step-7/.metadata", "step-7/__0_0.distcp", "step-7/__1_0.distcp"],
    "DCP, extras beside": ["step-7/.metadata", "step-7/extra.pt", "step-7/more.pt"],
    "DCP, being written": ["step-7/__0_0.distcp", "step-7/meta.pt"],
    "DeepSpeed, ZeRO 1": [
        "step-7/mp_rank_00_model_states.pt",
        *(f"step-7/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(4)),
    ],
    "DeepSpeed, ZeRO 3": [
        *("step-7/zero_pp_rank_0_mp_rank_00_model_states.pt", "step-7/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    ],
    "Accelerate": ["step-7/pytorch_model.bin", "step-7/custom_checkpoint_0.pkl", "step-7/random_states_0.pkl"],
    "Accelerate, safetensors": ["step-7/model.safetensors", "step-7/optimizer.bin", "step-7/random_states_0.pkl"],
    "Megatron's torch_dist": ["step-7/.metadata", "step-7/__0_0.distcp", "step-7/common.pt", "step-7/metadata.json"],
    "Megatron's torch_dist, with its tokenizer": ["step-7/.metadata", "step-7/__0_0.distcp", "step-7/tokenizer/a.json"],
    "Megatron": ["step-7/mp_rank_00/model_optim_rng.pt", "step-7/mp_rank_00/distrib_optim.pt"],
    "Megatron, pipeline parallel": ["step-7/mp_rank_00_000/a.pt", "step-7/mp_rank_01_001/a.pt"],
    "Accelerate with FSDP": [
        *("step-7/pytorch_model_fsdp_0/.metadata", "step-7/optimizer_0/.metadata", "step-7/random_states_0.pkl")
    ],
    "Accelerate with DeepSpeed": [
        *("step-7/pytorch_model/mp_rank_00_model_states.pt", "step-7/random_states_0.pkl", "step-7/latest")
    ],
    "weights alone": [
        *("step-7/model-00001-of-00001.safetensors", "step-7/model.safetensors.index.json", "step-7/config.json"),
        "step-7/sharded/shard-00001-model-00001-of-00001.safetensors",
    ],
    "several of DCP": ["step-7/model/.metadata", "step-7/optimizer/.metadata", "step-7/dataloader.pt"],
}


@pytest.mark.parametrize("layout", DIRECTORIES)
def test_a_directory_that_is_read_is_one_checkpoint(tmp_path, layout):
    write(tmp_path, "latest", "latest_checkpointed_iteration.txt", *DIRECTORIES[layout])
    assert seen(tmp_path) == ({"step-7"}, {})
    assert left_alone_of(tmp_path / "step-7") is None
    assert left_alone_of(tmp_path / DIRECTORIES[layout][0]).path == tmp_path / "step-7"


@pytest.mark.parametrize(
    "files",
    [
        ["step_1/net.pt", "step_1/optim.pt"],
        ["step_1/net.pt", "step_1/optim.pt", "step_1/args.json"],
        ["step_1/model.safetensors", "step_1/optimizer.pt", "step_1/scheduler.pt"],
        ["ckpt.7/net.pt", "ckpt.7/optim.pt"],
        ["checkpoint-7/net.pt", "checkpoint-7/optim.pt"],
        ["CKPT+2024-01-31+10-00-00+00/model.ckpt", "CKPT+2024-01-31+10-00-00+00/optimizer.ckpt"],
        ["ckpt-20/net_20.bin", "ckpt-20/optim_20.bin"],
    ],
)
def test_a_directory_of_a_step_is_one_checkpoint(tmp_path, files):
    write(tmp_path, *files)
    folder = Path(files[0]).parent.name
    assert seen(tmp_path) == ({folder}, {})
    assert completeness(tmp_path / folder) is None
    assert left_alone_of(tmp_path / folder) is None
    assert left_alone_of(tmp_path / files[0]).path == tmp_path / folder


@pytest.mark.parametrize(
    "files",
    [
        ["step_1/net.pt", "step_1/optim.pkl"],
        ["step_1/net.pt", "step_1/optim.pt", "step_1/more/"],
        ["step_1/net_0.pt", "step_1/net_1.pt"],
        ["step_1/net.rank0.pt", "step_1/net.rank1.pt"],
        ["step_1/model-00001-of-00002.safetensors", "step_1/model-00002-of-00002.safetensors"],
        ["step_1/model.pt", "step_1/optimizer.bin"],
    ],
)
def test_what_is_more_than_flat_files_of_a_step_is_left_alone(tmp_path, files):
    write(tmp_path, *files)
    assert seen(tmp_path) == (set(), {"step_1": "several_files"})


FILES = {
    "ranks": [f"model_step{step}_rank{rank}.pth" for step in (1, 2) for rank in range(3)],
    "one rank": ["model_step1_rank0.pth", "model_step2_rank0.pth"],
    "ranks before the step is labelled": ["model_10_rank0.pt", "model_10_rank1.pt"],
    "ranks first": ["rank0.step_5.pt", "rank1.step_5.pt"],
    "numbers only": [f"ckpt_{step}_{rank}.pt" for step in (10, 20) for rank in (0, 1)],
    "a step and a number": ["step10_0.pt", "step10_1.pt"],
    "tensor parallel": ["step_1.tp0.pp0.pt", "step_1.tp1.pp0.pt"],
    "one of four": ["weights_step3-00001-of-00004.safetensors", "weights_step3-00002-of-00004.safetensors"],
    "Llama's": ["consolidated.00.pth", "consolidated.01.pth"],
    "shards": ["shard-1-step-100.pt", "shard-2-step-100.pt"],
    "layers": ["layer_00.pt", "layer_01.pt", "layer_02.pt"],
}


@pytest.mark.parametrize("kind", FILES)
def test_what_several_processes_write_of_one_step_is_left_alone(tmp_path, kind):
    write(tmp_path, *FILES[kind])
    assert seen(tmp_path) == (set(), dict.fromkeys(FILES[kind], "shards"))
    assert left_alone_of(tmp_path / FILES[kind][0]).kind == "shards"


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["model_5.pt", "optimizer_5.bin", "optimizer.bin"], ["model_5.pt"]),
        (["model.safetensors", "model_5.safetensors", "ema_5.pt"], ["model_5.safetensors", "ema_5.pt"]),
        (["net.pt", "optimizer.pt"], ["net.pt"]),
        (["ema.pt", "model.safetensors"], ["ema.pt"]),
        (["net_5.pt", "optim_5.pkl"], ["net_5.pt", "optim_5.pkl"]),
        (["w_5.pt", "w_5_rank0.pt", "w_5_rank1.pt"], ["w_5_rank0.pt", "w_5_rank1.pt"]),
    ],
)
def test_what_has_a_part_that_is_left_alone_is_left_alone(tmp_path, names, parts):
    write(tmp_path, *names, "net_100.pt")
    own, left = seen(tmp_path)
    assert "net_100.pt" in own
    assert set(parts) <= left.keys()


@pytest.mark.parametrize(
    "names",
    [
        ["G_200.pth", "D_200.pth", "G_400.pth", "D_400.pth"],
        ["weights_1.pt", "optim_1.pt"],
        ["model_7.pt", "optimizer_7.pt"],
        ["model_7.safetensors", "optimizer_7.pt"],
        ["pytorch_model_7.bin", "optimizer_7.bin"],
        ["epoch=9-step=1234.ckpt", "epoch=9-step=1234-v1.ckpt"],
        ["step_1.pt", "step_2.pt", "best.pt"],
        ["lora_rank16_step1.pt", "lora_rank16_step2.pt"],
        ["rank_8/step_1.pt", "rank_16/step_1.pt"],
        ["rank_0/a.pt", "rank_1/b.pt"],
        ["resnet50_0.pth", "resnet50_1.pth"],
        ["epoch_1_100.pt", "epoch_2_200.pt"],
        ["epoch=1-loss=0.25.ckpt", "epoch=1-loss=0.31.ckpt"],
        ["run1/step_1.pt", "run1/step_2.pt"],
        ["2024-01-31_10-00/model_50.pt", "2024-01-31_10-00/model_100.pt"],
        ["3/net_1.pt", "3/optim_1.pt"],
        ["epoch_3/step_100.pt", "epoch_3/step_200.pt"],
        ["iter2/checkpoints/step_1.pt", "iter2/checkpoints/step_3.pt"],
        ["version_0/checkpoints/epoch=1-step=10.ckpt", "version_0/checkpoints/epoch=2-step=20.ckpt"],
        ["step_10/net.pt", "step_20/net.pt"],
        ["net.pt", "optim.pt"],
        ["fold0_step_10.pt", "fold1_step_10.pt"],
        ["seed_1_100.pt", "seed_2_100.pt"],
    ],
)
def test_checkpoints_of_their_own(tmp_path, names):
    write(tmp_path, *names)
    assert seen(tmp_path) == (set(names), {})
    assert left_alone_of(tmp_path / names[0]) is None
    assert looks_like_checkpoint(tmp_path / names[0])


def test_trainer_directories_hold_what_they_know(tmp_path):
    make_directory(tmp_path / "checkpoint-10", 10)
    make_directory(tmp_path / "checkpoint-20", 20)
    write(tmp_path, "checkpoint-20/global_step20/expp_rank_0_mp_rank_00_optim_states.pt", "checkpoint-20/latest")
    write(tmp_path, "checkpoint-40/model.safetensors", "checkpoint-40/random_states_0.pkl")
    make_directory(tmp_path / "checkpoint-30", 30)
    write(tmp_path, "checkpoint-30/pytorch_model_fsdp_0/__0.metadata")
    write(tmp_path, "checkpoint-50/global_step50/mp_rank_00_model_states.pt", "checkpoint-50/an_adapter/model.bin")
    assert seen(tmp_path) == (
        {"checkpoint-10", "checkpoint-40", "checkpoint-50"},
        {"checkpoint-20": "deepspeed", "checkpoint-30": "dcp"},
    )
    assert left_alone_of(tmp_path / "checkpoint-10") is None
    assert left_alone_of(tmp_path / "checkpoint-10" / "optimizer.pt").kind == "hugging_face"
    assert left_alone_of(tmp_path / "checkpoint-20").kind == "deepspeed"


def test_a_trainer_s_state_beside_checkpoints_makes_no_checkpoint_of_their_run(tmp_path):
    write(tmp_path, "run/trainer_state.json", "run/step_1.pt", "run/step_2.pt")
    assert seen(tmp_path) == ({"run/step_1.pt", "run/step_2.pt"}, {})
    make_directory(tmp_path / "exported", 10)
    assert seen(tmp_path)[0] >= {"exported"}


def test_files_of_other_formats_are_named(tmp_path):
    write(tmp_path, "a.keras", "b.h5", "code.tar.gz", "m.data-00000-of-00001", "train.log", "config.json")
    (tmp_path / "old_3.pth").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.rest")
    write(tmp_path, "step_4.pt", "checkpoint-9.pth.tar")
    own, left = seen(tmp_path)
    assert own == {"old_3.pth", "step_4.pt", "checkpoint-9.pth.tar"}
    assert left == {
        "a.keras": "keras", "b.h5": "keras", "code.tar.gz": "tarball", "m.data-00000-of-00001": "tensorflow",
    }  # fmt: skip
    assert set(left.values()) <= KINDS.keys()


def test_odd_names_and_what_is_not_there(tmp_path):
    (tmp_path / "link_1.pt").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    write(tmp_path, ".step_1.pt", "tmp.pth")
    assert seen(tmp_path) == (set(), {})
    assert seen(tmp_path / "gone") == (set(), {})
    assert left_alone_of(tmp_path / "gone" / "x.pt") is None
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "step", "shard"),
    [
        ("global_step100", 100, None),
        ("checkpoint_3", 3, None),
        ("run1", None, None),
        ("exp2", None, None),
        ("steps-5", 5, None),
        ("version_0", None, None),
        ("model_step2_rank_3.pt", 2, 3),
        ("a-00001-of-00004.bin", None, 0),
        ("low_frank3.pt", None, None),
    ],
)
def test_labels_in_names(name, step, shard):
    assert (labelled_step(name), shard_number(name)) == (step, shard)
