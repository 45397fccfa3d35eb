"""Checkpoints: whole or not at all, found by what a user names, refused when they are another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from speechssl.errors import UserError
from speechssl.training import checkpoint
from speechssl.training.checkpoint import (
    first_difference,
    link,
    load_checkpoint,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    remove_old,
    resolve,
    save_checkpoint,
)


def save(folder, step, value=0.0):
    return save_checkpoint(
        folder,
        step=step,
        config={"format": "speechssl", "version": 1, "step": step},
        model={"encoder.weight": torch.full((2, 3), value), "objective.bias": torch.ones(2)},
        optimizer={"step/encoder.weight": torch.tensor(float(step))},
        trainer={"step": step},
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    folder = save(tmp_path / "run" / "checkpoints", 7, 0.25)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    ]
    found = load_checkpoint(tmp_path / "run")
    assert found.folder.resolve() == folder
    assert found.config["step"] == 7
    assert torch.equal(found.part("encoder")["weight"], torch.full((2, 3), 0.25))
    assert found.part("objective").keys() == {"bias"}


def test_links_are_relative_so_that_a_run_can_be_moved(tmp_path):
    save(tmp_path / "run" / "checkpoints", 1)
    link(tmp_path / "run" / "checkpoints" / "best", "step_1")
    for name in ("last", "best"):
        assert (tmp_path / "run" / "checkpoints" / name).readlink() == Path("step_1")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_checkpoint(tmp_path / "moved" / "checkpoints" / "best").config["step"] == 1


@pytest.mark.parametrize(
    "crash", ["save_file", "write_json", "_sync", "link", pytest.param((Path, "rename"), id="rename")]
)
@pytest.mark.parametrize("call", [1, 2])
def test_a_crash_at_any_point_leaves_last_loadable(tmp_path, monkeypatch, crash, call):
    """Every step of a save in turn fails; the same save then succeeds on what was left behind."""
    save(tmp_path, 1, 1.0)
    owner, name = crash if isinstance(crash, tuple) else (checkpoint, crash)
    real, calls = getattr(owner, name), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise OSError("no power")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        if call == 1 or name not in ("link", "rename"):  # which happen once a save
            with pytest.raises(OSError, match="no power"):
                save(tmp_path, 2, 2.0)
            found = load_checkpoint(tmp_path / "last")
            assert found.part("encoder")["weight"].unique().item() == found.config["step"]
    save(tmp_path, 2, 2.0)
    assert load_checkpoint(tmp_path / "last").part("encoder")["weight"].unique().item() == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step_1", "step_2"]


def test_a_run_a_checkpoint_or_best_can_be_named(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    save(checkpoints, 1)
    assert resolve(tmp_path / "run", prefer="best") == checkpoints / "last"
    link(checkpoints / "best", "step_1")
    save(checkpoints, 2)
    assert resolve(tmp_path / "run", prefer="best").resolve() == checkpoints / "step_1"
    assert resolve(tmp_path / "run").resolve() == checkpoints / "step_2"
    assert resolve(checkpoints / "step_1") == checkpoints / "step_1"
    with pytest.raises(UserError, match=r"gone"):
        resolve(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds no checkpoint"):
        resolve(tmp_path)


def test_old_checkpoints_go_but_not_those_that_are_linked(tmp_path):
    for step in (1, 2, 10, 9, 11):
        save(tmp_path, step)
    link(tmp_path / "best", "step_2")
    (tmp_path / "notes").mkdir()
    remove_old(tmp_path, keep_last=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step_2", "step_10", "step_11", "last", "best", "notes"}


def test_damaged_and_foreign_checkpoints_are_one_sentence(tmp_path):
    folder = save(tmp_path, 1)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_checkpoint(folder)
    config = folder / "config.json"
    config.write_text(json.dumps({"format": "speechssl", "version": 99}))
    with pytest.raises(UserError, match=r"version 99.*update"):
        load_checkpoint(folder)
    config.write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_checkpoint(folder)
    config.write_text("[]")
    with pytest.raises(UserError, match=r"config\.json does not hold a JSON object"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"weight": torch.ones(2, 3)}, "lacks tensor bias; it belongs to another model"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, "has an unknown tensor more"),
        (
            {"weight": torch.ones(3, 3), "bias": torch.ones(2)},
            r"holds weight with shape \[3, 3\], the model wants \[2, 3\]",
        ),
    ],
)
def test_tensors_of_another_model_are_named(tmp_path, tensors, reason):
    with pytest.raises(UserError, match=reason):
        load_tensors(nn.Linear(3, 2), tensors, tmp_path)


def test_the_first_difference_is_said_with_its_whole_key():
    ours = {"encoder": {"size": 16, "norm": "group"}, "rate": 16_000}
    assert first_difference(ours, {"encoder": {"size": 16, "norm": "group"}, "rate": 16_000}) is None
    theirs = {"encoder": {"size": 32, "norm": "group"}, "rate": 16_000}
    assert first_difference(ours, theirs) == "encoder.size is 16 here and 32 there"
    assert first_difference(ours, {"encoder": ours["encoder"]}) == "rate is 16000 here and None there"


def test_an_optimizer_goes_on_as_if_it_had_not_been_saved():
    def train(module, optimizer, steps):
        for step in steps:
            module(torch.full((1, 3), 0.1 * step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def build():
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    whole, optimizer = build()
    train(whole, optimizer, range(1, 7))

    first, optimizer = build()
    train(first, optimizer, range(1, 4))
    tensors = optimizer_tensors(optimizer, {id(p): name for name, p in first.named_parameters()})
    second, optimizer = build()
    second.load_state_dict(first.state_dict())
    load_optimizer(optimizer, dict(second.named_parameters()), tensors)
    train(second, optimizer, range(4, 7))
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)
