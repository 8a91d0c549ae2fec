import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="the extra `lerobot` is not installed")

from lerobot.datasets import LeRobotDataset
from lerobot.rewards import make_reward_model, make_reward_model_config, make_reward_pre_post_processors
from lerobot.rewards.sarm.rabc import RABCWeights
from torch.utils.data import DataLoader

from grm.cli import main as grm_main
from grm.data.lerobot import EpisodeWriter
from grm.errors import TraceError
from grm.models.multiview import GRM
from robot_io.reward_model import GRMConfig, GRMRewardModel

from ..tiny import TINY, square, tiny_grm

LENGTH = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four demonstrations of two cameras. Read-only."""
    root = tmp_path_factory.mktemp("reward") / "set"
    EpisodeWriter(root).append(*(square(k, views=("top", "side"), length=LENGTH) for k in range(4)))
    return root


def config(**changes) -> GRMConfig:
    return make_reward_model_config("grm", device="cpu", architecture=TINY, step_back=2, **changes)


def batch_of(root: Path, config: GRMConfig, size: int = 16) -> tuple[dict, LeRobotDataset]:
    """As lerobot-train draws it: each frame with three more of its episode."""
    fps = 10
    deltas = [index / fps for index in config.observation_delta_indices]
    cameras = ("observation.images.top", "observation.images.side")
    dataset = LeRobotDataset(
        "local/set", root=root, video_backend="pyav", delta_timestamps=dict.fromkeys(cameras, deltas)
    )
    loader = DataLoader(dataset, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(0))
    pre, _ = make_reward_pre_post_processors(config)
    batch = next(iter(loader))
    batch.pop("progress", None)
    return pre(batch), dataset


def test_lerobot_finds_it_by_name_and_trains_it(root):
    asked = config(learning_rate=3e-3, goal_dropout=0.0)
    batch, dataset = batch_of(root, asked, size=40)
    torch.manual_seed(0)
    model = make_reward_model(asked, dataset_meta=dataset.meta)
    assert isinstance(model, GRMRewardModel)
    assert model.is_trainable
    optimizer = asked.get_optimizer_preset().build(model.get_optim_params())
    model.train()
    losses = []
    for _ in range(60):
        loss, parts = model(batch)
        assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    model.eval()
    reward, truth = model.compute_reward(batch), model._labels(batch)[0]
    assert reward.shape == (40,)
    assert ((reward >= 0) & (reward <= 1)).all()
    assert np.corrcoef(reward, truth)[0, 1] > 0.8


def test_labels_are_time_or_the_column_of_that_name(root):
    asked = config()
    batch, dataset = batch_of(root, asked)
    model = GRMRewardModel(asked, dataset_meta=dataset.meta)
    now, before = model._labels(batch)
    frame = batch["index"].numpy() % LENGTH
    np.testing.assert_allclose(now, frame / (LENGTH - 1))
    np.testing.assert_allclose(before, np.maximum(frame - 2, 0) / (LENGTH - 1))
    pre, _ = make_reward_pre_post_processors(asked)
    labelled = pre(dict(batch) | {"progress": torch.linspace(0, 1, 16)})
    np.testing.assert_allclose(model._labels(labelled)[0], np.linspace(0, 1, 16), atol=1e-6)
    assert np.isnan(model._labels(labelled)[1]).all()
    with pytest.raises(TraceError, match=r"expected \[0, 1\]"):
        model._labels(dict(batch) | {"progress": torch.full((16,), 3.0)})
    with pytest.raises(TraceError, match="dataset_meta"):
        GRMRewardModel(asked)._labels(batch)


def test_a_goal_is_another_episodes_end(root):
    asked = config(goal_dropout=0.0)
    batch, dataset = batch_of(root, asked)
    model = GRMRewardModel(asked, dataset_meta=dataset.meta)
    episode = batch["episode_index"].numpy()
    for _ in range(10):
        donors = model._donors(batch)
        assert (donors >= 0).all()
        assert (episode[donors] != episode).all()
    alone = dict(batch) | {"episode_index": torch.zeros(16, dtype=torch.long)}
    assert (model._donors(alone) == -1).all()
    others = dict(batch) | {"task": [f"task {k}" for k in range(16)]}
    assert (model._donors(others) == -1).all()


def test_images_that_are_no_window_are_refused(root):
    batch, dataset = batch_of(root, config())
    model = GRMRewardModel(config(), dataset_meta=dataset.meta)
    single = dict(batch) | {"observation.images.top": batch["observation.images.top"][:, 2]}
    with pytest.raises(TraceError, match="'top': \\(16, 3, 32, 32\\)"):
        model.compute_reward(single)
    with pytest.raises(TraceError, match="are none"):
        model.compute_reward({"task": ["x"]})


def test_what_is_saved_is_loaded_and_judges_episodes(tmp_path, root):
    asked = config()
    batch, dataset = batch_of(root, asked)
    torch.manual_seed(1)
    model = make_reward_model(asked, dataset_meta=dataset.meta).eval()
    model.save_pretrained(tmp_path / "lerobot")
    again = make_reward_model(dataclasses.replace(asked, pretrained_path=str(tmp_path / "lerobot")))
    torch.testing.assert_close(again.compute_reward(batch), model.compute_reward(batch))
    model.grm.save_pretrained(tmp_path / "grm")
    frames, task = square(7).frames, square(7).as_goal()
    np.testing.assert_allclose(
        GRM.from_pretrained(tmp_path / "grm").judge(task, frames).potential, model.grm.judge(task, frames).potential
    )
    tiny_grm(3).save_pretrained(tmp_path / "from")
    begun = make_reward_model_config("grm", device="cpu", checkpoint=str(tmp_path / "from"))
    assert GRMRewardModel(begun).network.architecture == TINY
    assert begun.architecture == TINY, "so that a saved config says it"


def test_lerobot_weights_samples_by_the_table_that_inspect_writes(tmp_path, root):
    tiny_grm(11).save_pretrained(tmp_path / "tiny")
    grm_main(["inspect", str(root), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "tiny"), "--every", "1"])
    weights = RABCWeights(tmp_path / "out" / "grm_progress.parquet", chunk_size=3)
    found, _ = weights.compute_batch_weights({"index": torch.arange(4 * LENGTH)})
    assert found.shape == (4 * LENGTH,)
    assert torch.isfinite(found).all()
    assert found.std() > 0


@pytest.mark.slow
def test_lerobot_train_trains_checkpoints_and_resumes_it(tmp_path, root):
    tiny_grm(3).save_pretrained(tmp_path / "from")
    train = Path(sys.executable).with_name("lerobot-train")
    out = tmp_path / "run"
    command = [
        str(train),
        "--reward_model.type=grm",
        f"--reward_model.checkpoint={tmp_path / 'from'}",
        "--reward_model.device=cpu",
        "--dataset.repo_id=local/set",
        f"--dataset.root={root}",
        "--dataset.video_backend=pyav",
        "--dataset.use_imagenet_stats=false",
        f"--output_dir={out}",
        "--steps=4",
        "--save_freq=2",
        "--batch_size=8",
        "--num_workers=0",
        "--env_eval_freq=0",
        "--wandb.enable=false",
    ]
    subprocess.run(command, check=True, env=offline(tmp_path), timeout=600)
    last = out / "checkpoints" / "000004" / "pretrained_model"
    assert (last / "model.safetensors").exists()
    resume = [str(train), f"--config_path={last / 'train_config.json'}", "--resume=true", "--steps=6"]
    subprocess.run(resume, check=True, env=offline(tmp_path), timeout=600)
    assert (out / "checkpoints" / "000006" / "pretrained_model" / "model.safetensors").exists()


@pytest.mark.slow
def test_lerobot_train_weights_a_policy_by_what_inspect_wrote(tmp_path, root):
    tiny_grm(3).save_pretrained(tmp_path / "from")
    grm_main(["inspect", str(root), "--out", str(tmp_path / "page"), "--every", "1", "--model", str(tmp_path / "from")])
    out = tmp_path / "run"
    command = [
        str(Path(sys.executable).with_name("lerobot-train")),
        "--policy.discover_packages_path=linear_policy",
        "--policy.type=linear",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--sample_weighting.type=rabc",
        f"--sample_weighting.progress_path={tmp_path / 'page' / 'grm_progress.parquet'}",
        "--dataset.repo_id=local/set",
        f"--dataset.root={root}",
        "--dataset.video_backend=pyav",
        "--dataset.use_imagenet_stats=false",
        f"--output_dir={out}",
        "--steps=20",
        "--save_freq=20",
        "--log_freq=5",
        "--batch_size=8",
        "--num_workers=0",
        "--env_eval_freq=0",
        "--wandb.enable=false",
    ]
    path = {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(
        command, check=True, env=offline(tmp_path) | path, timeout=600, capture_output=True, text=True
    )
    assert f"Loaded {4 * LENGTH} frame progress values" in done.stdout + done.stderr
    assert (out / "checkpoints" / "000020" / "pretrained_model" / "model.safetensors").exists()


def offline(home: Path) -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_LEROBOT_HOME": str(home / "home")}
