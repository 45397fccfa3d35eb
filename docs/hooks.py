"""What the site takes from the code: the page of commands from their help, the Python page from docstrings, the nav."""

from __future__ import annotations

import inspect
from pathlib import Path

from mkdocs.structure.files import File

DOCS = Path(__file__).resolve().parent


def on_config(config):
    """Pages that nobody named come under "In depth"."""
    named = str(config.nav)
    others = sorted(path.name for path in DOCS.glob("*.md") if path.name not in named)
    for entry in config.nav:
        if isinstance(entry, dict) and "In depth" in entry:
            entry["In depth"] = others
    config.nav = [entry for entry in config.nav if entry != {"In depth": []}]
    return config


def on_files(files, config):
    """Add the pages that are written by the code."""
    for name, text in (("commands.md", commands()), ("python.md", python())):
        files.append(File.generated(config, name, content=text))
    return files


def commands() -> str:
    """Each verb's help, as `speechssl VERB --help` prints it."""
    from speechssl import cli

    parts = ["# Commands", "Every setting is `key=value`; what stands here is what `speechssl VERB --help` prints."]
    for verb in cli.verbs():
        parts += [f"## {verb}", f"```text\n{cli.help_text(verb, [])}\n```"]
    return "\n\n".join(parts)


def python() -> str:
    """The functions of `import speechssl`, and what they return."""
    import speechssl
    from speechssl.recognizer import Recognizer
    from speechssl.types import EncoderOutput, LossOutput, Utterance

    parts = ["# In Python"]
    objects = [getattr(speechssl, name) for name in speechssl.__all__] + [
        Recognizer,
        EncoderOutput,
        LossOutput,
        Utterance,
    ]
    for thing in objects:
        kind = "class " if inspect.isclass(thing) else ""
        signature = "" if inspect.isclass(thing) else str(inspect.signature(thing)).replace("'", "")
        parts += [f"## {thing.__name__}", f"```python\n{kind}{thing.__module__}.{thing.__name__}{signature}\n```"]
        parts.append(inspect.getdoc(thing) or "")
    return "\n\n".join(parts)
