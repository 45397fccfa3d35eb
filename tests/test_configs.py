"""Every yaml composes, every `_target_` takes the keys beside it, and commands in the docs are understood."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
from omegaconf import DictConfig

from speechssl import cli
from speechssl.config import MISSING, compose, compose_partial, config_dir, leaves, options, verb_groups

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = config_dir()
VERBS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
READ_BY_THE_RUN = ("name", "max_steps", "best", "lr")  # not by the object that a `_target_` makes
CHOICES = [
    (verb, group, option)
    for verb in VERBS
    for group in verb_groups(verb, configs=CONFIGS)
    for option in options(group, configs=CONFIGS)
]


def complete(verb, *overrides):
    """The config of a verb, what it needs filled with something."""
    groups = verb_groups(verb, configs=CONFIGS)
    given = {override.split("=")[0] for override in overrides}
    needed = [
        f"{group}={options(group, configs=CONFIGS)[0]}"
        for group, default in groups.items()
        if default in (MISSING, None) and group not in given  # None: references to that group resolve too
    ]
    partial, _ = compose_partial(verb, [*needed, *overrides], configs=CONFIGS)
    needed += [f"{key}=1" for key, value in leaves(partial) if value == MISSING]
    return compose(verb, [*needed, *overrides])


def targets(node):
    """Every node below that names a `_target_`."""
    if "_target_" in node:
        yield node
    for key in node:
        if isinstance(node[key], DictConfig):
            yield from targets(node[key])


def test_every_command_has_a_config_and_every_config_a_command():
    assert sorted(cli.verbs()) == VERBS


def test_every_group_belongs_to_a_command():
    used = {group for _, group, _ in CHOICES}
    parts = set(CONFIGS.glob("*/parts/*.yaml"))  # what several options of a group have in common
    assert {str(path.parent.relative_to(CONFIGS)) for path in set(CONFIGS.glob("*/**/*.yaml")) - parts} <= used
    for part in parts:
        assert sum(f"parts/{part.stem}@" in path.read_text() for path in part.parent.parent.glob("*.yaml")) > 1


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_compose(verb):
    complete(verb)


@pytest.mark.parametrize(("verb", "group", "option"), CHOICES)
def test_every_option_composes_and_its_targets_take_its_keys(verb, group, option):
    for node in targets(complete(verb, f"{group}={option}")):
        target = node["_target_"]
        assert target.startswith("speechssl.")
        module, _, name = target.rpartition(".")
        keys = {key: None for key in node if key not in ("_target_", *READ_BY_THE_RUN)}
        inspect.signature(getattr(importlib.import_module(module), name)).bind_partial(**keys)


def commands(text):
    """The command lines of speechssl that a text shows, as (verb, overrides)."""
    text = text.replace("\\\n", " ")
    for line in re.findall(r"^(?:    |  |\$ )?(?:\.venv/bin/)?speechssl ([a-z]+ .*=.*)$", text, flags=re.M):
        verb, *overrides = shlex.split(re.split(r"\s[>|&]", line)[0], comments=True)
        yield verb, overrides


SHOWN = [
    *commands(cli.EXAMPLES),
    *commands((ROOT / "README.md").read_text(encoding="utf-8")),
    *(command for verb in cli.verbs() for command in commands(cli.help_text(verb, []))),
]


def test_a_task_brings_settings_of_the_encoder_and_the_command_line_wins():
    found = complete("finetune", "task=ctc_few", "encoder.reset_layers=1")
    assert (found.encoder.reset_layers, found.encoder.dropout, found.data.batch_seconds) == (1, 0.1, 10)
    assert (found.task.name, found.optim.lr, found.trainer.max_steps) == ("ctc", 1e-3, 1500)


@pytest.mark.parametrize(("verb", "overrides"), SHOWN)
def test_the_commands_that_users_are_shown_are_understood(verb, overrides):
    compose(verb, overrides)


@pytest.mark.parametrize("verb", cli.verbs())
def test_every_command_shows_an_example(verb):
    assert verb in {shown for shown, _ in commands(cli.help_text(verb, []))}


@pytest.mark.parametrize(
    ("verb", "runs", "own", "not_taken"),
    [
        ("hubert", "pretrain", {"iterations", "clusters", "layer"}, {"init"}),
        (
            "selftrain",
            "finetune",
            {"rounds", "keep_share", "min_confidence", "labelled_share", "data.unlabelled"},
            set(),
        ),
    ],
)
def test_a_verb_that_runs_another_takes_its_keys(verb, runs, own, not_taken):
    choice = ["objective=hubert"] if runs == "pretrain" else []
    keys, others = ({key for key, _ in leaves(complete(name, *choice))} for name in (verb, runs))
    keys = {key for key in keys if not key.startswith("decoder.")}
    assert keys - others == own
    assert others - keys == not_taken
