"""What `evaluate` measures of a recogniser, where the decoder decides what is compared."""

from __future__ import annotations

import pytest

from speechssl import manifest
from speechssl.config import compose, plain
from speechssl.data.text import Vocabulary
from speechssl.evaluation import recognition
from speechssl.manifest import Manifest


@pytest.mark.parametrize(("decoder", "reference"), [("beam", "cab"), ("greedy", "kæb")])
def test_a_lexicon_over_phonemes_is_compared_in_words(spelling_model, audio_tools, tmp_path, decoder, reference):
    pytest.importorskip("espeakng_loader", reason="the extra `synthetic` is not installed")
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    vocabulary = spelling_model.objective.vocabulary
    spelling_model.objective.vocabulary = Vocabulary(vocabulary.symbols, "phonemes")
    waveform = audio_tools.spell("abc")
    audio_tools.save(tmp_path / "0.wav", waveform)
    row = {"audio_filepath": "0.wav", "duration": len(waveform) / 16_000, "text": "cab"}
    manifest.write(tmp_path / "test.jsonl", [row])
    (tmp_path / "words.txt").write_text("cab\ta b c\n")
    given = [f"decoder={decoder}", *([f"decoder.lexicon={tmp_path / 'words.txt'}"] if decoder == "beam" else [])]
    config = compose("evaluate", ["checkpoint=run", f"data.test={tmp_path / 'test.jsonl'}", "out=out", *given])
    options = {key: value for key, value in plain(config.data).items() if key != "test"}
    metrics, rows = recognition.evaluate(config, spelling_model, Manifest(config.data.test), **options)
    assert rows[0]["reference"] == reference
    assert metrics["wer"] == (0.0 if decoder == "beam" else 1.0)
