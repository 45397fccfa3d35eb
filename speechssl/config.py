"""From a verb and its `key=value` overrides to a complete, checked config, and from its nodes to objects.

Hydra's Compose API reads the verb's root config and its groups (`model=small`): nothing changes directory,
writes `outputs/` or takes over logging. The values are set here, not by Hydra, because its override grammar
rejects paths with `=`, quotes, brackets or non-ASCII letters, and so that a mistake gets one plain sentence:

- a key must be in the composed config: nothing can be added, removed or misspelt unnoticed;
- the yaml's value decides the type: a whole number stays one (write `10.0` in a yaml where 0.5 is possible),
  while `null` and `???` take anything;
- a path key, and a key whose yaml value is text, is taken literally, whatever characters the value has.
  A path key's value that begins with `[` is a list (write `./[name` for a file called so), which only a key
  whose yaml value is a list takes;
- `null` unsets a key whose yaml value is `null` or `???`, and the keys in NULLABLE.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from speechssl.errors import UserError

MISSING = "???"

# Keys of an objective's or task's yaml that say how to train it, and are no settings of its own.
OF_TRAINING = ("_target_", "max_steps", "best", "lr")

# Keys that hold a path, and what stands for one in help and messages.
PATH_KEYS = {
    "audio": "FILE_OR_DIR",
    "other": "FILE",
    "out": "DIR",
    "run_dir": "DIR",
    "init": "CHECKPOINT",
    "checkpoint": "CHECKPOINT",
    "source": "DIR_OR_FILE",
    "json": "FILE",
    "trials": "FILE",
    "cohort": "FILE",
    "voices": "DIR",
    "calibration": "FILE",
    "data.enrol": "FILE",
    "data.verify": "FILE",
    "data.unlabelled": "FILE",
    "decoder.lm": "FILE",
    "decoder.lexicon": "FILE",
    "decoder.weights": "FILE",
    "against": "FILE",
    "text": "FILE",
    "corpus.root": "DIR",
    "objective.labels": "DIR",
    "task.teacher": "CHECKPOINT",
    "task.lm": "FILE",
    "augment.noise": "FILE",
    "augment.room": "FILE",
    "data.train": "FILE",
    "data.valid": "FILE",
    "data.test": "FILE",
    "data.labelled": "FILE",
    "data.speakers": "FILE",
}

# Path keys that also take a list of paths.
LISTS = ("data.train", "run_dir", "data.labelled", "task.teacher")

# What validate() asks of a key, where a verb has it: of its whole name (after its verb), or of the end of it.
CHOICES = {
    "segment": ("none", "windows", "speech"),
    "trainer.device": ("auto", "cpu", "cuda"),
    "trainer.precision": ("fp32", "bf16"),
    "trainer.resume": ("auto", "never", "must"),
    "trainer.parallel": ("ddp", "fsdp"),
    "doctor.act": ("off", "warn", "adjust", "rollback"),
    "benchmark what": ("pretrain", "finetune", "inference", "data"),
    "doctor what": ("run", "env"),
    "plan what": ("plan", "time", "check"),
}
# Keys with a value in the yaml that may be unset all the same.
NULLABLE = ("window_s", "data.max_clip_s")
COUNTS = ("shuffle_buffer", "steps", "threads", "at_once", "_every", "accumulate", "keep_last", ".devices")
RANGES = (
    ("more than 0", lambda x: x > 0, (*COUNTS, "batch_seconds", "window_s", "max_clip_s", ".lr", "temperature")),
    ("more than 0", lambda x: x > 0, ("doctor.patience", "rounds", "days", "memory_gib")),
    ("more than 0", lambda x: x > 0, ("average_best", "bpe_size", "optim.layer_decay", "optim.encoder_scale")),
    ("0 or more", lambda x: x >= 0, ("seed", "context_s", "clip_norm", "num_workers", "weight_decay", "rollbacks")),
    ("0 or more", lambda x: x >= 0, ("trainer.patience", "trainer.restarts")),
    ("0 or more", lambda x: x >= 0, ("lora_rank", "adapter_size", "recurrent_size", "decoder_layers")),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, ("dropout", "layer_drop", "probability")),
    ("more than 0", lambda x: x > 0, ("cohort_top", "batch_clips", "num_masks", "decoder_size")),
    ("more than 0", lambda x: x > 0, ("shard_mib", "segment_s", "data.batches")),
    ("from 0 to 1", lambda x: 0 <= x <= 1, ("_share", "min_confidence")),
    ("more than 0", lambda x: x > 0, ("beam_size", "beam_threshold", "nbest", "order", "jobs")),
    ("above 0 and below 1", lambda x: 0 < x < 1, ("p_target",)),
)

TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", list: "a list such as [a,b]"}


def config_dir() -> Path:
    """Where the configs are: inside the package once installed, at the top of a checkout before."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def compose(verb: str, overrides: Iterable[str] = (), *, configs: Path | None = None) -> DictConfig:
    """The complete config of a verb.

    Args:
        verb: names the root config, configs/VERB.yaml.
        overrides: `key=value` each, as the user wrote them.
        configs: folder of the configs; `config_dir()` where it is not given.

    Raises:
        UserError: no such verb, key or option; a value that is missing, of the wrong type or out of range.
    """
    configs = configs or config_dir()
    try:
        config, absent = compose_partial(verb, overrides, configs=configs)
        needed = [f"{group}=NAME ({_listed(options(group, configs=configs))})" for group in absent]
        needed += [
            f"{key}={PATH_KEYS.get(key, 'VALUE')}"
            for key, value in leaves(config)
            if value == MISSING and key.split(".")[0] not in absent
        ]
        if needed:
            raise UserError(f"speechssl {verb} needs {_listed(needed, last='and')}")
        OmegaConf.to_container(config, resolve=True)  # a reference to nowhere shows now, not later
    except InterpolationResolutionError as error:
        raise UserError(f"speechssl {verb} needs {error.full_key}=VALUE here") from error
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the config of speechssl {verb} cannot be read: {reason}") from error
    validate(verb, config)
    return config


def compose_partial(verb: str, overrides: Iterable[str] = (), *, configs: Path) -> tuple[DictConfig, list[str]]:
    """The config of a verb, where values may be missing, and the groups that must be chosen and were not.

    An absent group is filled with its first option, so that there are keys to list.
    """
    groups = verb_groups(verb, configs=configs)
    pairs = [_split(override) for override in overrides]
    chosen = {key: value for key, value in pairs if key in groups}
    for group, option in chosen.items():
        known = options(group, configs=configs)
        if option not in known:
            raise UserError(
                f"there is no {group}={option}: did you mean {group}={nearest(option, known)}? "
                f"({group} is {_listed(known)})"
            )
    absent = [group for group, default in groups.items() if default == MISSING and group not in chosen]
    filled = {group: options(group, configs=configs)[0] for group in absent}
    with initialize_config_dir(config_dir=str(configs.resolve()), job_name="speechssl", version_base=None):
        config = hydra_compose(verb, [f"{key}={value}" for key, value in {**chosen, **filled}.items()])
    defaults = dict(leaves(config))
    for key, text in pairs:
        if key not in groups:
            value = _value(key, text, _default(key, defaults, verb=verb, groups=groups))
            OmegaConf.update(config, key, value, merge=False)
    return config, absent


def verb_groups(verb: str, *, configs: Path) -> dict[str, str | None]:
    """The groups of a verb and their default options (`???` where one must be chosen, None where none is)."""
    root = configs / f"{verb}.yaml"
    if not root.is_file():
        verbs = sorted(path.stem for path in configs.glob("*.yaml"))
        hint = f": did you mean {nearest(verb, verbs)}?" if verbs else ""
        raise UserError(f"there is no command {verb!r}{hint}")
    groups = {}
    for entry in OmegaConf.to_container(OmegaConf.load(root)).get("defaults", []):
        if isinstance(entry, dict):
            [(name, option)] = entry.items()
            groups[name.split()[-1].lstrip("/")] = option  # `optional model: null` is the group model
    return groups


def options(group: str, *, configs: Path) -> list[str]:
    """The options of a group: its yaml files."""
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def leaves(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable key, dotted, with its value as plain data; `???` where it is missing."""
    for key in config:
        name = f"{prefix}{key}"
        if OmegaConf.is_missing(config, key):
            yield name, MISSING
            continue
        try:
            value = config[key]
        except InterpolationResolutionError:
            value = None  # compose() complains, unless the user sets it
        if isinstance(value, DictConfig):
            yield from leaves(value, f"{name}.")
        elif key != "_target_":
            yield name, list(value) if isinstance(value, ListConfig) else value


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that is most like `word`; a dotted key may be meant by its last part alone."""

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, word, name).ratio()
        last = difflib.SequenceMatcher(None, word.split(".")[-1], name.split(".")[-1]).ratio()
        return max(whole, 0.9 * last)

    return max(known, key=likeness)


def validate(verb: str, config: DictConfig) -> None:
    """Checks on values and across keys, of the keys that the verb has.

    Raises:
        UserError: naming the key and what it may be.
    """
    if verb != "report" and OmegaConf.is_list(config.get("run_dir")):
        raise UserError(f"speechssl {verb} takes one run_dir; only report takes a list of them")
    for key, value in leaves(config):
        choices = CHOICES.get(key) or CHOICES.get(f"{verb} {key}")
        if choices and value not in choices:
            raise UserError(f"speechssl {verb}: {key}={value} must be {_listed(choices)}")
        for wanted, is_inside, ends in RANGES:
            if value is None or not key.endswith(ends):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not is_inside(value):
                raise UserError(f"speechssl {verb}: {key}={value} must be a number, {wanted}")


def build(node: DictConfig, **arguments: Any) -> Any:
    """The object that a node's `_target_` names, called with the node's other keys and `arguments`."""
    values = plain(node)
    return _import(values.pop("_target_"))(**values, **arguments)


def objective_class(name: str) -> type:
    """The class of an objective or task by the name in a checkpoint; the package's own yaml says which."""
    for group in ("objective", "task"):
        if name in options(group, configs=config_dir()):
            return _import(OmegaConf.load(config_dir() / group / f"{name}.yaml")["_target_"])
    raise UserError(f"this speechssl has no objective {name!r}; update it, or use another checkpoint")


def _import(target: str) -> Any:
    if not target.startswith("speechssl."):
        raise ValueError(f"_target_ must be inside speechssl, and is {target}")
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as a dict of plain values, references resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _split(override: str) -> tuple[str, str]:
    """`key=value` -> (key, value); Hydra's `+key` and `++key` mean the same key."""
    key, equals, value = override.partition("=")
    key = key.strip().lstrip("+")
    if not equals or not key or key.startswith(("-", "~")):
        raise UserError(f"{override!r} is not of the form key=value, for example trainer.max_steps=300")
    return key, value


def _default(key: str, defaults: dict[str, Any], *, verb: str, groups: Iterable[str]) -> Any:
    """The yaml's value of a key, which has to be there."""
    if key in defaults:
        return defaults[key]
    for name, value in defaults.items():
        if name.startswith(f"{key}."):
            raise UserError(f"{key} holds several keys: set one of them, for example {name}={value}")
    known = [*defaults, *groups]
    hint = f": did you mean {nearest(key, known)}?" if known else ""
    raise UserError(f"speechssl {verb} has no key {key!r}{hint}")


def _value(key: str, text: str, default: Any) -> Any:
    """What the user wrote for a key, as the type of its default."""
    is_path = key in PATH_KEYS
    if is_path and not text:
        raise UserError(f"{key}= is empty: give {PATH_KEYS[key]}")
    if text == "null" and (default is None or default == MISSING):
        return default
    if text == "null" and key in NULLABLE:
        return None
    if key in LISTS and text.startswith("["):
        return _fit(key, _parse(key, text), [], text)
    if default is None and key.endswith(COUNTS):
        default = 0  # what may be left out is a whole number all the same
    is_text = isinstance(default, str) and default != MISSING
    if isinstance(default, list) or not (is_path or is_text):
        return _fit(key, _parse(key, text), default, text)
    if is_path and text.startswith("["):
        raise UserError(f"{key}={text} is a list, and {key} takes one path: write {key}=./{text} for that name")
    return _escape(text)


def _parse(key: str, text: str) -> Any:
    """A value in Hydra's grammar: number, true, false, word, 'quoted text' or list."""
    wrong = UserError(f"{key}={text} cannot be read: give a number, a word, 'quoted text', or a list such as [a,'b c']")
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException as error:
        raise wrong from error
    if override.is_sweep_override() or isinstance(override.value(), dict):
        raise wrong
    return override.value()


def _fit(key: str, value: Any, default: Any, text: str) -> Any:
    """`value` as the type of `default`; 1e3 is a whole number, and a whole number is a number."""
    if isinstance(default, list):
        if not isinstance(value, list):
            raise UserError(f"{key}={text} must be {TYPE_NAMES[list]}")
        return [_fit(key, item, default[0] if default else None, text) for item in value]
    if default is None or isinstance(default, str):
        return [_fit(key, item, None, text) for item in value] if isinstance(value, list) else _escape(value)
    wanted = type(default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is float and number and math.isfinite(value):
        return float(value)
    if wanted is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    raise UserError(f"{key}={text} must be {TYPE_NAMES[wanted]}")


def _escape(value: Any) -> Any:
    """Text such that OmegaConf reads `${` in it as it stands, not as a reference to another key."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)


def _listed(items: Iterable[str], *, last: str = "or") -> str:
    """`a, b or c`."""
    *most, end = items
    return f"{', '.join(most)} {last} {end}" if most else end
