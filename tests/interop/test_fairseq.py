"""fairseq's files, written here as fairseq lays them out, against torchaudio's own reading of fairseq's names."""

from __future__ import annotations

import argparse
import enum
import json

import pytest
import torch

import speechssl
from speechssl import cli
from speechssl.interop import fairseq
from speechssl.training.checkpoint import build_model, load_checkpoint

SETTINGS = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 3,
    "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] + [(16,2,2)]",
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "dropout": 0.05,
    "feature_grad_mult": 0.1,
    "final_dim": 8,
    "latent_vars": 5,
    "latent_groups": 2,
    "quantize_targets": True,
    "mask_prob": 0.65,
}
LARGE = {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}
WORDS = ["|", "E", "T", "A"]


def tensors(settings, *, channels=16, seed=0):
    """A state dict of fairseq's Wav2Vec2Model without heads."""
    generator = torch.Generator().manual_seed(seed)
    hidden, feed = settings["encoder_embed_dim"], settings["encoder_ffn_embed_dim"]
    state = {"mask_emb": torch.rand(hidden, generator=generator)}

    def put(name, *shape, scale=0.3, shift=0.0):
        state[name] = scale * torch.randn(*shape, generator=generator) + shift

    def linear(name, rows, columns):
        put(f"{name}.weight", rows, columns)
        put(f"{name}.bias", rows)

    def norm(name, size):
        put(f"{name}.weight", size, shift=1.0)
        put(f"{name}.bias", size)

    is_layer_norm = settings.get("extractor_mode") == "layer_norm"
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        stem = f"feature_extractor.conv_layers.{i}"
        put(f"{stem}.0.weight", channels, channels if i else 1, kernel)
        if settings.get("conv_bias"):
            put(f"{stem}.0.bias", channels)
        if is_layer_norm:
            norm(f"{stem}.2.1", channels)
        elif i == 0:
            norm(f"{stem}.2", channels)
    norm("layer_norm", channels)
    if channels != hidden:
        linear("post_extract_proj", hidden, channels)
    put("encoder.pos_conv.0.bias", hidden)
    put("encoder.pos_conv.0.weight_g", 1, 1, settings["conv_pos"], shift=1.0)
    put("encoder.pos_conv.0.weight_v", hidden, hidden // settings["conv_pos_groups"], settings["conv_pos"])
    for i in range(settings["encoder_layers"]):
        stem = f"encoder.layers.{i}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{stem}.self_attn.{part}", hidden, hidden)
        norm(f"{stem}.self_attn_layer_norm", hidden)
        linear(f"{stem}.fc1", feed, hidden)
        linear(f"{stem}.fc2", hidden, feed)
        norm(f"{stem}.final_layer_norm", hidden)
    norm("encoder.layer_norm", hidden)
    return state


def head(settings):
    groups, size = settings["latent_groups"], settings["final_dim"]
    entries = groups * settings["latent_vars"]
    return {
        "quantizer.vars": torch.rand(1, entries, size // groups),
        "quantizer.weight_proj.weight": torch.randn(entries, 16),
        "quantizer.weight_proj.bias": torch.randn(entries),
        "project_q.weight": torch.randn(size, size),
        "project_q.bias": torch.randn(size),
        "final_proj.weight": torch.randn(size, settings["encoder_embed_dim"]),
        "final_proj.bias": torch.randn(size),
    }


class LatentKind(enum.Enum):
    """Stands for the enum objects in real files."""

    DEFAULT = "default"


# Stand for omegaconf's classes: a container whose state has _content, nodes whose state has _val.
class DictConfig:
    def __init__(self, content):
        self._metadata, self._parent, self._content = None, None, content


class AnyNode:
    def __init__(self, value):
        self._metadata, self._parent, self._val = None, None, value


def omegaconf_like(value):
    if isinstance(value, dict):
        return DictConfig({key: omegaconf_like(x) for key, x in value.items()})
    return AnyNode(value)


def expected_states(state, settings, waveform):
    """Hidden states by torchaudio, whose table of fairseq's names knows nothing of ours."""
    torchaudio = pytest.importorskip("torchaudio")
    from torchaudio.models.wav2vec2.utils.import_fairseq import _convert_state_dict

    layers = [(16, 10, 5), *[(16, 3, 2)] * 4, (16, 2, 2), (16, 2, 2)]
    model = torchaudio.models.wav2vec2_model(
        "layer_norm" if settings.get("extractor_mode") == "layer_norm" else "group_norm",
        layers,
        settings.get("conv_bias", False),
        *(24, 0.0, 16, 4, 2, 3, 0.0, 40, 0.0, 0.0),
        settings.get("layer_norm_first", False),
        0.0,
        None,
    ).eval()
    wanted = model.state_dict()
    given = {name: x for name, x in _convert_state_dict(state).items() if name in wanted or "weight_" in name}
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        stem = "encoder.transformer.pos_conv_embed.conv."
        given[f"{stem}parametrizations.weight.{new}"] = given.pop(stem + old)
    model.load_state_dict(given)
    with torch.no_grad():
        return [x[0] for x in model.extract_features(waveform[None])[0]]


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("layout", ["args", "cfg", "omegaconf"])
def test_pretrained(tmp_path, changes, layout):
    settings = {**SETTINGS, **changes}
    state = tensors(settings)
    task = {"normalize": bool(changes), "sample_rate": 16_000}
    both = {"model": {**settings, "_name": "wav2vec2", "quantizer": LatentKind.DEFAULT}, "task": task}
    content = {
        "args": {"args": argparse.Namespace(**settings, **task, arch="wav2vec2")},
        "cfg": {"args": None, "cfg": both},
        "omegaconf": {"args": None, "cfg": omegaconf_like(both)},
    }[layout]
    path = tmp_path / "w2v.pt"
    optimizer = {"state": {0: {"exp_avg": torch.randn(3)}}}
    torch.save({**content, "model": {**state, **head(settings)}, "last_optimizer_state": optimizer}, path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["normalize"] == bool(changes)
    options = checkpoint.config["objective"]
    assert (options["name"], options["code_size"], options["final_size"]) == ("wav2vec2", 8, 8)
    assert (options["feature_gradient_scale"], options["mask_start_probability"]) == (0.1, pytest.approx(0.065))
    assert checkpoint.config["encoder"]["dropout"] == 0.05
    build_model(checkpoint)
    waveform = torch.randn(8_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = speechssl.load_encoder(path)(waveform[None], torch.tensor([8_000]))
    expected = expected_states(state, settings, waveform)
    # torchaudio gives the layers' outputs, the last without the closing norm of pre-norm.
    for ours, theirs in zip(output.hidden_states[1 : len(expected) + (not changes)], expected, strict=False):
        torch.testing.assert_close(ours[0], theirs, atol=2e-5, rtol=1e-5)


def write_ctc(folder, *, num_outputs=8, words=WORDS, layout="cfg"):
    settings = {**SETTINGS, **LARGE}
    state = {f"w2v_encoder.w2v_model.{name}": x for name, x in tensors(settings).items()}
    state["w2v_encoder.proj.weight"] = torch.randn(num_outputs, 24)
    state["w2v_encoder.proj.bias"] = torch.randn(num_outputs)
    task = {"normalize": True, "sample_rate": 16_000}
    if layout == "cfg":
        model = {"_name": "wav2vec_ctc", "layerdrop": 0.2, "w2v_args": {"model": settings, "task": task}}
        content = {"args": None, "cfg": {"model": model, "task": task}}
    else:
        content = {"args": argparse.Namespace(arch="wav2vec_ctc", w2v_args=argparse.Namespace(**settings), **task)}
    torch.save({**content, "model": state}, folder / "ctc.pt")
    if words:
        (folder / "dict.ltr.txt").write_text("".join(f"{word} {9 - i}\n" for i, word in enumerate(words)))
    return folder / "ctc.pt"


@pytest.mark.parametrize("layout", ["args", "cfg"])
def test_fine_tuned_with_its_dictionary(tmp_path, layout):
    config = load_checkpoint(write_ctc(tmp_path, layout=layout)).config
    assert config["objective"]["vocabulary"] == ["<blank>", "<s>", "</s>", "<unk>", " ", "E", "T", "A"]
    assert config["normalize"] and config["encoder"]["layer_drop"] == (0.2 if layout == "cfg" else 0.0)


def test_a_recogniser_goes_to_transformers(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"source={write_ctc(tmp_path)}", f"out={out}", "format=huggingface"]
    assert cli.main(["convert", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "torchaudio" in printed and "transformers" in printed and "verdict: agrees" in printed
    vocabulary = json.loads((out / "vocab.json").read_text())
    assert vocabulary == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5, "T": 6, "A": 7}


def test_a_dictionary_that_does_not_fit_is_one_sentence(tmp_path, capsys):
    source = write_ctc(tmp_path, words=[*WORDS, "X"])
    assert cli.main(["convert", f"source={source}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "5 symbols" in error


def test_hubert_without_projection_goes_to_hubert(tmp_path, capsys):
    convolutions = "[(24, 10, 5)] + [(24, 3, 2)] * 4 + [(24,2,2)] * 2"
    settings = {**SETTINGS, "conv_feature_layers": convolutions, "_name": "hubert"}
    state = {**tensors(settings, channels=24), "label_embs_concat": torch.rand(9, 8)}
    state |= {"final_proj.weight": torch.rand(8, 24), "final_proj.bias": torch.rand(8)}
    torch.save({"cfg": {"model": settings, "task": {"normalize": False}}, "model": state}, tmp_path / "hubert.pt")
    out = tmp_path / "out"
    assert cli.main(["convert", f"source={tmp_path / 'hubert.pt'}", f"out={out}", "format=huggingface"]) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["HubertModel"]
    assert "label_embs_concat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"activation_fn": "relu"}, "activation_fn"),
        ({"layer_type": "conformer"}, "layer_type"),
        ({"pos_conv_depth": 5}, "pos_conv_depth"),
        ({"extractor_mode": "batch"}, "extractor_mode"),
        ({"quantize_input": True}, "quantize_input"),
        ({"encoder_layers": "two"}, "encoder_layers"),
        ({"conv_feature_layers": "__import__('os').system('touch ran')"}, "conv_feature_layers"),
        ({"conv_feature_layers": "[(16, 10, 5)] * 10 ** 9"}, "conv_feature_layers"),
        ({"conv_feature_layers": "[(16, 10)]"}, "conv_feature_layers"),
        ({"encoder_attention_heads": 7}, "num_heads"),
    ],
)
def test_settings_that_cannot_be_honoured_are_one_sentence(tmp_path, capsys, change, word):
    path = tmp_path / "a.pt"
    torch.save({"cfg": {"model": {**SETTINGS, **change}}, "model": tensors(SETTINGS)}, path)
    assert cli.main(["convert", f"source={path}", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and word in error


def test_other_pickles_are_not_taken_for_fairseq(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    assert not fairseq.is_fairseq(tmp_path / "a.pt")
