"""What other toolkits have no place for, merged, left out or refused; the logits stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.errors import UserError
from speechssl.heads.ctc import CTCObjective
from speechssl.heads.distil import DistilledObjective
from speechssl.heads.semi import SemiSupervisedObjective
from speechssl.interop.simplify import simplify
from speechssl.models.encoder import Encoder
from speechssl.objectives.wav2vec2 import Wav2Vec2Objective
from speechssl.training.checkpoint import Checkpoint, build_model, model_config


@pytest.fixture
def checkpoint(small_config, ctc_options, tmp_path):
    def make(kind, name, shared=ctc_options, **options):
        torch.manual_seed(0)
        encoder = Encoder(small_config())
        objective = kind(encoder.config, **shared, **options)
        for parameter in objective.parameters():
            nn.init.normal_(parameter, std=0.2)
        config = model_config(
            sample_rate=16_000,
            normalize=False,
            encoder=encoder.config,
            objective={"name": name, **shared, **options},
        )
        tensors = nn.ModuleDict({"encoder": encoder, "objective": objective}).state_dict()
        return Checkpoint(tmp_path, config, tensors)

    return make


def logits(checkpoint, batch):
    encoder, objective = build_model(checkpoint)
    return objective.logits(encoder(batch.waveforms, batch.lengths))


def test_lora_is_merged_and_a_second_loss_left_out(checkpoint, make_batch, wav2vec2_options):
    batch = make_batch([9_000, 5_000])
    ssl = {"ssl": {"name": "wav2vec2", **wav2vec2_options()}, "ssl_weight": 0.1}
    for found in (
        checkpoint(CTCObjective, "ctc", lora_rank=3),
        checkpoint(SemiSupervisedObjective, "semi", **ssl),
        checkpoint(SemiSupervisedObjective, "semi", lora_rank=2, **ssl),
        checkpoint(DistilledObjective, "distil", teacher="gone", distil_weight=1.0, lm="gone"),
    ):
        plain = simplify(found)
        assert plain.config["objective"]["name"] == "ctc"
        assert set(plain.part("objective")) == {"linear.weight", "linear.bias"}
        assert torch.allclose(logits(plain, batch), logits(found, batch), atol=1e-5)


def test_what_has_no_place_is_refused_by_name(checkpoint):
    with pytest.raises(UserError, match=r"task\.adapter_size.*task\.lora_rank"):
        simplify(checkpoint(CTCObjective, "ctc", adapter_size=4))
    with pytest.raises(UserError, match=r"task\.layers=weighted"):
        simplify(checkpoint(CTCObjective, "ctc", layers="weighted"))
    with pytest.raises(UserError, match=r"task\.recurrent_size and task\.layers=weighted"):
        simplify(checkpoint(CTCObjective, "ctc", layers="weighted", recurrent_size=4))


def test_heads_of_objectives_that_others_lack_are_left_out(checkpoint, wav2vec2_options, make_batch, caplog):
    plain = checkpoint(Wav2Vec2Objective, "wav2vec2", wav2vec2_options())
    assert simplify(plain) is plain
    decoder = {"num_masks": 2, "decoder_layers": 1, "decoder_size": 16}
    found = checkpoint(Wav2Vec2Objective, "wav2vec2", wav2vec2_options(), **decoder)
    with caplog.at_level("INFO", "speechssl"):
        encoder, head = build_model(simplify(found))
    assert "objective=wav2vec2 with a decoder is left out" in caplog.text
    assert not list(head.parameters())
    batch = make_batch([9_000])
    frames = (x(batch.waveforms, batch.lengths).packed[-1] for x in (encoder, build_model(found)[0]))
    assert torch.equal(*frames)
