"""The one entry point: `speechssl VERB key=value ...`.

A verb is a module of speechssl/commands with `run(config)`; its docstring is the help text, read without
importing it, so that help is quick and needs no torch. Exit codes: 0 done, 2 what the user gave is wrong (one
sentence), 1 anything else. stdout carries results only; logs go to stderr.
"""

from __future__ import annotations

import ast
import errno
import importlib
import itertools
import logging
import os
import re
import shlex
import sys
import textwrap
import traceback
import warnings
from importlib import metadata
from pathlib import Path

from speechssl import ranks, threads
from speechssl.environment import check_pair
from speechssl.errors import Interrupted, UserError

COMMANDS = Path(__file__).resolve().parent / "commands"

# The order in which a newcomer needs them; verbs that are not named here come after, by name.
ORDER = (
    *("prepare", "pretrain", "finetune", "selftrain", "lm", "tune", "evaluate", "transcribe", "enrol", "identify"),
    *("report", "doctor", "plan", "embed", "probe", "convert"),
)

# Verbs that work where torch does not.
WITHOUT_TORCH = ("doctor",)

EXAMPLES = """\
Examples:
  speechssl prepare    corpus=folder corpus.root=RECORDINGS out=DATA
  speechssl pretrain   data.train=DATA/train.jsonl model=tiny run_dir=RUNS/pretrained
  speechssl finetune   task=ctc init=RUNS/pretrained data.train=DATA/train.jsonl run_dir=RUNS/ctc
  speechssl evaluate   checkpoint=RUNS/ctc data.test=DATA/test.jsonl out=RUNS/ctc/test
  speechssl transcribe checkpoint=RUNS/ctc audio=RECORDING.wav
"""

# What went wrong with a file is the user's to mend, and Python's own words for it are plain.
USERS_OS_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    _set_up_streams()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our results has stopped. Python flushes stdout at exit and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _explain(error, arguments)


def _explain(error: BaseException, arguments: list[str]) -> int:
    """Say on stderr why the command ended, if nobody has; its exit code."""
    code, sentence = 1, None  # without a sentence, a traceback
    if isinstance(error, UserError):
        code, sentence = 2, f"error: {error}"
    elif isinstance(error, Interrupted):
        again = [argument for argument in arguments if not argument.startswith("trainer.resume=")]
        sentence = f"{error}; to go on: {shlex.join(['speechssl', *again])}"
    elif isinstance(error, KeyboardInterrupt):
        sentence = "interrupted"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        sentence = f"error: the disk is full: {error.filename or 'nothing more can be written'}"
    elif isinstance(error, OSError) and error.errno in USERS_OS_ERRORS and error.filename is not None:
        code, sentence = 2, f"error: cannot use {os.fspath(error.filename)!r}: {error.strerror}"
    if ranks.may_speak(error):
        if sentence is None:
            traceback.print_exception(error)
        else:
            print(sentence, file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"speechssl {metadata.version('speechssl')}")
        return 0
    if arguments[0] in ("--completion", "--complete"):
        from speechssl import completion

        asked, *words = arguments
        print(
            completion.script(" ".join(words))
            if asked == "--completion"
            else "\n".join(completion.candidates(words, verbs()))
        )
        return 0
    verb, *overrides = arguments
    if verb not in verbs():
        from speechssl.config import nearest

        raise UserError(
            f"there is no command {verb!r}: did you mean `speechssl {nearest(verb, verbs())}`? "
            "(`speechssl --help` lists them)"
        )
    asked = [argument for argument in overrides if argument in ("-h", "--help")]
    if asked:
        print(help_text(verb, [argument for argument in overrides if argument not in asked]))
        return 0
    from speechssl.config import compose

    config = compose(verb, overrides)
    threads.sleep_soon()
    if verb not in WITHOUT_TORCH:
        check_pair()
    if "trainer" in config and config.trainer.get("devices", 1) > 1 and not ranks.is_rank():
        from speechssl.training.launch import launch

        return launch(arguments, config)
    if "trainer" in config and "run_dir" in config:
        # Before torch is imported, which takes seconds: a user sees at once that the command is understood.
        logging.getLogger("speechssl").info("%s into %s: loading", verb, config.run_dir)
    importlib.import_module(f"speechssl.commands.{verb}").run(config)
    return 0


def verbs() -> list[str]:
    """The commands there are: the modules of speechssl/commands."""
    found = [path.stem for path in COMMANDS.glob("*.py") if not path.stem.startswith("_")]
    return sorted(found, key=lambda verb: (ORDER.index(verb) if verb in ORDER else len(ORDER), verb))


def overview() -> str:
    """What `speechssl --help` prints."""
    lines = ["usage: speechssl VERB [key=value ...]", "", EXAMPLES, "Verbs:"]
    lines += [f"  {verb:<11} {_docstring(verb).splitlines()[0]}" for verb in verbs()]
    lines += [
        "",
        "`speechssl VERB --help` shows examples and every key of a verb; `speechssl doctor what=env` says what of",
    ]
    lines += ["the installation works. Completion in a shell: `speechssl --completion bash` (or zsh, fish)."]
    return "\n".join(lines)


def help_text(verb: str, overrides: list[str]) -> str:
    """What `speechssl VERB [key=value ...] --help` prints: the docstring, groups, keys and their values."""
    from speechssl import config as configuration

    configs = configuration.config_dir()
    groups = configuration.verb_groups(verb, configs=configs)
    config, absent = configuration.compose_partial(verb, overrides, configs=configs)
    chosen = {**groups, **dict(override.split("=", 1) for override in overrides if "=" in override)}
    comments = {}
    lines = [f"usage: speechssl {verb} [key=value ...]", "", _docstring(verb)]
    for group in groups:
        lines += ["", f"{group}=NAME" + (", which must be chosen:" if group in absent else ":")]
        for option in configuration.options(group, configs=configs):
            path = configs / group / f"{option}.yaml"
            mark = "*" if option == chosen[group] else " "
            lines.append(_columns(f"  {mark} {option}", _purpose(path), width=16))
            if option == chosen[group]:
                prefix = group.replace("/", ".")
                comments.update({f"{prefix}.{key}": text for key, text in _comments(path).items()})
    comments |= _comments(configs / f"{verb}.yaml")
    lines += ["", "Keys, the verb's own first, with their values here (* above is the option in use):"]
    leaves = [(key, value) for key, value in configuration.leaves(config) if key.split(".")[0] not in absent]
    for key, value in sorted(leaves, key=lambda leaf: (leaf[1] != "???", leaf[0].split(".")[0] in groups)):
        shown = f"{configuration.PATH_KEYS.get(key, 'VALUE')}  (needed)" if value == "???" else _show(value)
        lines.append(_columns(f"  {key}={shown}", comments.get(key, ""), width=42))
    lines += [f"`speechssl {verb} {group}=NAME --help` lists the keys of {group}=NAME as well." for group in absent]
    return "\n".join(lines)


def _docstring(verb: str) -> str:
    """The docstring of a verb's module, which is not imported."""
    tree = ast.parse((COMMANDS / f"{verb}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def _purpose(path: Path) -> str:
    """The first sentence of the comment that a yaml file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines if "@package" not in line)  # that one is for Hydra
    return re.split(r"(?<=\.)\s+(?=[A-Z])", comment, maxsplit=1)[0]


def _columns(left: str, right: str, *, width: int) -> str:
    """Two columns, the right one wrapped."""
    if not right:
        return left
    first, indent = f"{left:<{width}} ", " " * (width + 1)
    return textwrap.fill(right, 110, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _comments(path: Path) -> dict[str, str]:
    """The comment at the end of each key's line in a yaml file, by dotted key."""
    found, parents = {}, []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)(\w+):(?:.*?\s#\s+(.*))?", line)
        if match:
            indent, key, comment = match.groups()
            parents = [*((i, k) for i, k in parents if i < len(indent)), (len(indent), key)]
            if comment:
                found[".".join(k for _, k in parents)] = comment
    return found


def _show(value: object) -> str:
    """A value as the user would write it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_show, value))}]"
    return str(value)


def _set_up_streams() -> None:
    """Results as UTF-8 on stdout, logs on stderr, and no library's warnings, which a user cannot act on."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # file names may be any bytes
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("speechssl")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.CRITICAL if ranks.rank() else logging.INFO)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module=r"speechssl\.")


if __name__ == "__main__":
    sys.exit(main())
