"""Folders in the format of Hugging Face's transformers, read without transformers.

A folder holds config.json, the weights (safetensors, or a pickle that is read by interop.pickles), and beside them how
clips are prepared (preprocessor_config.json or processor_config.json) and what the outputs stand for (vocab.json,
tokenizer_config.json, added_tokens.json). Fields of config.json that change what is computed are honoured, or refused
with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.data.text import BLANK
from speechssl.errors import UserError
from speechssl.interop import foreign, pickles
from speechssl.interop.foreign import Foreign
from speechssl.models.encoder import EncoderConfig
from speechssl.training.checkpoint import read_json, read_tensors

# model_type in config.json: the prefix of the encoder's tensors under a head, and the stem of its classes' names.
TYPES = {
    "wav2vec2": ("wav2vec2.", "Wav2Vec2"),
    "hubert": ("hubert.", "Hubert"),
    "data2vec-audio": ("data2vec_audio.", "Data2VecAudio"),
    "wavlm": ("wavlm.", "WavLM"),
}
HEADS = {"none": "Model", "ctc": "ForCTC", "wav2vec2": "ForPreTraining", "classify": "ForSequenceClassification"}
HEAD_PARTS = ("lm_head.", "quantizer.", "project_hid.", "project_q.", "projector.", "classifier.", "layer_weights")
# Our own field of config.json: the manifest's column that a classifier tells apart.
LABEL_COLUMN = "label_column"
# The files beside the weights that come along, and go back as they came.
FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# transformers' own defaults of the fields that are read here.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "activation_dropout": 0.1,
    "attention_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "feat_proj_layer_norm": True,
    "feat_quantizer_dropout": 0.0,
    "final_dropout": 0.1,
    "layerdrop": 0.1,
    "layer_norm_eps": 1e-5,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_dim": (512,) * 7,
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "conv_pos_kernel_size": 19,
    "conv_pos_batch_norm": False,
    "do_stable_layer_norm": False,
    "num_buckets": 320,
    "max_bucket_distance": 800,
    "apply_spec_augment": True,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "num_codevectors_per_group": 320,
    "num_codevector_groups": 2,
    "contrastive_logits_temperature": 0.1,
    "num_negatives": 100,
    "codevector_dim": 256,
    "proj_codevector_dim": 256,
    "diversity_loss_weight": 0.1,
    "pad_token_id": 0,
    "classifier_proj_size": 256,
    "use_weighted_layer_sum": False,
    "add_adapter": False,
}


class Fields:
    """config.json with transformers' defaults and types."""

    def __init__(self, values: Mapping[str, Any], source: Path):
        self.values, self.source = values, source

    def __getitem__(self, name: str) -> Any:
        default = DEFAULTS[name]
        if name == "num_conv_pos_embeddings" and self.values.get("model_type") == "data2vec-audio":
            default = 5
        value = self.values.get(name, default)
        if isinstance(default, tuple):
            fits = isinstance(value, list | tuple) and all(_is_whole(x) and x > 0 for x in value)
            value = tuple(value) if fits else value
        elif isinstance(default, bool):
            fits = isinstance(value, bool)
        elif isinstance(default, int):
            fits = _is_whole(value) and value >= (0 if name in ("pad_token_id", "mask_time_min_masks") else 1)
        elif isinstance(default, float):
            fits = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        else:
            fits = isinstance(value, str)
        if not fits:
            raise UserError(f"{self.source}: its config.json has {name} = {value!r}, which cannot be; correct it")
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read(folder: Path) -> Foreign:
    """The model in a folder.

    Raises:
        UserError: it is damaged, of another architecture, or its config asks for what is not built here.
    """
    config = read_json(folder / "config.json")
    fields = Fields(config, folder)
    kind = config.get("model_type")
    if kind not in TYPES:
        raise UserError(f"{folder} holds a model of type {kind!r}, and only {', '.join(TYPES)} can be read")
    _refuse(fields)
    tensors, weights = _read_weights(folder)
    prefix, _ = TYPES[kind]
    has_prefix = any(name.startswith(prefix) for name in tensors)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    objective, blank = {"name": "none"}, 0
    if "lm_head.weight" in tensors:
        objective, blank = _ctc(folder, fields, num_outputs=len(tensors["lm_head.weight"]))
    elif kind == "wav2vec2" and "quantizer.codevectors" in tensors:
        objective = _pretraining(fields)
    elif {"projector.weight", "classifier.weight"} <= tensors.keys() and not _is_other_classifier(fields, tensors):
        objective = _classifier(fields, num_outputs=len(tensors["classifier.weight"]))
    sample_rate, normalize = _preprocessing(folder)
    found = {name: read_json(folder / name) for name in FILES if (folder / name).is_file()}
    return Foreign(
        source=folder,
        encoder=encoder_config(fields),
        objective=objective,
        tensors=tensors,
        sample_rate=sample_rate,
        normalize=normalize,
        blank=blank,
        origin={"toolkit": "huggingface", "model_type": kind, "prefix": has_prefix, "weights": weights, "files": found},
    )


def class_name(config: Mapping[str, Any], head: str) -> str:
    """The class of transformers for a config.json and our head."""
    return TYPES[config["model_type"]][1] + HEADS[head]


def download(name: str) -> Path:
    """The folder of a model on the Hugging Face hub, from its cache or the network."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"hf:{name} needs huggingface_hub: install it with `pip install 'speechssl[hub]'`, or give a local folder"
        ) from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:  # huggingface_hub's own errors, and those of the network, are both
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"hf:{name} cannot be fetched ({reason}); check the name and the network") from error
    return folder


def _refuse(fields: Fields) -> None:
    """UserError for what the encoder here does not compute."""
    source, values = fields.source, fields.values
    for name in ("hidden_act", "feat_extract_activation"):
        if fields[name] not in ("gelu", "gelu_python"):  # two names of the exact GELU
            raise UserError(f"{source} has {name} = {fields[name]!r}, and only 'gelu' is built here")
    if fields["add_adapter"] or values.get("adapter_attn_dim") is not None:
        raise UserError(f"{source} has adapters (add_adapter or adapter_attn_dim), which are not built here")
    if values["model_type"] == "hubert" and fields["conv_pos_batch_norm"]:
        raise UserError(f"{source} has conv_pos_batch_norm, a batch norm before the positions, which is not built here")
    if values.get("quantization_config"):
        raise UserError(f"{source} holds quantized weights, which cannot be read; use the weights before that")
    if fields["feat_extract_norm"] not in ("group", "layer"):
        raise UserError(f"{source} has feat_extract_norm = {fields['feat_extract_norm']!r}, not 'group' or 'layer'")


def encoder_config(fields: Fields) -> EncoderConfig:
    """The encoder that a config.json describes."""
    kind = fields.values["model_type"]
    is_data2vec = kind == "data2vec-audio"  # always layer norm, always after the sum
    near = fields["num_buckets"] // 4
    if kind == "wavlm" and (near < 1 or fields["max_bucket_distance"] <= near):
        raise UserError(f"{fields.source} has num_buckets and max_bucket_distance that give no buckets; correct them")
    try:
        return EncoderConfig(
            conv_channels=fields["conv_dim"],
            conv_kernels=fields["conv_kernel"],
            conv_strides=fields["conv_stride"],
            conv_norm="layer" if is_data2vec else fields["feat_extract_norm"],
            conv_bias=fields["conv_bias"],
            hidden_size=fields["hidden_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            feed_forward_size=fields["intermediate_size"],
            position_kernel=fields["conv_pos_kernel_size" if is_data2vec else "num_conv_pos_embeddings"],
            position_groups=fields["num_conv_pos_embedding_groups"],
            pre_norm=fields["do_stable_layer_norm"] and not is_data2vec,
            dropout=fields["hidden_dropout"],
            attention_dropout=fields["attention_dropout"],
            activation_dropout=fields["activation_dropout"],
            projection_dropout=fields["feat_proj_dropout"],
            layer_drop=fields["layerdrop"],
            norm_eps=fields["layer_norm_eps"],
            feature_norm=fields["feat_proj_layer_norm"] if kind == "hubert" else True,
            position_layers=fields["num_conv_pos_embeddings"] if is_data2vec else None,
            relative_buckets=fields["num_buckets"] if kind == "wavlm" else None,
            relative_distance=fields["max_bucket_distance"],
        )
    except UserError as error:
        raise UserError(f"{fields.source}: {error}") from error


def _masking(fields: Fields) -> dict[str, Any]:
    """transformers gives the fraction of frames, here it is that of starts."""
    share = fields["mask_time_prob"] if fields["apply_spec_augment"] else 0.0
    return {"mask_start_probability": share / fields["mask_time_length"], "mask_span": fields["mask_time_length"]}


def _pretraining(fields: Fields) -> dict[str, Any]:
    """Options of Wav2Vec2ForPreTraining's loss, which has no feature penalty and scales no gradient."""
    return foreign.options(
        "objective",
        "wav2vec2",
        num_groups=fields["num_codevector_groups"],
        num_codewords=fields["num_codevectors_per_group"],
        code_size=fields["codevector_dim"],
        final_size=fields["proj_codevector_dim"],
        num_distractors=fields["num_negatives"],
        temperature=fields["contrastive_logits_temperature"],
        diversity_weight=fields["diversity_loss_weight"],
        feature_penalty=0.0,
        feature_gradient_scale=1.0,
        feature_dropout=fields["feat_quantizer_dropout"],
        mask_min_spans=fields["mask_time_min_masks"],
        gumbel_end=0.5,
        **_masking(fields),
    )


def _ctc(folder: Path, fields: Fields, *, num_outputs: int) -> tuple[dict[str, Any], int]:
    """Options of a CTC head, and which output is its blank."""
    symbols, blank, lowercase = _symbols(folder, fields, num_outputs)
    masking = _masking(fields)
    return foreign.options(
        "task", "ctc", vocabulary=symbols, lowercase=lowercase, dropout=fields["final_dropout"], **masking
    ), blank


def _is_other_classifier(fields: Fields, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a classifier is an x-vector, or weighs the layers of a pre-norm encoder.

    Those weights mean one thing in transformers 4 and another in 5, which takes the last layer before its norm.
    """
    pre_norm = fields["do_stable_layer_norm"] and fields.values["model_type"] != "data2vec-audio"
    return any(name.startswith("tdnn.") for name in tensors) or (fields["use_weighted_layer_sum"] and pre_norm)


def _classifier(fields: Fields, *, num_outputs: int) -> dict[str, Any]:
    """Options of the head of ...ForSequenceClassification."""
    named = fields.values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(num_outputs)}
    places = [str(i) for i in range(num_outputs)]
    fits = isinstance(named, dict) and sorted(named) == sorted(places)
    if not fits or len(set(map(str, named.values()))) < num_outputs:
        raise UserError(
            f"{fields.source}: its id2label does not name each of the {num_outputs} outputs of its classifier apart; "
            "use the config.json that belongs to the weights"
        )
    return foreign.options(
        "task",
        "classify",
        labels=[str(named[i]) for i in places],
        label=str(fields.values.get(LABEL_COLUMN, "speaker")),
        layers="weighted" if fields["use_weighted_layer_sum"] else "last",
        projection_size=fields["classifier_proj_size"],
        pooling="mean",
        norm=False,
        dropout=0.0,
    )


def _symbols(folder: Path, fields: Fields, num_outputs: int) -> tuple[list[str], int, bool]:
    """What each output stands for, the blank first; which output that is; whether the text is lower-cased."""
    blank = fields["pad_token_id"]
    if not (folder / "vocab.json").is_file():
        if blank >= num_outputs:
            raise UserError(f"{folder} has pad_token_id {blank}, the blank, but only {num_outputs} outputs; correct it")
        return foreign.unnamed_symbols(num_outputs, blank, folder), blank, False
    settings = _optional(folder / "special_tokens_map.json") | _optional(folder / "tokenizer_config.json")
    tokens = _tokens(folder, settings)
    pad = _content(settings.get("pad_token", "<pad>"))
    found = [i for i, token in tokens.items() if token == pad]
    if not found:
        raise UserError(f"{folder}: its vocab.json lacks the pad token {pad!r}, which is the blank; correct it")
    if found[0] != blank and "pad_token_id" in fields.values:
        raise UserError(
            f"{folder}: the blank is output {blank} in config.json (pad_token_id) but {found[0]} in vocab.json; "
            "correct one of them"
        )
    [blank] = found
    missing = sorted(set(range(num_outputs)) - tokens.keys())
    surplus = sorted(i for i in tokens.keys() - set(range(num_outputs)) if not tokens[i].startswith("<"))
    if missing or surplus or blank >= num_outputs:
        raise UserError(
            f"{folder}: its vocab.json has {len(tokens)} tokens and its head {num_outputs} outputs, which do not fit "
            "each other; use the vocab.json that belongs to the weights"
        )
    lowercase = settings.get("do_lower_case") is True
    delimiter = _content(settings.get("word_delimiter_token", "|"))
    space = settings.get("replace_word_delimiter_char", " ")
    symbols = [BLANK]
    for i in foreign.blank_first(blank, num_outputs)[1:]:
        token = space if tokens[i] == delimiter else tokens[i]
        symbols.append(token.lower() if lowercase else token)
    return symbols, blank, lowercase


def _tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, str]:
    """Each output's token; tokens added later have their own file, or their place in the tokenizer's config."""
    tokens: dict[int, str] = {}
    added = settings.get("added_tokens_decoder") or {}
    sources = [
        {_content(token): int(i) for i, token in added.items() if i.isdigit()} if isinstance(added, dict) else {},
        _optional(folder / "added_tokens.json"),
        read_json(folder / "vocab.json"),
    ]
    for source in sources:
        for token, i in source.items():
            if not _is_whole(i) or i < 0:
                raise UserError(f"{folder}: its vocab.json gives {token!r} the number {i!r}; correct it")
            tokens[i] = token
    return tokens


def _content(token: Any) -> str:
    """A token, which may be written with settings of its own."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _preprocessing(folder: Path) -> tuple[int, bool]:
    """Sample rate, and whether clips are normalised; transformers' defaults where nothing says."""
    processor = _optional(folder / "processor_config.json").get("feature_extractor")
    settings = _optional(folder / "preprocessor_config.json") or (processor if isinstance(processor, dict) else {})
    kind = settings.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
    if kind != "Wav2Vec2FeatureExtractor" or settings.get("feature_size", 1) != 1:
        raise UserError(f"{folder} wants its audio from {kind}, and only raw waveforms are built here")
    rate, normalize = settings.get("sampling_rate", 16_000), settings.get("do_normalize", True)
    if not _is_whole(rate) or rate < 1 or not isinstance(normalize, bool):
        raise UserError(
            f"{folder}: its preprocessor has sampling_rate {rate!r}, do_normalize {normalize!r}; correct it"
        )
    return rate, normalize


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors by name, and the kind of file they came from."""
    for name, load in (("model.safetensors", read_tensors), ("pytorch_model.bin", read_pickle)):
        if (folder / name).is_file():
            return load(folder / name), name
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or any(Path(str(x)).name != x for x in places.values()):
                raise UserError(f"{index} does not say in which file beside it each tensor is; use another copy")
            tensors: dict[str, Tensor] = {}
            for shard in sorted(set(places.values())):
                tensors |= load(folder / shard)
            return tensors, name
    raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin; copy the weights there")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, read without running it."""
    content = pickles.load(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a plain dictionary of tensors; use another file")
    return content
