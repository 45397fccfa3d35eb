"""Several processes give what one gives, with DDP and FSDP2: losses, weights, accumulation, checkpoints."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import multiprocessing

from speechssl.heads.ctc import CTCObjective
from speechssl.models.encoder import Encoder
from speechssl.objectives.wav2vec2 import Wav2Vec2Objective
from speechssl.training import distributed, sharded
from speechssl.training.checkpoint import load_optimizer, load_tensors, optimizer_tensors
from speechssl.training.optim import build_optimizer
from speechssl.training.trainer import Trainer, TrainerOptions
from speechssl.types import Batch, Utterance

# Samples of the clips of a step: frames from 49 to 8, which is less than a mask's span, so that it is in no mask.
LENGTHS = (16_000, 12_000, 7_000, 2_800)
STEPS = 20
OPTIONS = {
    "max_steps": STEPS,
    "accumulate": 1,
    "clip_norm": 0.5,
    "log_every": 1,
    "valid_every": 5,
    "checkpoint_every": 5,
    "keep_last": 2,
    "best": "loss",
    "max_bad_steps": 1,
    "seed": 0,
    "device": "cpu",
    "precision": "fp32",
    "resume": "auto",
}


def on_ranks(size, work, folder, *arguments):
    """What `work(world, *arguments)` gives on rank 0 of so many processes."""
    if size == 1:
        return work(distributed.World(), *arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = Path(folder) / f"result_{port}.pt"
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(r, size, port, result, work, arguments)) for r in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(1800)  # a busy machine lets ranks wait for each other
        if rank.is_alive():
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * size
    return torch.load(result, weights_only=False)  # our own file, written a moment ago


def _rank(rank, size, port, result, work, arguments):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    try:
        world = distributed.join("cpu")
        found = work(world, *arguments)
        if rank == 0:
            torch.save(found, result)
        world.close()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def batch_of(step, clips):
    """Some clips of a step's four, in fp64; the same noise, seeds and labels for the same clip in any batch."""
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(100 * step + i)) for i, n in enumerate(LENGTHS)]
    lengths = [LENGTHS[i] for i in clips]
    waveforms = torch.zeros(len(clips), max(lengths), dtype=torch.float64)
    for row, i in zip(waveforms, clips, strict=True):
        row[: LENGTHS[i]] = 0.1 * waves[i]
    return Batch(
        waveforms=waveforms,
        lengths=torch.tensor(lengths),
        seeds=[1000 * step + i for i in clips],
        utterances=[Utterance(str(i), Path(f"{i}.wav"), LENGTHS[i] / 16_000) for i in clips],
        targets=[torch.tensor([1, 2, 1, 2][: 4 - i]) for i in clips],
    )


def build(world, kind, parallel, recipe, run_dir=Path(), **options):
    """A trainer in fp64; `recipe` has the encoder's config and the objective's options."""
    torch.manual_seed(0)
    encoder = Encoder(recipe.encoder)
    make = {"wav2vec2": Wav2Vec2Objective, "ctc": CTCObjective}[kind]
    objective = make(encoder.config, **recipe.options[kind])
    model = distributed.TrainingModel(encoder, objective).double()
    if recipe.recompute:
        distributed.recompute(model)
    is_sharded = parallel == "fsdp" and world.size > 1
    if is_sharded:
        distributed.shard(model, "cpu")
    optimizer = build_optimizer(model.named_parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    return Trainer(
        encoder=encoder,
        objective=objective,
        loader=SimpleNamespace(position=0, num_read=0, num_broken=0),
        valid_loader=None,
        optimizer=optimizer,
        schedule={"warmup": 0.2, "hold": 0.0, "decay": "linear", "floor": 0.1},
        run_dir=run_dir,
        run_config="",
        config={"sample_rate": 16_000},
        options=TrainerOptions(**OPTIONS | options),
        world=world,
        model=model if is_sharded else None,
    )


def train(world, kind, parallel, recipe, accumulate=1, steps=STEPS):
    """Losses of each step, over all ranks, and the weights after the last."""
    trainer = build(world, kind, parallel, recipe, accumulate=accumulate)
    shares, losses = world.size * accumulate, []

    def batches(step):
        for number in range(accumulate):
            clips = range(number * world.size + world.rank, len(LENGTHS), shares)
            yield batch_of(step, list(clips))

    for trainer.step in range(1, steps + 1):
        trainer.averages.sums.clear()
        trainer.run_step(batches(trainer.step))
        means = trainer.averages.means()
        losses.append({name: value for name, value in means.items() if name.startswith("loss_")})
    return losses, sharded.whole(trainer.model.state_dict())


@pytest.fixture
def recipe(small_config, wav2vec2_options):
    """`recipe(**encoder)`: what `build` needs."""

    def make(*, recompute=False, diversity_weight=0.1, **encoder):
        ctc = {
            "vocabulary": ["<blank>", "a", "b"],
            "lowercase": False,
            "dropout": 0.0,
            "mask_start_probability": 0.05,
            "mask_span": 5,
            "freeze_feature_encoder": False,
            "freeze_encoder": 0.0,
        }
        options = {"wav2vec2": wav2vec2_options(diversity_weight=diversity_weight), "ctc": ctc}
        return SimpleNamespace(encoder=small_config(**encoder), options=options, recompute=recompute)

    return make


def assert_equal(ours, theirs):
    """Losses within 1e-9 at each step, weights within 1e-8 at the end."""
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine.keys() == other.keys()
        for name in other:
            assert mine[name] == pytest.approx(other[name], abs=1e-9)
    assert ours[1].keys() == theirs[1].keys()
    for name, tensor in theirs[1].items():
        assert tensor.dtype == torch.float64
        assert (ours[1][name] - tensor).abs().max() < 1e-8, name


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("kind", "size"), [("wav2vec2", 2), pytest.param("wav2vec2", 4, marks=pytest.mark.slow), ("ctc", 2)]
)
def test_ranks_give_what_one_process_gives_with_the_same_clips(tmp_path, recipe, kind, size, parallel):
    """Uneven lengths, uneven mask counts (one clip has none), batch statistics, clipping, warm-up: 20 steps in fp64."""
    one = train(distributed.World(), kind, "none", recipe())
    several = on_ranks(size, train, tmp_path, kind, parallel, recipe())
    assert_equal(several, one)
    first, last = one[0][0], one[0][-1]
    assert any(abs(last[name] - first[name]) > 1e-3 for name in first)  # something was learned


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_accumulation_layer_drop_and_recomputing_work_with_all_of_them(tmp_path, recipe, parallel):
    """The diversity term is each batch's own over ranks, so it is left out: batches are other ones on each side."""
    settings = {"layer_drop": 0.5, "diversity_weight": 0.0}
    one = train(distributed.World(), "wav2vec2", "none", recipe(**settings), 4)
    assert_equal(train(distributed.World(), "wav2vec2", "none", recipe(recompute=True, **settings), 4), one)
    several = on_ranks(2, train, tmp_path, "wav2vec2", parallel, recipe(recompute=True, **settings), 2)
    assert several[0][0].pop("loss_diversity") and one[0][0].pop("loss_diversity")
    for mine, other in zip(several[0][1:], one[0][1:], strict=True):
        del mine["loss_diversity"], other["loss_diversity"]
    assert_equal(several, one)


def _sums(world):
    x = torch.tensor([1.0 + world.rank, 2.0], requires_grad=True)
    total = distributed.sum_over_ranks(x)
    ((total * torch.tensor([1.0, 10.0])).sum() * (world.rank + 1)).backward()
    with distributed.apart():
        alone = distributed.sum_over_ranks(x)
    mean = distributed.mean_over_ranks(x.detach(), world.rank)  # counts 0 and 1
    said = world.gather(world.rank), world.any(world.rank == 1), world.any(False), world.agree(f"rank {world.rank}")
    return total.detach(), x.grad, alone.detach(), mean, said


def test_sums_over_ranks_have_the_gradient_of_the_whole(tmp_path):
    """Ranks weigh the sum with 1 and 2: its gradient is 3 on each."""
    total, gradient, alone, mean, said = on_ranks(2, _sums, tmp_path)
    assert total.tolist() == [3.0, 4.0]
    assert gradient.tolist() == [3.0, 30.0]
    assert alone.tolist() == [1.0, 2.0]
    assert mean.tolist() == [3.0, 4.0]
    assert said == ([0, 1], True, False, "rank 0")
    assert distributed.mean_over_ranks(torch.tensor([6.0, 3.0]), 3).tolist() == [2.0, 1.0]
    assert distributed.mean_over_ranks(torch.zeros(2), 0).tolist() == [0.0, 0.0]


def _store(world, recipe, folder, parallel):
    trainer = build(world, "wav2vec2", parallel, recipe)
    for trainer.step in (1, 2):
        trainer.run_step(iter([batch_of(trainer.step, list(range(world.rank, 4, world.size)))]))
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    optimizer = optimizer_tensors(trainer.optimizer, names)
    if parallel == "fsdp":
        sharded.save(folder, optimizer)
    return sharded.whole(trainer.model.state_dict()), sharded.whole(optimizer)


def _restore(world, recipe, folder, parallel, weights):
    trainer = build(world, "wav2vec2", parallel, recipe)
    named = dict(trainer.model.named_parameters())
    load_tensors(trainer.model, weights, folder)
    load_optimizer(trainer.optimizer, named, sharded.load(folder, named), folder)
    names = {id(p): name for name, p in named.items()}
    optimizer = {name: t.clone() for name, t in sharded.whole(optimizer_tensors(trainer.optimizer, names)).items()}
    trainer.step = 3
    trainer.run_step(iter([batch_of(3, list(range(world.rank, 4, world.size)))]))
    return optimizer, sharded.whole(trainer.model.state_dict())


def test_shards_load_at_another_world_size_and_on_one_process(tmp_path, recipe):
    """Written by 4 ranks; safetensors and nothing else."""
    weights, optimizer = on_ranks(4, _store, tmp_path, recipe(), tmp_path / "step", "fsdp")
    assert {path.suffix for path in (tmp_path / "step").iterdir()} == {".safetensors"}
    assert len(list((tmp_path / "step").iterdir())) == 4
    one = _restore(distributed.World(), recipe(), tmp_path / "step", "none", weights)
    assert one[0].keys() == optimizer.keys()
    assert all(torch.equal(one[0][name], tensor) for name, tensor in optimizer.items())
    two = on_ranks(2, _restore, tmp_path, recipe(), tmp_path / "step", "fsdp", weights)
    assert all(torch.equal(two[0][name], tensor) for name, tensor in optimizer.items())
    for name, tensor in one[1].items():
        assert (two[1][name] - tensor).abs().max() < 1e-8
