"""What decoders with a language model share: weights as `speechssl tune` writes them, priors, names of units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.data.bpe import SPACE
from speechssl.errors import UserError

PRIOR_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8), 0.1  # what `speechssl tune` tries, as decoders' `ranges` say it


def read_weights(path: str, names: Sequence[str], num_symbols: int) -> dict[str, Any]:
    """What `speechssl tune` found: weights of these names, and of a prior of so many symbols.

    Raises:
        UserError: the file cannot be read, or is of another decoder or model.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        weights = {name: float(found[name]) for name in names}
        weights["prior_weight"] = float(found.get("prior_weight", 0.0))
        weights["prior"] = [float(share) for share in found.get("prior", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no weights of this decoder can be read from it ({error!r}); make it with `speechssl tune`"
        ) from None
    if weights["prior_weight"] and (len(weights["prior"]) != num_symbols or min(weights["prior"]) <= 0):
        raise UserError(
            f"{path}: it is of a model with other symbols; make it with `speechssl tune` of this checkpoint"
        )
    return weights


def discount(prior_weight: float, prior: Sequence[float]) -> Tensor:
    """Float [symbols], to be taken from log-probabilities: log of the mean probabilities times their weight."""
    return prior_weight * torch.tensor(prior).log() if prior_weight else torch.zeros(())


def token_names(symbols: Sequence[str]) -> list[str]:
    """Symbols as a language model writes them: the space, which ARPA cannot hold, as SPACE."""
    return [SPACE if symbol == " " else symbol for symbol in symbols]
