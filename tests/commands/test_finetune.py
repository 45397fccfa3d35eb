"""speechssl finetune, as a user runs it."""

from __future__ import annotations

import re

import pytest
import torch

from speechssl.data.text import BLANK
from speechssl.decoding.ngram import estimate
from speechssl.manifest import Manifest
from speechssl.training.checkpoint import build_model, load_checkpoint


@pytest.fixture
def pretrained(pretrain, write_corpus, tmp_path):
    """A run of three steps."""
    assert pretrain(write_corpus()).code == 0
    return tmp_path / "pretrained"


def test_ctc_on_a_pretrained_encoder(finetune, pretrained, write_corpus, read_rows, tmp_path):
    valid = write_corpus("valid", seconds=(0.5, 0.7))
    result = finetune(tmp_path / "train.jsonl", f"data.valid={valid}", init=pretrained)
    assert (result.code, result.out) == (0, "")
    rows = read_rows("tuned")
    assert {"loss", "loss_ctc", "blank_share", "grad_norm", "lr"} <= rows[0].keys()
    assert {"valid_cer", "valid_wer", "valid_loss"} <= rows[1].keys()

    found, before = load_checkpoint(tmp_path / "tuned"), load_checkpoint(pretrained)
    assert found.config["objective"]["vocabulary"] == [BLANK, "a", "b"]
    assert found.config["encoder"] == before.config["encoder"]
    ours, theirs = found.part("encoder"), before.part("encoder")
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert not any(name.startswith("feature_encoder.") for name in moved)  # frozen
    assert any(name.startswith("context.layers.1.") for name in moved)


def test_the_encoder_can_be_frozen_for_the_first_steps(finetune, pretrained, tmp_path):
    result = finetune(tmp_path / "train.jsonl", "task.freeze_encoder=1.0", init=pretrained)
    assert result.code == 0
    found, before = load_checkpoint(tmp_path / "tuned").part("encoder"), load_checkpoint(pretrained).part("encoder")
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_dropouts_change_and_the_last_layer_begins_anew(finetune, pretrained, tmp_path):
    overrides = ("encoder.dropout=0.2", "encoder.reset_layers=1", "task.lr=1e-9")
    assert finetune(tmp_path / "train.jsonl", *overrides, init=pretrained).code == 0
    found, before = load_checkpoint(tmp_path / "tuned"), load_checkpoint(pretrained)
    assert found.config["encoder"] == before.config["encoder"] | {"dropout": 0.2}
    ours, theirs = found.part("encoder"), before.part("encoder")
    moved = [name for name in ours if (ours[name] - theirs[name]).abs().max() > 1e-3]
    assert {name.removeprefix("context.").split(".")[0] for name in moved} <= {"layers", "norm"}
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"1"}


@pytest.mark.parametrize(
    ("overrides", "label", "labels"),
    [
        (("task=speaker",), "speaker", ["ann", "bob"]),
        (("task=classify", "label=language"), "language", ["x", "y"]),
    ],
)
def test_classifiers_of_any_column(finetune, pretrained, read_rows, tmp_path, overrides, label, labels):
    train = tmp_path / "train.jsonl"
    result = finetune(train, *overrides, f"data.valid={train}", init=pretrained)
    assert result.code == 0
    objective = load_checkpoint(tmp_path / "tuned").config["objective"]
    assert (objective["label"], objective["labels"]) == (label, labels)
    assert "valid_accuracy" in read_rows("tuned")[1]


def test_from_scratch_everything_trains(finetune, write_corpus, tmp_path):
    train = write_corpus()
    assert finetune(train, "trainer.max_steps=1", run="one").code == 0
    assert finetune(train, "trainer.max_steps=2", "task.freeze_encoder=1.0", run="two").code == 0
    one, two = (load_checkpoint(tmp_path / run).part("encoder") for run in ("one", "two"))
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert same == {"mask_vector"}  # which nothing has used


@pytest.mark.parametrize(
    ("init", "overrides", "reason"),
    [
        ("gone", (), "no checkpoint .*gone"),
        (".", (), "holds no checkpoint"),
        ("pretrained", ("model=small",), "model= has no effect beside init="),
    ],
)
def test_what_cannot_be_started_from(finetune, pretrained, tmp_path, init, overrides, reason):
    result = finetune(tmp_path / "train.jsonl", *overrides, init=tmp_path / init)
    assert result.code == 2
    assert not (tmp_path / "tuned").exists()
    assert re.search(reason, result.sentence), result.sentence


def test_scratch_needs_a_shape(speechssl, write_corpus, tmp_path):
    result = speechssl("finetune", f"data.train={write_corpus()}", "init=none", f"run_dir={tmp_path / 'tuned'}")
    assert result.code == 2
    assert "init=none" in result.sentence
    assert "model=tiny" in result.sentence


def test_a_run_of_another_model_is_not_gone_on_with(finetune, pretrained, write_corpus, tmp_path):
    finetune(tmp_path / "train.jsonl", init=pretrained)
    other = write_corpus("other", text="abc")
    result = finetune(other, "trainer.max_steps=9", init=pretrained)
    assert result.code == 2
    assert "objective.vocabulary" in result.sentence


def test_faults_of_transcripts_are_one_sentence_that_names_the_file(finetune, write_corpus):
    train = write_corpus()
    valid = write_corpus("valid", text="añb")
    outside = finetune(train, f"data.valid={valid}")
    assert outside.code == 2
    assert "valid/0.wav" in outside.sentence
    assert "outside the vocabulary: ñ" in outside.sentence

    long = finetune(write_corpus("long", text="ab" * 20))  # 0.5 s are 24 frames
    assert long.code == 2
    assert "long/0.wav" in long.sentence
    assert "labels longer than frames" in long.sentence

    short = finetune(write_corpus("short", seconds=(0.5, 0.02), text="a"))
    assert short.code == 2
    assert "short/1.wav" in short.sentence
    assert "receptive field" in short.sentence

    empty = finetune(write_corpus("empty", text=" "))
    assert empty.code == 2
    assert "all transcripts are empty" in empty.sentence


def test_clips_that_cannot_count_can_be_left_out(finetune, write_corpus, tmp_path):
    train = write_corpus(seconds=(0.5, 0.02, 0.6))
    result = finetune(train, "data.skip_invalid=true")
    assert result.code == 0
    assert "train/1.wav" in result.err

    nothing = finetune(train, f"data.valid={write_corpus('valid', text='xyz')}", "data.skip_invalid=true", run="other")
    assert nothing.code == 2
    assert "no clip is left in" in nothing.sentence
    assert "valid.jsonl" in nothing.sentence


def test_faults_of_labels_are_one_sentence(finetune, write_corpus):
    train = write_corpus()
    column = finetune(train, "task=classify", "label=emotion")
    assert column.code == 2
    assert "'emotion'" in column.sentence

    stranger = finetune(train, "task=speaker", f"data.valid={write_corpus('valid', speaker='dan')}")
    assert stranger.code == 2
    assert "valid/0.wav: its speaker 'dan' does not occur in the training manifest" in stranger.sentence


def test_silence_says_nothing_of_a_speaker(finetune, write_corpus, silence):
    train = write_corpus()
    silence(train, 2)
    result = finetune(train, "task=speaker")
    assert result.code == 2 and "train/2.wav: is silence, in which there is no voice" in result.sentence
    allowed = finetune(train, "task=speaker", "data.max_broken_share=0.5")
    assert allowed.code == 0 and "2.wav: is silence" in allowed.err


def test_a_damaged_init_is_refused_by_name(finetune, pretrained, tmp_path):
    weights = pretrained / "checkpoints" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = finetune(tmp_path / "train.jsonl", init=pretrained)
    assert result.code == 2
    assert "model.safetensors is damaged" in result.sentence


def test_clips_are_read_from_their_manifest_alone(finetune, write_corpus):
    """A column that is not needed may be missing: speakers know no text."""
    train = write_corpus()
    lines = [line.replace('"text"', '"transcript"') for line in train.read_text().splitlines()]
    train.write_text("\n".join(lines) + "\n")
    assert Manifest(train)[0].text is None
    assert finetune(train, "task=speaker").code == 0
    assert finetune(train, "task=ctc", run="other").code == 2


@pytest.mark.parametrize("overrides", [("task.lora_rank=2",), ("task.adapter_size=4", "task.layers=weighted")])
def test_adapters_leave_the_encoder_as_it_was_and_work_after_loading(
    finetune, speechssl, pretrained, tmp_path, overrides
):
    train = tmp_path / "train.jsonl"
    assert finetune(train, "task=ctc_10min", "task.freeze_encoder=0", *overrides, init=pretrained).code == 0
    found, before = load_checkpoint(tmp_path / "tuned"), load_checkpoint(pretrained)
    ours, theirs = found.part("encoder"), before.part("encoder")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ups = [tensor for name, tensor in found.part("objective").items() if name.endswith("up.weight")]
    assert ups and all(tensor.abs().sum() > 0 for tensor in ups)
    encoder, _ = build_model(found)
    assert encoder.context.layers[0].feed_out._forward_hooks or encoder.context.layers[0].attention.qkv._forward_hooks
    refused = finetune(train, *overrides, run="scratch")
    assert refused.code == 2 and "give init=" in refused.sentence
    refused = finetune(train, *overrides, "encoder.reset_layers=1", init=pretrained, run="reset")
    assert refused.code == 2 and refused.sentence.startswith("encoder.reset_layers=1 begins layers anew")


def test_recurrent_layers_train_alone_over_a_frozen_encoder(finetune, pretrained, speechssl, tmp_path):
    train = tmp_path / "train.jsonl"
    frozen = ("task.freeze_encoder=1.0", "task.recurrent_size=4", "task.layers=weighted")
    assert finetune(train, *frozen, init=pretrained).code == 0
    found, before = load_checkpoint(tmp_path / "tuned"), load_checkpoint(pretrained)
    ours, theirs = found.part("encoder"), before.part("encoder")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.part("objective")["recurrent.weight_hh_l1_reverse"].shape == (12, 4)
    tested = speechssl("evaluate", f"checkpoint={tmp_path / 'tuned'}", f"data.test={train}", f"out={tmp_path / 'test'}")
    assert tested.code == 0
    refused = finetune(train, "task.recurrent_size=-1", init=pretrained, run="bad")
    assert refused.code == 2 and "recurrent_size" in refused.sentence


def test_units_of_words_and_early_stopping(finetune, speechssl, write_corpus, tmp_path, read_rows):
    pytest.importorskip("sentencepiece")
    train = write_corpus()
    result = finetune(
        train, "task.units=bpe", "task.bpe_size=4", f"data.valid={train}", "trainer.average_best=2",
        "trainer.patience=1", "trainer.valid_every=1", "trainer.max_steps=40",
    )  # fmt: skip
    assert result.code == 0
    assert load_checkpoint(tmp_path / "tuned").config["objective"]["vocabulary"] == [BLANK, "a", "b", "▁", "ab"]
    assert "no better" in result.err and read_rows("tuned")[-1]["step"] < 40
    assert "task.units=syllables must be" in finetune(train, "task.units=syllables", run="x").sentence


def test_both_losses_at_once(finetune, pretrained, write_corpus, tmp_path, read_rows):
    unlabelled = write_corpus("audio", seconds=(0.7, 0.9, 0.8))
    lines = [line.replace('"text"', '"spoken"') for line in unlabelled.read_text().splitlines()]
    unlabelled.write_text("\n".join(lines) + "\n")
    train = tmp_path / "train.jsonl"
    given = (f"data.train=[{train},{unlabelled}]", "data.mix_temperature=100", f"data.valid={train}")
    result = finetune(train, *given, "task=semi", "trainer.max_steps=6", "trainer.log_every=1", init=pretrained)
    assert result.code == 0, result.err
    rows = read_rows("tuned")
    assert any("loss_ctc" in row for row in rows) and any("loss_contrastive" in row for row in rows)
    found = load_checkpoint(tmp_path / "tuned")
    assert found.config["objective"]["clip_seconds"] == pytest.approx([0.415, 0.55, 0.77], abs=0.01)
    assert build_model(found)[1].vocabulary.symbols == (BLANK, "a", "b")
    refused = finetune(train, "task=semi", init=tmp_path / "tuned", run="again")
    assert refused.code == 2 and "has none" in refused.sentence


def test_a_student_of_a_recogniser(finetune, pretrained, write_corpus, tmp_path, read_rows):
    unlabelled = write_corpus("audio", seconds=(0.7, 0.9, 0.8))
    lines = [line.replace('"text"', '"spoken"') for line in unlabelled.read_text().splitlines()]
    unlabelled.write_text("\n".join(lines) + "\n")
    train, teacher = tmp_path / "train.jsonl", tmp_path / "tuned"
    assert finetune(train, "trainer.max_steps=2", init=pretrained).code == 0
    given = (f"data.train=[{train},{unlabelled}]", f"data.valid={train}", "trainer.max_steps=6", "trainer.log_every=1")
    few = (f"task.teacher={teacher}", "encoder.reset_layers=0", "data.batch_seconds=2.0", "task=distil_few")
    result = finetune(train, *given, *few, init=pretrained, run="student")
    assert result.code == 0, result.err
    assert any("loss_distil" in row for row in read_rows("student"))
    found = load_checkpoint(tmp_path / "student")
    assert build_model(found)[1].vocabulary.symbols == (BLANK, "a", "b")  # without its teacher
    lm = tmp_path / "units.arpa"
    estimate([["a", "b"], ["b", "a"]], order=2).write(lm)
    result = finetune(train, *given, *few, f"task.lm={lm}", "trainer.precision=bf16", init=pretrained, run="read")
    assert result.code == 0, result.err
    lm.unlink()  # only training needs it
    assert build_model(load_checkpoint(tmp_path / "read"))[1].vocabulary.symbols == (BLANK, "a", "b")
    refused = finetune(train, *given, "task=distil", init=pretrained, run="alone")
    assert refused.code == 2 and "task.teacher=CHECKPOINT" in refused.sentence


def test_both_losses_at_once_are_refused_where_the_pretraining_has_labels(finetune, pretrain, write_corpus, tmp_path):
    train = write_corpus()
    assert pretrain(train, "objective=hubert", "objective.num_clusters=4").code == 0
    refused = finetune(train, "task=semi", init=tmp_path / "pretrained")
    assert refused.code == 2 and "without labels, and hubert has some" in refused.sentence
