"""Folders in Hugging Face format against transformers itself: every hidden state, every tensor, every refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

import speechssl
from speechssl import cli
from speechssl.interop import huggingface_out
from speechssl.training.checkpoint import build_model, load_checkpoint

LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SHAPES = {
    "base": ("Wav2Vec2Model", {}),
    "large": ("Wav2Vec2Model", LARGE),
    "layer norm, post-norm": ("Wav2Vec2Model", {"feat_extract_norm": "layer", "layer_norm_eps": 1e-3}),
    "group norm, pre-norm, biases": ("Wav2Vec2Model", {"do_stable_layer_norm": True, "conv_bias": True}),
    "odd kernel, one head": (
        "Wav2Vec2Model",
        {"num_conv_pos_embeddings": 9, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 7},
    ),
    "other convolutions": (
        "Wav2Vec2Model",
        {**LARGE, "conv_dim": [8, 12, 20], "conv_kernel": [8, 5, 3], "conv_stride": [4, 3, 2], "hidden_size": 36},
    ),
    "no masking": ("Wav2Vec2Model", {"mask_time_prob": 0.0}),
    "hubert": ("HubertModel", {}),
    "hubert without feature norm": ("HubertModel", {**LARGE, "feat_proj_layer_norm": False}),
    "data2vec": ("Data2VecAudioModel", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}),
    "data2vec, even kernel": ("Data2VecAudioModel", {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 6}),
    "wavlm": ("WavLMModel", {"num_buckets": 24, "max_bucket_distance": 30}),
    "wavlm large": ("WavLMModel", {**LARGE, "num_buckets": 320, "max_bucket_distance": 800}),
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def saved(request, peer, tmp_path_factory):
    """A reference model and its folder."""
    name, changes = SHAPES[request.param]
    model = peer.make(name, **changes)
    return model, peer.save(model, tmp_path_factory.mktemp("model"))


@torch.no_grad()
def test_hidden_states_are_those_of_transformers(saved, peer):
    model, folder = saved
    waveforms = peer.noise(6_000, 2_500, 16_000)
    # A group norm runs over padding in transformers, and stacked convolutions carry it into the clip: one by one.
    alone = model.config.model_type == "data2vec-audio" or model.config.feat_extract_norm == "group"
    expected = (peer.states if alone else peer.batched_states)(model, waveforms)
    encoder = speechssl.load_encoder(folder)
    output = encoder(pad_sequence(waveforms, batch_first=True), torch.tensor([len(x) for x in waveforms]))
    assert len(output.hidden_states) == len(expected[0])
    for i, layers in enumerate(expected):
        assert output.frame_lengths[i] == len(layers[0])
        for layer, x in enumerate(layers):
            torch.testing.assert_close(output.hidden_states[layer][i, : len(x)], x, atol=1e-5, rtol=0)


def test_every_tensor_goes_back_bit_for_bit(saved):
    _, folder = saved
    given, back = load_file(folder / "model.safetensors"), huggingface_out.tensors(load_checkpoint(folder))
    assert given.keys() == back.keys()
    for name, tensor in given.items():
        assert torch.equal(back[name], tensor), name


def test_data2vec_in_a_padded_batch_hears_the_padding_in_transformers_and_not_here(peer, tmp_path):
    # Its positional convolutions follow each other without silencing what lies behind a clip's end.
    model = peer.make("Data2VecAudioModel", num_conv_pos_embeddings=3, conv_pos_kernel_size=7)
    waveforms = peer.noise(6_000, 2_500)
    with torch.no_grad():
        alone, batched = (f(model, waveforms)[1][-1] for f in (peer.states, peer.batched_states))
        encoder = speechssl.load_encoder(peer.save(model, tmp_path))
        ours = encoder(pad_sequence(waveforms, batch_first=True), torch.tensor([6_000, 2_500]))
    assert (alone - batched).abs().max() > 1e-2
    torch.testing.assert_close(ours.frames[1, : len(alone)], alone, atol=1e-5, rtol=0)


def test_older_files_with_their_names_in_pickles_and_shards(peer, tmp_path):
    model = peer.make("Wav2Vec2Model")
    folder = peer.save(model, tmp_path / "new")
    tensors = load_file(folder / "model.safetensors")
    stem = "encoder.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        tensors[stem + old] = tensors.pop(f"{stem}parametrizations.weight.{new}")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(folder / "config.json", sharded)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({name: x for name, x in tensors.items() if places[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for source in (folder, sharded):
        back = huggingface_out.tensors(load_checkpoint(source))
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_half_precision_stays_half_in_the_files_and_runs_in_single(peer, tmp_path):
    folder = peer.save(peer.make("Wav2Vec2Model").half(), tmp_path)
    back = huggingface_out.tensors(load_checkpoint(folder))
    assert {tensor.dtype for tensor in back.values()} == {torch.float16}
    assert next(speechssl.load_encoder(folder).parameters()).dtype == torch.float32


def test_a_convert_there_and_back_keeps_every_file(peer, tmp_path, capsys):
    model = peer.make("Wav2Vec2ForCTC", vocab_size=len(peer.vocabulary), pad_token_id=4, **LARGE)
    folder = peer.save(model, tmp_path / "given", vocabulary=peer.vocabulary)
    assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'ours'}"]) == 0
    arguments = [f"source={tmp_path / 'ours'}", f"out={tmp_path / 'back'}", "format=huggingface"]
    assert cli.main(["convert", *arguments]) == 0
    assert "verdict: agrees" in capsys.readouterr().out
    given, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert given.keys() == back.keys() and all(torch.equal(given[name], back[name]) for name in given)
    for name in ("config.json", "vocab.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "back" / name).read_text())
    report = json.loads((tmp_path / "back" / "conversion_report.json").read_text())
    layers = {layer["layer"] for layer in report["comparisons"][0]["layers"]}
    assert layers == {"feature encoder", *(f"hidden state {i}" for i in range(3)), "logits"}


def test_the_blank_is_ours_first_and_the_delimiter_a_space(peer, tmp_path):
    model = peer.make("Wav2Vec2ForCTC", vocab_size=len(peer.vocabulary), pad_token_id=4)
    checkpoint = load_checkpoint(peer.save(model, tmp_path, vocabulary=peer.vocabulary))
    expected = ["<blank>", "<s>", "A", " ", "</s>", "B", "'", "<unk>"]
    assert checkpoint.config["objective"]["vocabulary"] == expected
    weight = model.lm_head.weight
    assert torch.equal(checkpoint.tensors["objective.linear.weight"], weight[[4, 0, 1, 2, 3, 5, 6, 7]])


def test_transcribe_says_what_the_pipeline_says(peer, tmp_path, audio_tools, capsys):
    transformers = pytest.importorskip("transformers")
    model = peer.make("Wav2Vec2ForCTC", vocab_size=len(peer.vocabulary), pad_token_id=4)
    torch.nn.init.normal_(model.lm_head.weight)
    folder = peer.save(model, tmp_path / "model", vocabulary=peer.vocabulary)
    [waveform] = peer.noise(40_000)
    path = audio_tools.save(tmp_path / "a.wav", 0.1 * waveform.clamp(-3, 3))
    recognize = transformers.pipeline("automatic-speech-recognition", model=str(folder))
    samples, rate = soundfile.read(path, dtype="float32")
    expected = recognize({"raw": samples, "sampling_rate": rate})["text"]
    assert cli.main(["transcribe", f"checkpoint={folder}", f"audio={path}", "trainer.device=cpu"]) == 0
    assert capsys.readouterr().out.strip() == " ".join(expected.split())
    assert len(set(expected)) > 3


def test_a_recogniser_of_ours_runs_in_the_pipeline(ctc_run, tmp_path, peer, audio_tools, capsys):
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "hf"
    assert cli.main(["convert", f"source={ctc_run}", f"out={out}", "format=huggingface"]) == 0
    _, info = transformers.Wav2Vec2ForCTC.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    recognize = transformers.pipeline("automatic-speech-recognition", model=str(out))
    [waveform] = peer.noise(40_000)
    path = audio_tools.save(tmp_path / "a.wav", 0.1 * waveform.clamp(-3, 3))
    samples, rate = soundfile.read(path, dtype="float32")
    text = recognize({"raw": samples, "sampling_rate": rate})["text"]
    capsys.readouterr()
    assert cli.main(["transcribe", f"checkpoint={ctc_run}", f"audio={path}", "trainer.device=cpu"]) == 0
    assert capsys.readouterr().out.strip() == " ".join(text.split())
    assert "a" in text
    assert (out / "README.md").read_text().startswith("---")


def test_an_encoder_goes_without_the_head_that_transformers_lacks(write_run, wav2vec2_options, tmp_path):
    """In a process of its own: what transformers leaves behind in torch depends on what ran before."""
    transformers = pytest.importorskip("transformers")
    decoder = {"num_masks": 2, "decoder_layers": 1, "decoder_size": 16}
    run, out = write_run("wav2vec2", conv_init="gabor", **wav2vec2_options(), **decoder), tmp_path / "hf"
    command = [sys.executable, "-m", "speechssl", "convert", f"source={run}", f"out={out}", "format=huggingface"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the head of objective=wav2vec2 with a decoder is left out" in done.stderr
    _, info = transformers.Wav2Vec2Model.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


CLASSIFIER = {"projection_size": 12, "pooling": "mean", "norm": False}


@pytest.mark.parametrize("layers", ["weighted", "last"])
def test_a_classifier_of_ours_runs_in_the_pipeline(
    write_run, classify_options, tmp_path, peer, audio_tools, capsys, layers
):
    transformers = pytest.importorskip("transformers")
    run, out = write_run("classify", **classify_options | CLASSIFIER, layers=layers), tmp_path / "hf"
    assert cli.main(["convert", f"source={run}", f"out={out}", "format=huggingface"]) == 0
    report = json.loads((out / "conversion_report.json").read_text())
    compared = [layer["layer"] for layer in report["comparisons"][0]["layers"]]
    assert compared[-2:] == ["projected frames", "logits"] and len(compared) == 2 + 2 + 2
    _, info = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    classify = transformers.pipeline("audio-classification", model=str(out))
    [waveform] = peer.noise(40_000)
    path = audio_tools.save(tmp_path / "a.wav", 0.1 * waveform.clamp(-3, 3))
    samples, rate = soundfile.read(path, dtype="float32")
    best = classify({"raw": samples, "sampling_rate": rate})[0]
    capsys.readouterr()
    for checkpoint in (run, out):  # ours as it is, and what was written read again
        assert cli.main(["identify", f"checkpoint={checkpoint}", f"audio={path}", "trainer.device=cpu"]) == 0
        label, score = capsys.readouterr().out.split()
        assert label == best["label"] and float(score) == pytest.approx(best["score"], abs=1e-4)
    assert "audio-classification" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "pre_norm", "words"),
    [
        ({}, False, ("task.pooling=statistics", "task=superb")),
        ({**CLASSIFIER, "norm": True}, False, ("task.norm=true",)),
        ({**CLASSIFIER, "projection_size": None}, False, ("task.projection_size=null",)),
        ({**CLASSIFIER, "tdnn": [8]}, False, ("task.tdnn=[8]",)),
        ({**CLASSIFIER, "embedding_size": 8}, False, ("task.embedding_size=8",)),
        ({**CLASSIFIER, "loss": "aam_softmax"}, False, ("task.loss=aam_softmax",)),
        (CLASSIFIER, True, ("task.layers=weighted", "task=superb task.layers=last")),
    ],
)
def test_a_classifier_of_another_shape_is_refused_by_its_override(
    write_run, classify_options, tmp_path, capsys, changes, pre_norm, words
):
    run = write_run("classify", pre_norm=pre_norm, **classify_options | changes)
    assert cli.main(["convert", f"source={run}", f"out={tmp_path / 'out'}", "format=huggingface"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["Wav2Vec2", "Hubert", "Data2VecAudio", "WavLM"])
@pytest.mark.parametrize("weighted", [True, False])
def test_classifiers_come_in_and_go_back(peer, tmp_path, capsys, name, weighted):
    labels = {0: "yes", 1: "no", 2: "maybe"}
    changes = {"classifier_proj_size": 5, "use_weighted_layer_sum": weighted, "id2label": labels}
    if not weighted and name != "Data2VecAudio":
        changes |= LARGE
    model = peer.make(f"{name}ForSequenceClassification", **changes)
    folder = peer.save(model, tmp_path / "given")
    assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'ours'}"]) == 0
    arguments = [f"source={tmp_path / 'ours'}", f"out={tmp_path / 'back'}", "format=huggingface"]
    assert cli.main(["convert", *arguments]) == 0
    assert load_checkpoint(tmp_path / "ours").config["objective"]["labels"] == ["yes", "no", "maybe"]
    given, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert given.keys() == back.keys() and all(torch.equal(given[name], back[name]) for name in given)


def test_labels_that_do_not_fit_the_classifier_are_one_sentence(peer, tmp_path, capsys):
    folder = peer.save(peer.make("Wav2Vec2ForSequenceClassification", num_labels=3), tmp_path / "model")
    for names in ({"0": "a", "1": "b"}, {"0": "a", "1": "a", "2": "b"}, ["a"]):
        edit(folder / "config.json", id2label=names)
        assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "id2label" in error


def test_preprocessing_comes_along(peer, tmp_path):
    model = peer.make("Wav2Vec2Model")
    silent = load_checkpoint(peer.save(model, tmp_path / "a")).config
    assert (silent["sample_rate"], silent["normalize"]) == (16_000, True)  # transformers' defaults
    kind = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    said = load_checkpoint(peer.save(model, tmp_path / "b", **kind, sampling_rate=8_000, do_normalize=False)).config
    assert (said["sample_rate"], said["normalize"]) == (8_000, False)


def test_a_head_without_counterpart_is_left_out_by_name(peer, tmp_path, caplog):
    weighted = {**LARGE, "use_weighted_layer_sum": True}  # transformers 4 and 5 do not agree on these
    for i, (name, changes) in enumerate((("XVector", {"tdnn_dim": [8] * 5}), ("SequenceClassification", weighted))):
        model = peer.make(f"WavLMFor{name}", num_labels=3, classifier_proj_size=5, **changes)
        checkpoint = load_checkpoint(peer.save(model, tmp_path / str(i)))
        assert checkpoint.config["objective"] == {"name": "none"}
        assert "classifier.weight" in checkpoint.config["origin"]["left_out"]
        assert "classifier.weight" in caplog.text
        caplog.clear()


@pytest.fixture
def folder(peer, tmp_path):
    model = peer.make("Wav2Vec2ForCTC", vocab_size=len(peer.vocabulary), pad_token_id=4)
    return peer.save(model, tmp_path / "model", vocabulary=peer.vocabulary)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"feat_extract_activation": "gelu_new"}, "feat_extract_activation"),
        ({"add_adapter": True}, "adapters"),
        ({"adapter_attn_dim": 16}, "adapters"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm"),
        ({"model_type": "wav2vec2-conformer"}, "wav2vec2-conformer"),
        ({"model_type": "hubert", "conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"conv_dim": [16, -1]}, "conv_dim"),
        ({"conv_dim": [16] * 6}, "equally long"),
        ({"num_attention_heads": 5}, "num_heads"),
        ({"hidden_size": 28}, "[28]"),
        ({"intermediate_size": 41}, "intermediate_dense"),
        ({"num_hidden_layers": 3}, "lacks|do not have"),
        ({"num_hidden_layers": 1}, "encoder.layers.1"),
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000, which no encoder has"),
        ({"conv_bias": True}, "conv.bias"),
        ({"feat_extract_norm": "layer"}, "layer_norm"),
        ({"pad_token_id": 0}, "pad_token_id"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_one_sentence(folder, tmp_path, capsys, change, word):
    edit(folder / "config.json", **change)
    assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and any(part in error for part in word.split("|")), error
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_one_sentence(folder, tmp_path, capsys):
    def fails(word):
        assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error, error

    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "X": 99}))
    fails("do not fit")
    (folder / "vocab.json").write_text(json.dumps({token: i for token, i in vocabulary.items() if token != "A"}))
    fails("do not fit")
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "A": "one"}))
    fails("vocab.json")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    fails("model.safetensors")
    (folder / "model.safetensors").unlink()
    fails("neither")
    (folder / "config.json").write_text("[1]")
    fails("config.json")


def test_a_surplus_tensor_inside_the_encoder_is_refused(folder, tmp_path, capsys):
    tensors = load_file(folder / "model.safetensors")
    tensors["wav2vec2.encoder.layers.0.adapter_layer.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors")
    assert cli.main(["convert", f"source={folder}", f"out={tmp_path / 'out'}"]) == 2
    assert "adapter_layer" in capsys.readouterr().err


def test_without_a_vocabulary_outputs_are_numbers(peer, tmp_path, caplog):
    checkpoint = load_checkpoint(peer.save(peer.make("Wav2Vec2ForCTC", vocab_size=4, pad_token_id=2), tmp_path))
    assert checkpoint.config["objective"]["vocabulary"] == ["<blank>", "<0>", "<1>", "<3>"]
    assert "no vocabulary" in caplog.text


def test_pretraining_options_come_from_the_config(peer, tmp_path):
    model = peer.make("Wav2Vec2ForPreTraining", **peer.quantizer, contrastive_logits_temperature=0.3, **LARGE)
    checkpoint = load_checkpoint(peer.save(model, tmp_path))
    options = checkpoint.config["objective"]
    assert (options["num_groups"], options["num_codewords"], options["num_distractors"]) == (3, 7, 5)
    assert (options["temperature"], options["feature_penalty"], options["feature_gradient_scale"]) == (0.3, 0.0, 1.0)
    _, objective = build_model(checkpoint)
    assert torch.equal(objective.quantizer.codebook.flatten(0, 1), model.quantizer.codevectors[0])
