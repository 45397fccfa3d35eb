"""Our checkpoints as folders that Hugging Face's transformers loads, without transformers.

What came from such a folder goes back as it came: its own files, its own names. Anything else gets the config.json that
interop.huggingface reads, and is refused with a sentence where transformers has no class that computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.data.text import BLANK
from speechssl.errors import UserError
from speechssl.interop import foreign
from speechssl.interop.huggingface import DEFAULTS, FILES, HEAD_PARTS, HEADS, LABEL_COLUMN, TYPES, class_name
from speechssl.interop.names import WEIGHT_NORMS, rename_weight_norm
from speechssl.models.encoder import EncoderConfig
from speechssl.training.checkpoint import Checkpoint


def folder_files(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The JSON files of the folder that transformers loads, by name.

    Raises:
        UserError: transformers has no class for this encoder or head.
    """
    config, origin = checkpoint.config, checkpoint.config.get("origin", {})
    head = config["objective"]["name"]
    if head not in HEADS:
        raise UserError(
            f"{checkpoint.folder} has a head of kind {head!r}, and transformers has none of that shape; convert the "
            "encoder that it was trained from"
        )
    if origin.get("toolkit") == "huggingface":
        return {name: content for name, content in origin["files"].items() if name in FILES}
    encoder = EncoderConfig.from_dict(config["encoder"])
    difference = classifier_difference(config["objective"], encoder) if head == "classify" else None
    if difference:
        raise UserError(
            f"{checkpoint.folder} has a classifier with {difference}, and transformers has none of that shape; "
            f"fine-tune one that it has with task=superb{' task.layers=last' if encoder.pre_norm else ''}"
        )
    kind = _kind(checkpoint.folder, encoder, origin.get("model_type"), head)
    files = {"config.json": _config(kind, encoder, config["objective"])}
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": config["sample_rate"],
        "do_normalize": config["normalize"],
        "padding_value": 0.0,
        "padding_side": "right",
        # A group norm runs over the padding whatever the mask says; transformers' own models do without.
        "return_attention_mask": encoder.conv_norm == "layer",
    }
    files["preprocessor_config.json"] = preprocessor
    if head == "ctc":
        preprocessor["processor_class"] = "Wav2Vec2Processor"
        files |= _tokenizer(config["objective"]["vocabulary"])
    return files


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors under the names that transformers (or the folder they came from) has for them."""
    config, origin = checkpoint.config, checkpoint.config.get("origin", {})
    found = foreign.common_tensors(checkpoint)
    if origin.get("toolkit") == "huggingface":
        names, has_prefix, kind = tuple(origin["weight_norm"]), origin["prefix"], origin["model_type"]
    else:
        encoder, head = EncoderConfig.from_dict(config["encoder"]), config["objective"]["name"]
        kind = _kind(checkpoint.folder, encoder, origin.get("model_type"), head)
        names, has_prefix = WEIGHT_NORMS[1], head != "none"
    found, _ = rename_weight_norm(found, names)
    prefix = TYPES[kind][0] if has_prefix else ""
    return {name if name.startswith(HEAD_PARTS) else f"{prefix}{name}": tensor for name, tensor in found.items()}


def classifier_difference(objective: Mapping[str, Any], encoder: EncoderConfig) -> str | None:
    """The first option that makes a classifier other than that of ...ForSequenceClassification, as an override."""
    defaults = foreign.options("task", "classify")  # for checkpoints from before an option
    values = {key: objective.get(key, defaults[key]) for key in defaults if key not in ("name", "label")}
    for key, wanted in (("pooling", "mean"), ("norm", False), ("loss", "softmax"), ("embedding_size", None)):
        if values[key] != wanted:
            return f"task.{key}={str(values[key]).lower()}"
    if values["tdnn"]:
        return f"task.tdnn={list(values['tdnn'])}"
    if not values["projection_size"]:
        return "task.projection_size=null"
    if values["layers"] == "weighted" and encoder.pre_norm:
        # transformers 4 weighs the last layer after its norm, transformers 5 before.
        return "task.layers=weighted over a pre-norm encoder"
    return None


def _kind(source: Path, encoder: EncoderConfig, wanted: str | None, head: str) -> str:
    """The model_type that computes what the encoder does."""
    plain = encoder.feature_norm and not encoder.position_layers and not encoder.relative_buckets
    fits = {
        "wav2vec2": plain,
        "hubert": not encoder.position_layers and not encoder.relative_buckets and head != "wav2vec2",
        "data2vec-audio": bool(encoder.position_layers)
        and encoder.feature_norm
        and not encoder.relative_buckets
        and encoder.conv_norm == "layer"
        and not encoder.pre_norm,
        "wavlm": bool(encoder.relative_buckets) and encoder.feature_norm and not encoder.position_layers,
    }
    if head == "wav2vec2":
        fits |= {"data2vec-audio": False, "wavlm": False}
    for kind in (wanted, *fits):
        if fits.get(kind or ""):
            return str(kind)
    raise UserError(f"{source}: transformers has no model that computes what this encoder and head do")


def _config(kind: str, encoder: EncoderConfig, objective: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, every field that is read above."""
    is_data2vec = kind == "data2vec-audio"
    share = objective.get("mask_start_probability", 0.0) * objective.get("mask_span", 10)
    values = {
        "model_type": kind,
        "architectures": [class_name({"model_type": kind}, objective["name"])],
        "dtype": "float32",
        "conv_dim": list(encoder.conv_channels),
        "conv_kernel": list(encoder.conv_kernels),
        "conv_stride": list(encoder.conv_strides),
        "num_feat_extract_layers": len(encoder.conv_channels),
        "conv_bias": encoder.conv_bias,
        "feat_extract_norm": encoder.conv_norm,
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.feed_forward_size,
        "num_conv_pos_embeddings": encoder.position_layers if is_data2vec else encoder.position_kernel,
        "num_conv_pos_embedding_groups": encoder.position_groups,
        "do_stable_layer_norm": encoder.pre_norm,
        "hidden_dropout": encoder.dropout,
        "attention_dropout": encoder.attention_dropout,
        "activation_dropout": encoder.activation_dropout,
        "feat_proj_dropout": encoder.projection_dropout,
        "layerdrop": encoder.layer_drop,
        "layer_norm_eps": encoder.norm_eps,
        # transformers has the vector that hides frames only where this is not 0.
        "mask_time_prob": share or DEFAULTS["mask_time_prob"],
        "mask_time_length": objective.get("mask_span", 10),
        "mask_time_min_masks": objective.get("mask_min_spans", 2),
        "apply_spec_augment": bool(share) or objective["name"] not in ("ctc", "classify"),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if is_data2vec:
        values["conv_pos_kernel_size"] = encoder.position_kernel
    if kind == "hubert":
        values["feat_proj_layer_norm"] = encoder.feature_norm
    if kind == "wavlm":
        values |= {"num_buckets": encoder.relative_buckets, "max_bucket_distance": encoder.relative_distance}
    if objective["name"] == "ctc":
        values |= {
            "vocab_size": len(objective["vocabulary"]),
            "pad_token_id": 0,
            "final_dropout": objective["dropout"],
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
        }
    if objective["name"] == "classify":
        labels = objective["labels"]
        values |= {
            "classifier_proj_size": objective["projection_size"],
            "use_weighted_layer_sum": objective["layers"] == "weighted",
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            LABEL_COLUMN: objective["label"],
        }
    if objective["name"] == "wav2vec2":
        values |= {
            "num_codevector_groups": objective["num_groups"],
            "num_codevectors_per_group": objective["num_codewords"],
            "codevector_dim": objective["code_size"],
            "proj_codevector_dim": objective["final_size"],
            "num_negatives": objective["num_distractors"],
            "contrastive_logits_temperature": objective["temperature"],
            "diversity_loss_weight": objective["diversity_weight"],
            "feat_quantizer_dropout": objective["feature_dropout"],
        }
    return values


def _tokenizer(vocabulary: list[str]) -> dict[str, dict[str, Any]]:
    """vocab.json and tokenizer_config.json: the blank is the pad token, the space is written as a delimiter."""
    pad = BLANK if "<pad>" in vocabulary else "<pad>"
    symbols = [pad, *vocabulary[1:]]
    delimiter = " " if "|" in symbols else "|"
    tokens = [delimiter if symbol == " " else symbol for symbol in symbols]
    settings = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "processor_class": "Wav2Vec2Processor",
        "pad_token": pad,
        "unk_token": "<unk>",
        "bos_token": None,
        "eos_token": None,
        "word_delimiter_token": delimiter,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": False,
    }
    return {"vocab.json": {token: i for i, token in enumerate(tokens)}, "tokenizer_config.json": settings}
