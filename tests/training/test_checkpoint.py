"""Checkpoints: whole or not at all, found by what a user names, refused when they are another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from speechssl.errors import UserError
from speechssl.training import files
from speechssl.training.checkpoint import (
    adopt,
    first_difference,
    first_not_finite,
    load_checkpoint,
    load_optimizer,
    load_tensors,
    newest_whole,
    optimizer_tensors,
    remove_old,
    resolve,
    save_checkpoint,
)
from speechssl.training.files import link


def save(folder, step, value=0.0, best_name=None):
    return save_checkpoint(
        folder,
        step=step,
        config={
            "format": "speechssl",
            "version": 1,
            "sample_rate": 16_000,
            "normalize": False,
            "encoder": {},
            "objective": {"name": "none"},
            "step": step,
        },
        model={"encoder.weight": torch.full((2, 3), value), "objective.bias": torch.ones(2)},
        optimizer={"step/encoder.weight": torch.tensor(float(step))},
        trainer={"step": step, "best_name": best_name},
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    folder = save(tmp_path / "run" / "checkpoints", 7, 0.25)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checksums.json",
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


OPERATIONS = ("write_text", "write_tensors", "sync", "rename", "symlink")


def fail_at(patch, number):
    """Let the operation of that number fail, of all that write; the list that is returned has their names."""
    done = []

    def failing(name, real):
        def operation(*args, **kwargs):
            done.append(name)
            if len(done) == number:
                raise OSError("no power")
            return real(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        patch.setattr(files, name, failing(name, getattr(files, name)))
    return done


def test_a_crash_at_any_operation_leaves_last_loadable(tmp_path, monkeypatch):
    """Each operation of a save in turn fails; the same save then succeeds on what was left behind."""
    with monkeypatch.context() as patch:
        done = fail_at(patch, 0)
        save(tmp_path / "counted", 3)
        total = len(done)
    assert total >= 15  # 5 files written and synced, folders synced, renamed, linked
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        save(folder, 1, 1.0)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no power"):
            fail_at(patch, number)
            save(folder, 2, 2.0)
        found = load_checkpoint(folder / "last")
        assert found.part("encoder")["weight"].unique().item() == found.config["step"]
        save(folder, 2, 2.0)
        assert load_checkpoint(folder / "last").part("encoder")["weight"].unique().item() == 2.0
        assert sorted(path.name for path in folder.iterdir()) == ["last", "step_1", "step_2"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, name, damage):
    for step in (1, 2):
        save(tmp_path, step, best_name="step_1")
    link(tmp_path / "best", "step_2")
    path = tmp_path / "step_2" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-3])
    found, damaged = newest_whole(tmp_path)
    assert (found, damaged) == (tmp_path / "step_1", [tmp_path / "step_2"])
    assert f"step_2/{name} is {'missing' if damage == 'gone' else 'damaged'}" in caplog.text
    assert "going on from" in caplog.text
    with pytest.raises(UserError, match=r"(is (damaged|missing).*use another|holds no) checkpoint"):
        load_checkpoint(tmp_path / "last")
    adopt(tmp_path, found, damaged)
    assert load_checkpoint(tmp_path / "last").config["step"] == 1
    assert load_checkpoint(tmp_path / "best").config["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "damaged_step_2", "last", "step_1"]


def test_best_is_again_what_it_was_at_the_checkpoint_that_a_run_goes_on_from(tmp_path):
    save(tmp_path, 1)
    link(tmp_path / "best", "step_1")
    adopt(tmp_path, tmp_path / "step_1", [])
    assert not (tmp_path / "best").is_symlink()
    save(tmp_path, 2, best_name="step_2")  # and a kill before `best` was moved
    adopt(tmp_path, tmp_path / "step_2", [])
    assert (tmp_path / "best").readlink() == Path("step_2")
    save(tmp_path, 3, best_name="step_1")
    files.remove(tmp_path / "step_1")
    adopt(tmp_path, tmp_path / "step_3", [])
    assert (tmp_path / "best").readlink() == Path("step_2")  # a later one, found again when the run is there


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path):
    assert newest_whole(tmp_path) == (None, [])
    (save(tmp_path, 1) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: .*model\.safetensors is missing"):
        newest_whole(tmp_path)


def test_what_is_not_finite_is_found(tmp_path):
    tensors = {"a": torch.ones(2), "n": torch.ones(2, dtype=torch.int64), "b": torch.tensor([1.0, torch.inf])}
    assert first_not_finite(tensors) == "b"
    assert first_not_finite({"a": tensors["a"], "n": tensors["n"]}) is None
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})


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
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_checkpoint(folder)
    (folder / "checksums.json").unlink()
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
    load_optimizer(optimizer, dict(second.named_parameters()), tensors, Path())
    train(second, optimizer, range(4, 7))
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)
