import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from grm.errors import CheckpointError, OutputError
from grm.models.checkpoint import SCHEMA, copy_side_file, load_weights, locate, read_config, save_checkpoint


def network(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


@pytest.fixture
def folder(tmp_path) -> Path:
    save_checkpoint(tmp_path / "model", network(), {"kind": "toy", "width": 3})
    return tmp_path / "model"


def change(folder: Path, edit) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    edit(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def test_round_trip(folder):
    assert read_config(folder, "toy") == {"width": 3}
    loaded = network(seed=1)
    load_weights(folder, loaded)
    for name, tensor in network().state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((folder / "config.json").read_text())["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda w: w.pop("0.bias"), r"missing \['0.bias'\], surplus \[\], of another shape \[\] \(1, 0, 0 in all\)"),
        (lambda w: w.update(extra=torch.zeros(1)), r"surplus \['extra'\]"),
        (lambda w: w.update({"1.weight": torch.zeros(2, 3)}), r"of another shape \['1.weight'\]"),
        (lambda w: w["0.weight"].fill_(float("nan")), "not finite"),
        (lambda w: w["1.bias"].fill_(float("inf")), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_none_is_loaded(folder, edit, found):
    change(folder, edit)
    target = network(seed=1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=found) as caught:
        load_weights(folder, target)
    assert str(folder) in str(caught.value)
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("length", [0, 4, 60, -4])
def test_weights_cut_short(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"cannot be read.*copy it again"):
        load_weights(folder, network())


def test_weights_of_another_width_or_none_at_all(folder):
    with pytest.raises(CheckpointError, match=r"\(0, 0, 3\) in all|\(0, 0, 3 in all\)"):
        load_weights(folder, network(width=5))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_weights(folder, network())


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"kind": "other", "schema": SCHEMA}, "kind 'other' and schema 1; expected 'toy' and 1"),
        ({"kind": "toy", "schema": SCHEMA + 1}, f"schema {SCHEMA + 1}.*train again, or use the version"),
        ({"kind": "toy"}, "schema None"),
        ({}, "kind None"),
        ([1, 2], "JSON list"),
    ],
)
def test_configurations_of_something_else(folder, config, found):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=found):
        read_config(folder, "toy")


@pytest.mark.parametrize("content", [b"", b'{"kind": "toy"', b"\xff\xfe\x00"])
def test_configurations_that_are_no_json(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_config(folder, "toy")


def test_no_configuration(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json.*grm train"):
        read_config(tmp_path, "toy")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), safetensors.SafetensorError("No space left")]
)
def test_the_old_checkpoint_survives_a_save_that_fails(folder, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half_written(tensors, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", half_written)
    with pytest.raises(OutputError, match=r"cannot be written.*No space left"):
        save_checkpoint(folder, network(seed=1), {"kind": "toy", "width": 9})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_configuration_that_cannot_be_written_leaves_the_old_weights(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        save_checkpoint(folder, network(seed=1), {"kind": object()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_checkpoint(folder, network(), {"kind": "toy"})
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_need_not_be_contiguous(tmp_path):
    one = nn.Linear(3, 2)
    one.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2).T)
    save_checkpoint(tmp_path, one, {"kind": "toy"})
    other = nn.Linear(3, 2)
    load_weights(tmp_path, other)
    torch.testing.assert_close(other.weight, one.weight, rtol=0, atol=0)


def test_where_a_checkpoint_is(folder, tmp_path):
    assert locate("", folder) == folder
    assert locate(str(folder), tmp_path) == folder
    assert locate(folder, tmp_path) == folder
    with pytest.raises(CheckpointError, match=r"neither a folder here nor a model the Hub would give"):
        locate("nobody-here/no-such-model", folder)
    for source in (tmp_path / "nowhere", "nowhere", "./a/b", "~/a"):
        with pytest.raises(CheckpointError, match=r"no checkpoint folder at .*grm train"):
            locate(source, folder)


def test_side_files_come_along(folder, tmp_path):
    (folder / "replay.npz").write_bytes(b"frames")
    copy_side_file(folder, tmp_path, "replay.npz")
    copy_side_file(folder, folder, "replay.npz")
    copy_side_file(folder, tmp_path, "missing.npz")
    assert (tmp_path / "replay.npz").read_bytes() == b"frames"
    assert not (tmp_path / "missing.npz").exists()
