"""Completion: `speechssl --completion bash` prints what to source, which asks `speechssl --complete WORDS`."""

from __future__ import annotations

from collections.abc import Sequence

from speechssl.errors import UserError

BASH = """\
# In ~/.bashrc: eval "$(speechssl --completion bash)"
_speechssl() {
    local words current
    read -r -a words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *" " ]] && words+=("")
    current="${words[-1]}"
    mapfile -t COMPREPLY < <(speechssl --complete "${words[@]:1}" 2> /dev/null)
    [[ "$COMP_WORDBREAKS" == *=* && "$current" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
}
complete -o default -F _speechssl speechssl
"""
ZSH = """\
# In ~/.zshrc, after compinit: eval "$(speechssl --completion zsh)"
_speechssl() {
    local -a found
    found=("${(@f)$(speechssl --complete "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    [[ -n "$found" ]] && compadd -Q -S '' -- $found || _files
}
compdef _speechssl speechssl
"""
FISH = """\
# In ~/.config/fish/config.fish: speechssl --completion fish | source
complete -c speechssl -f -a '(speechssl --complete (commandline -opc)[2..] (commandline -ct) 2> /dev/null)'
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(shell: str) -> str:
    """What a shell sources."""
    if shell not in SHELLS:
        raise UserError(f"--completion {shell} is not known: give {', '.join(SHELLS)}")
    return SHELLS[shell]


def candidates(words: Sequence[str], verbs: Sequence[str]) -> list[str]:
    """How the last of the words may go on: a verb, a `key=`, or a `key=value` where the values are few.

    Args:
        words: what stands after `speechssl`; the last is being typed and may be empty.
        verbs: the commands there are.
    """
    *before, current = words or [""]
    if not before:
        return [verb for verb in verbs if verb.startswith(current)]
    if before[0] not in verbs:
        return []
    from speechssl import config

    configs = config.config_dir()
    verb = before[0]
    groups = config.verb_groups(verb, configs=configs)
    key, equals, _ = current.partition("=")
    if equals and key in groups:
        values = config.options(key, configs=configs)
    elif equals:
        values = config.CHOICES.get(key) or config.CHOICES.get(f"{verb} {key}") or ()
    else:
        chosen = [word for word in before[1:] if word.partition("=")[0] in groups]
        composed, _ = config.compose_partial(verb, chosen, configs=configs)
        keys = [*groups, *(name for name, _ in config.leaves(composed))]
        return [f"{name}=" for name in dict.fromkeys(keys) if name.startswith(current)]
    return [f"{key}={value}" for value in values if f"{key}={value}".startswith(current)]
