"""What users write on the command line becomes a config, or one sentence that says what is wrong with it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from speechssl.config import _escape, build, compose, config_dir, nearest, plain
from speechssl.errors import UserError

FILES = {
    "train.yaml": """
defaults:
  - model: small
  - corpus: ???
  - head: null
  - pace: null
  - _self_
run_dir: ???
init: none
source: []
label: speaker
copy: ${run_dir}
data:
  train: ???
  valid: null
  batch_seconds: 80.0
  num_workers: 0
trainer:
  max_steps: 1000
  precision: fp32
  device: auto
  shuffle: true
  limit: null
  limit_share: null
""",
    "model/small.yaml": "_target_: speechssl.errors.UserError\nwidths: [8, 8]\ndropout: 0.1\n",
    "model/large.yaml": "_target_: speechssl.errors.UserError\nwidths: [16, 16]\ndropout: 0.0\n",
    "corpus/folder.yaml": "name: folder\nroot: ???\n",
    "corpus/fsdd.yaml": "name: fsdd\nroot: here\n",
    "pace/by_head.yaml": "steps: ${head.beam}\n",
    "head/ctc.yaml": "beam: 1\n",
}
NEEDED = ["corpus=fsdd", "run_dir=r", "data.train=t.jsonl"]


@pytest.fixture
def configs(tmp_path):
    root = tmp_path / "configs"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def get(configs):
    return lambda *overrides: compose("train", [*NEEDED, *overrides], configs=configs)


def refusal(get, *overrides):
    with pytest.raises(UserError) as caught:
        get(*overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_groups_and_values_reach_the_config(get):
    config = get("model=large", "head=ctc", "corpus=folder", "corpus.root=x", "trainer.max_steps=7")
    assert config.model.widths == [16, 16]
    assert config.head.beam == 1
    assert (config.corpus.name, config.corpus.root) == ("folder", "x")
    assert config.trainer.max_steps == 7
    assert config.trainer.precision == "fp32"


def test_the_last_of_two_values_counts_and_plus_signs_mean_the_same_key(get):
    assert get("trainer.max_steps=7", "trainer.max_steps=8").trainer.max_steps == 8
    assert get("++trainer.max_steps=9").trainer.max_steps == 9


AWKWARD = [
    "a=b/c.jsonl",
    "with space/ü/été 日本.jsonl",
    'it\'s [here], "quoted"',
    "~/data/x.jsonl",
    "a,b,c",
    "{a:1}",
    "$HOME/${run_dir}/\\${x}\\",
    "${oc.env:HOME}",
    "12",
    "true",
    "(x)",
    "x: y # z",
    "C:\\data\\x.jsonl",
    "caf\udce9.wav",  # a byte that is not UTF-8, as Python hands it over
]


@pytest.mark.parametrize("key", ["data.train", "data.valid", "run_dir", "init", "corpus.root"])
@pytest.mark.parametrize("path", AWKWARD)
def test_paths_are_taken_literally(get, key, path):
    config = get(f"{key}={path}")
    assert OmegaConf.select(config, key) == path
    node = plain(config)
    for part in key.split("."):
        node = node[part]
    assert node == path


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.sampled_from("a\\${}:=,'\"[] \n.é~#"), min_size=1))
def test_escaped_text_reads_as_it_was(text):
    config = OmegaConf.create({"key": _escape(text)})
    assert config.key == text
    assert plain(config) == {"key": text}


def test_a_list_of_paths_begins_with_a_bracket(get):
    assert get("source=[a.jsonl,'b=c é.jsonl']").source == ["a.jsonl", "b=c é.jsonl"]
    assert "source=[a" in refusal(get, "source=[a")
    assert "source=a" in refusal(get, "source=a")
    assert "takes one path" in refusal(get, "data.valid=[a,b]")
    assert get("data.train=[a,'b c']").data.train == ["a", "b c"]
    assert get("data.train=./[a,b]").data.train == "./[a,b]"


def test_null_means_none_only_where_nothing_is_a_value(get):
    assert get("data.valid=x", "data.valid=null").data.valid is None
    assert "run_dir=DIR" in refusal(get, "run_dir=null")
    assert "trainer.max_steps=null" in refusal(get, "trainer.max_steps=null")


def test_an_empty_path_is_refused(get):
    assert "data.valid" in refusal(get, "data.valid=")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("trainer.max_step", "trainer.max_steps"),
        ("max_steps", "trainer.max_steps"),
        ("training.max_steps", "trainer.max_steps"),
        ("data.trian", "data.train"),
        ("rundir", "run_dir"),
        ("modle", "model"),
        ("model.droput", "model.dropout"),
        ("hydra.run.dir", "run_dir"),
        ("+trainer.max_step", "trainer.max_steps"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(get, key, near):
    assert f"did you mean {near}?" in refusal(get, f"{key}=1")


def test_an_unknown_option_is_answered_with_the_nearest(get, configs):
    sentence = refusal(get, "model=smal")
    assert "model=small" in sentence and "large" in sentence
    assert "did you mean train?" in refusal(lambda: compose("tran", configs=configs))


def test_what_is_missing_is_named_with_its_form(configs):
    def get(*overrides):
        return compose("train", overrides, configs=configs)

    everything = "speechssl train needs corpus=NAME (folder or fsdd), run_dir=DIR and data.train=FILE"
    assert refusal(get) == everything
    given_all_but_one = ("corpus=folder", "data.train=x", "run_dir=r")
    assert refusal(get, *given_all_but_one) == "speechssl train needs corpus.root=DIR"


def test_a_reference_that_leads_nowhere_can_be_set_or_is_asked_for(get):
    assert get("pace=by_head", "head=ctc").pace.steps == 1
    assert get("pace=by_head", "pace.steps=4").pace.steps == 4
    assert refusal(get, "pace=by_head") == "speechssl train needs pace.steps=VALUE here"


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("trainer.max_steps=ten", "a whole number"),
        ("trainer.max_steps=1.5", "a whole number"),
        ("trainer.max_steps=true", "a whole number"),
        ("trainer.max_steps=[1]", "a whole number"),
        ("data.batch_seconds=long", "a number"),
        ("data.batch_seconds=nan", "a number"),
        ("data.batch_seconds=inf", "a number"),
        ("trainer.shuffle=yes", "true or false"),
        ("trainer.shuffle=1", "true or false"),
        ("model.widths=8", "a list"),
        ("model.widths=[8,x]", "a list"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(get, override, wanted):
    sentence = refusal(get, override)
    assert override in sentence
    assert wanted in sentence or "a whole number" in sentence


@pytest.mark.parametrize(
    "override", ["trainer.limit=1,2", "trainer.limit={a:1}", "trainer.limit=a=b", "trainer.limit=range(1,3)"]
)
def test_what_cannot_be_read_is_refused(get, override):
    assert "cannot be read" in refusal(get, override)


@pytest.mark.parametrize("argument", ["max_steps", "--max_steps=3", "~data.valid", "=3", "-v"])
def test_what_is_not_key_equals_value_is_refused(get, argument):
    assert "key=value" in refusal(get, argument)


def test_a_section_is_not_a_value(get):
    assert "trainer.max_steps=1000" in refusal(get, "trainer=5")


def test_a_target_cannot_be_chosen_by_the_user(get):
    assert "no key 'model._target_'" in refusal(get, "model._target_=os.system")


def test_numbers_take_the_type_of_the_default(get):
    config = get("trainer.max_steps=1e3", "data.batch_seconds=20", "trainer.limit=3", "label=3")
    assert (config.trainer.max_steps, type(config.trainer.max_steps)) == (1000, int)
    assert (config.data.batch_seconds, type(config.data.batch_seconds)) == (20.0, float)
    assert config.trainer.limit == 3
    assert config.label == "3"
    assert get("label=été, oui").label == "été, oui"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainer.limit_share=1.5", "from 0 to 1"),
        ("trainer.limit_share=some", "a number"),
        ("trainer.precision=fp16", "fp32 or bf16"),
        ("trainer.device=gpu", "auto, cpu or cuda"),
        ("trainer.max_steps=0", "more than 0"),
        ("data.batch_seconds=-1", "more than 0"),
        ("data.num_workers=-1", "0 or more"),
        ("model.dropout=1", "below 1"),
    ],
)
def test_values_out_of_range_are_refused(get, override, part):
    sentence = refusal(get, override)
    assert override.split("=")[0] in sentence
    assert part in sentence


def test_nothing_else_changes(get, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*")), list(logging.getLogger().handlers)
    get()
    assert Path.cwd() == tmp_path
    assert (set(tmp_path.rglob("*")), list(logging.getLogger().handlers)) == before


def test_configs_may_lie_in_an_awkward_folder(configs):
    awkward = configs.rename(configs.with_name("a b, c=d é'[x]"))
    assert compose("train", NEEDED, configs=awkward).trainer.max_steps == 1000


def test_build_calls_the_target_with_its_keys(configs):
    node = OmegaConf.create({"_target_": "speechssl.manifest_stub", "a": 1})
    with pytest.raises((ImportError, AttributeError)):
        build(node)
    outside = OmegaConf.create({"_target_": "os.system", "command": "true"})
    with pytest.raises(ValueError, match="inside speechssl"):
        build(outside)
    term = build(OmegaConf.create({"_target_": "speechssl.types.Term", "sum": 2.0, "weight": 0.5}), count=4)
    assert (term.sum, term.count, term.weight) == (2.0, 4, 0.5)


def test_nearest_knows_a_key_by_its_last_part():
    assert nearest("steps", ["a.width", "trainer.max_steps", "optim.lr"]) == "trainer.max_steps"


def test_the_configs_are_found():
    assert config_dir().is_dir()
    assert config_dir().is_absolute()


def test_the_rate_is_the_users_else_the_objectives_else_the_models():
    def rate(*overrides):
        return compose("pretrain", ["model=tiny", "data.train=x", "run_dir=y", *overrides]).optim.lr

    model, objective = (OmegaConf.load(config_dir() / path) for path in ("model/tiny.yaml", "objective/byol.yaml"))
    assert rate() == model.pretrain.lr
    assert rate("objective=byol") == objective.lr != model.pretrain.lr
    assert rate("objective=byol", "optim.lr=0.01") == 0.01
