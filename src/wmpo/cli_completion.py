"""``wmpo completion bash|zsh``: a script that completes commands, recipes, flags and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

HOWTO = """usage: wmpo completion bash|zsh

  bash: source <(wmpo completion bash)    in ~/.bashrc
  zsh:  source <(wmpo completion zsh)     in ~/.zshrc, after compinit"""
BASH = """_wmpo() {
  local cur="${COMP_WORDS[COMP_CWORD]}" key="${COMP_WORDS[1]}" following=""
  [ "$COMP_CWORD" -gt 1 ] || key=""
  case "$key" in %(groups)s) [ "$COMP_CWORD" -gt 2 ] && key="$key ${COMP_WORDS[2]}";; esac
  case "$key" in
%(cases)s
  esac
  COMPREPLY=($(compgen -W "$following" -- "$cur"))
  case "$cur" in -*) ;; *) [ -z "$key" ] || COMPREPLY+=($(compgen -f -- "$cur"));; esac
}
complete -o filenames -F _wmpo wmpo"""
ZSH = """_wmpo() {
  local key="${words[2]}" following=""
  (( CURRENT > 2 )) || key=""
  case "$key" in %(groups)s) (( CURRENT > 3 )) && key="$key ${words[3]}";; esac
  case "$key" in
%(cases)s
  esac
  compadd -- ${=following}
  [[ -z "$key" || "$PREFIX" == -* ]] || _files
}
compdef _wmpo wmpo"""
SCRIPTS = {"bash": BASH, "zsh": ZSH}


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """``words`` are what may follow: after ``wmpo`` (key ""), ``wmpo run`` ("run"), ``wmpo data import``
    ("data import"). Raises ValueError for a shell that is not known."""
    if shell not in SCRIPTS:
        raise ValueError(f"there is completion for {' and '.join(SCRIPTS)}, not for {shell!r}")
    alike: dict[str, list[str]] = {}
    for key, following in words.items():
        alike.setdefault(" ".join(following), []).append(f'"{key}"')
    cases = "\n".join(f'    {"|".join(keys)}) following="{following}";;' for following, keys in alike.items())
    groups = "|".join(sorted({key.split()[0] for key in words if " " in key}))
    return SCRIPTS[shell] % {"cases": cases, "groups": groups}


def flags(kind: type) -> list[str]:
    """Of a command whose settings are the fields of a dataclass."""
    assert is_dataclass(kind)
    named = [field for field in fields(kind) if not any(t in str(field.type) for t in ("Positional", "Experiment"))]
    return [flag for field in named for flag in _spelled(field.name, field.type in (bool, "bool"))]


def leaf_flags(leaves: Mapping[str, Any]) -> list[str]:
    """Of the leaves of an experiment under their dotted names."""
    return [flag for name, value in leaves.items() for flag in _spelled(name, isinstance(value, bool))]


def _spelled(name: str, switch: bool) -> list[str]:
    path, _, last = name.replace("_", "-").rpartition(".")
    return [f"--{path}{'.' * bool(path)}{prefix}{last}" for prefix in (("", "no-") if switch else ("",))]
