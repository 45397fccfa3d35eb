"""Several objectives at once over one encoder, each with its weight (PASE, Pascual et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechssl.config import OF_TRAINING, config_dir, objective_class, options
from speechssl.errors import UserError
from speechssl.models.encoder import Encoder, EncoderConfig
from speechssl.objectives.common import PretrainingObjective
from speechssl.types import Batch, LossOutput, Term

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from speechssl.manifest import Manifest


class MultiObjective(PretrainingObjective):
    """The weighted sum of other objectives' losses; names of terms and figures begin with the part's."""

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        parts: Sequence[str],
        weights: Sequence[float],
        settings: dict[str, dict[str, Any]],
    ):
        """Args:
        parts: names of objectives.
        weights: one number a part.
        settings: the keyword arguments of each part; `complete` fills them in.
        """
        super().__init__()
        if len(parts) != len(weights) or not parts:
            raise UserError(f"objective.parts names {len(parts)} objectives, and objective.weights has {len(weights)}")
        self.weights = dict(zip(parts, weights, strict=True))
        self.parts = nn.ModuleDict({name: objective_class(name)(encoder, **settings[name]) for name in parts})

    @classmethod
    def complete(cls, values: dict[str, Any], config: DictConfig) -> dict[str, Any]:
        """With each part's settings as its yaml has them for the run's model, and as `settings` has them above that."""
        from omegaconf import OmegaConf

        given, settings = OmegaConf.to_container(OmegaConf.from_dotlist(list(values["settings"]))), {}
        if strange := sorted(given.keys() - set(values["parts"])):
            raise UserError(f"objective.settings has {strange[0]!r}, which is not among objective.parts; add it there")
        for name in values["parts"]:
            known = [x for x in options("objective", configs=config_dir()) if x != "multi"]
            if name not in known:
                raise UserError(f"objective.parts has {name!r}, but the objectives are {', '.join(known)}")
            if objective_class(name).encoder_needs:
                raise UserError(f"objective.parts has {name!r}, which needs an encoder of its own; leave it out")
            node = OmegaConf.load(config_dir() / "objective" / f"{name}.yaml")
            whole = OmegaConf.create({"model": config.model, "objective": node})
            part = OmegaConf.to_container(whole.objective, resolve=True)
            settings[name] = {key: x for key, x in part.items() if key not in ("name", *OF_TRAINING)}
            if unknown := sorted((given.get(name) or {}).keys() - settings[name].keys()):
                raise UserError(
                    f"objective.settings.{name} has {unknown[0]!r}, but the settings of {name} are "
                    f"{', '.join(sorted(settings[name]))}"
                )
            settings[name] = objective_class(name).complete(settings[name] | (given.get(name) or {}), config)
        return {**values, "settings": settings}

    @property
    def has_frame_labels(self) -> bool:
        """Whether a part has."""
        return any(part.has_frame_labels for part in self.parts.values())

    def prepare(self, config: DictConfig, manifests: Sequence[Manifest | None]) -> None:
        """Let each part prepare."""
        for part in self.parts.values():
            part.prepare(config, manifests)

    def begin_step(self, step: int, max_steps: int) -> None:
        """Tell each part."""
        super().begin_step(step, max_steps)
        for part in self.parts.values():
            part.begin_step(step, max_steps)

    def counts(self, batch: Batch, frame_lengths: list[int]) -> dict[str, int]:
        """The count of each term that `forward` will return."""
        return {
            f"{name}_{term}": count
            for name, part in self.parts.items()
            for term, count in part.counts(batch, frame_lengths).items()
        }

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator | None = None) -> LossOutput:
        """The terms of all parts; the health figures are those of the first."""
        found = LossOutput({})
        for name, part in self.parts.items():
            output = part(encoder, batch, generator)
            for term, x in output.terms.items():
                found.terms[f"{name}_{term}"] = Term(x.sum, x.count, self.weights[name] * x.weight)
            # As a pair accuracy and chance mean something: both of one part.
            found.metrics |= output.metrics if not found.metrics else {}
            found.metrics |= {f"{name}_{key}": figure for key, figure in output.metrics.items()}
        return found
