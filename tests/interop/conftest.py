"""Small models of transformers with random weights, saved as folders, of shapes that nothing else uses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
}
QUANTIZER = {
    "codevector_dim": 12,
    "proj_codevector_dim": 10,
    "num_codevectors_per_group": 7,
    "num_codevector_groups": 3,
    "num_negatives": 5,
}
VOCABULARY = ["<s>", "A", "|", "</s>", "<pad>", "B", "'", "<unk>"]  # the blank is none of the usual places


def make(name: str, *, seed: int = 0, **changes) -> nn.Module:
    """A model of transformers in evaluation mode. Everything is random: no norm or bias is left at 1 or 0."""
    stem = next(s for s in ("Data2VecAudio", "Wav2Vec2", "Hubert", "WavLM") if name.startswith(s))
    config = getattr(transformers, f"{stem}Config")(**{**SMALL, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 and key != "masked_spec_embed":
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save(model: nn.Module, folder: Path, *, vocabulary: list[str] | None = None, **preprocessor) -> Path:
    """The model as a folder, with a processor if it has a vocabulary."""
    model.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if vocabulary:
        path = folder / "vocab.json"
        path.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(path))
        transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def states(model: nn.Module, waveforms: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """For each clip its hidden states [T, C], of each clip alone; the last after the encoder's last norm."""
    found = []
    for waveform in waveforms:
        output = model.base_model(waveform[None], output_hidden_states=True)
        found.append([x[0] for x in (*output.hidden_states[:-1], output.last_hidden_state)])
    return found


def batched_states(model: nn.Module, waveforms: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The same of a padded batch with its attention mask, cut to each clip's frames."""
    lengths = torch.tensor([len(x) for x in waveforms])
    mask = (torch.arange(lengths.max())[None] < lengths[:, None]).long()
    output = model.base_model(pad_sequence(waveforms, batch_first=True), mask, output_hidden_states=True)
    frames = model._get_feat_extract_output_lengths(lengths).tolist()
    layers = (*output.hidden_states[:-1], output.last_hidden_state)
    return [[x[i, :n] for x in layers] for i, n in enumerate(frames)]


def noise(*sizes: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.fixture(scope="session")
def peer() -> SimpleNamespace:
    """The reference models and what they compute."""
    return SimpleNamespace(
        make=make,
        save=save,
        states=states,
        batched_states=batched_states,
        noise=noise,
        vocabulary=VOCABULARY,
        quantizer=QUANTIZER,
    )
