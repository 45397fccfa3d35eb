"""Beam search over CTC's alignments, with an n-gram, a lexicon and hotwords: torchaudio's `ctc_decoder`.

That stands on flashlight-text, whose wheels exist for Python 3.10 to 3.12; without it the greedy result is given, and
that is said. The score of a text is the log of the summed probability of its alignments, plus `lm_weight` times the
language model's log10 probability, plus `word_score` for each word (wav2vec 2.0, section 4.4). What `speechssl tune`
finds may divide each frame's probabilities by the symbols' mean ones first, to a power: CTC's network has learned how
common its symbols are, and the language model says it again (Kanda et al. 2016).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from speechssl.data.bpe import SPACE
from speechssl.data.text import BLANK, BLANK_INDEX, Vocabulary, describe, normalize
from speechssl.decoding.alignment import align
from speechssl.decoding.common import PRIOR_WEIGHTS, discount, read_weights, token_names
from speechssl.decoding.greedy import GreedyDecoder
from speechssl.decoding.ngram import UNKNOWN, arpa_words
from speechssl.decoding.transcript import Alternative, Transcript
from speechssl.errors import UserError

log = logging.getLogger("speechssl")

NEVER = -1e5  # log-probability of what must not happen
NUM_NAMED = 8  # symbols in a message
_BINARY = b"mmap lm http://kheafield.com/code"


def build_decoder(vocabulary: Vocabulary, **options: Any) -> BeamDecoder | GreedyDecoder:
    """The decoder that configs/decoder/beam.yaml describes; greedy decoding, and a warning, without flashlight-text."""
    try:
        import flashlight.lib.text.decoder  # noqa: F401
    except ImportError:
        log.warning(
            "decoder=beam needs flashlight-text, which is not installed, so decoding is greedy: pip install "
            "flashlight-text (it has wheels for Python 3.10 to 3.12), or give decoder=posterior, which needs none"
        )
        return GreedyDecoder(vocabulary)
    return BeamDecoder(vocabulary, **options)


class BeamDecoder:
    """Beam search over one vocabulary.

    Args:
        vocabulary: the model's symbols.
        lm: an ARPA file (or KenLM's binary form) of words, or of the model's units as `speechssl lm checkpoint=` writes
            it; None for none.
        lexicon: a file of the words that there are, one a line, with its spelling in the model's units after it where
            that is not its own letters. None: the words of an LM of words; else anything can be written.
        beam_size: hypotheses that are kept.
        beam_threshold: one that is so many nats behind the best is dropped.
        lm_weight, word_score: see above; word_score counts with a lexicon only.
        nbest: readings of each clip that are given.
        hotwords: words or phrases that get a bonus of `hotword_score` nats, lower-cased where they cannot be spelled
            as they are.
        weights: a file of `speechssl tune`, whose weights take the place of the others.

    Raises:
        UserError: a file cannot be read, a word cannot be spelled, or the units do not fit.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        lm: str | None = None,
        lexicon: str | None = None,
        beam_size: int = 50,
        beam_threshold: float = 50.0,
        lm_weight: float = 2.0,
        word_score: float = 0.0,
        nbest: int = 1,
        hotwords: Sequence[str] = (),
        hotword_score: float = 5.0,
        weights: str | None = None,
    ):
        self.vocabulary, self.lm = vocabulary, lm
        self.tokens = token_names(vocabulary.symbols)
        self.has_space = SPACE in self.tokens
        if not self.has_space:
            self.tokens.append(SPACE)  # the search needs one; it is never likely
        self.silence = self.tokens.index(SPACE)
        self.spellings = self._spellings(lexicon)
        self.hotwords = self._take_hotwords([normalize(str(phrase)) for phrase in hotwords])
        self.options = {"beam_size": beam_size, "beam_threshold": beam_threshold, "nbest": nbest, "log_add": True}
        self.hotword_score = hotword_score
        chosen = {"lm_weight": lm_weight, "word_score": word_score}
        self.set_weights(**(chosen if weights is None else read_weights(weights, tuple(chosen), len(vocabulary))))

    @property
    def has_lexicon(self) -> bool:
        """Whether only words of a lexicon can be written."""
        return self.spellings is not None

    def set_weights(
        self, *, lm_weight: float, word_score: float, prior_weight: float = 0.0, prior: Sequence[float] = ()
    ) -> None:
        """Search with other weights from now on; `prior` has the mean probability of each symbol."""
        from torchaudio.models.decoder import ctc_decoder

        scores = {"lm_weight": lm_weight if self.lm else 1.0, "word_score": word_score}
        self.weights, self.discount = scores | {"prior_weight": prior_weight}, discount(prior_weight, prior)
        weighed = {"lm_weight": 1.0} if self.hotwords else {}  # HotwordLM weighs by itself
        with tempfile.TemporaryDirectory(prefix="speechssl") as folder:
            path = None
            if self.spellings is not None:
                path = Path(folder) / "lexicon.txt"
                lines = (f"{word}\t{' '.join(spelling)}\n" for word, spelling in self.spellings)
                path.write_text("".join(lines) + f"{UNKNOWN}\t{SPACE}\n", encoding="utf-8")
                path = str(path)
            with _quiet(), _readable(self.lm):
                self.decoder = ctc_decoder(
                    lexicon=path,
                    tokens=self.tokens,
                    lm=self._language_model(path),
                    blank_token=BLANK,
                    sil_token=SPACE,
                    unk_word=UNKNOWN,
                    **self.options | scores | weighed,
                )

    def ranges(self) -> dict[str, tuple[Sequence[float], float]]:
        """What `speechssl tune` tries: coarse values, and a step to try beside the best; nothing where none counts."""
        found = {}
        if self.lm:
            found["lm_weight"] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0), 0.25
        if self.has_lexicon:
            found["word_score"] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0), 0.25
        if found:
            found["prior_weight"] = PRIOR_WEIGHTS
        return found

    def __call__(self, logits: Tensor) -> Transcript:
        """Decode one clip: logits [T, V]."""
        log_probs = logits.detach().float().cpu().log_softmax(-1)
        num_blank_frames = int((log_probs.argmax(-1) == BLANK_INDEX).sum())
        hypotheses = self.decoder(self._emissions(log_probs)[None])[0] if len(log_probs) else []
        if not hypotheses:
            return Transcript((), len(log_probs), num_blank_frames)
        labels, starts = self._labels(hypotheses[0])
        characters = align(log_probs, labels, starts, self.vocabulary) if labels else []
        scores: dict[str, float] = {}
        for hypothesis in hypotheses:  # some differ in spaces alone
            scores.setdefault(self._text(hypothesis), float(hypothesis.score))
        return Transcript(
            characters=tuple(characters),
            num_frames=len(log_probs),
            num_blank_frames=num_blank_frames,
            written=tuple(hypotheses[0].words) if self.has_lexicon else None,
            alternatives=tuple(Alternative(text, score) for text, score in scores.items()),
        )

    def _emissions(self, log_probs: Tensor) -> Tensor:
        """What the search sees [T', V']: a space that never comes where there is none, and one at the very end.

        A lexicon's words end with a space, so the last one needs it.
        """
        log_probs = log_probs - self.discount
        if not self.has_space:
            log_probs = F.pad(log_probs, (0, 1), value=NEVER)
        if self.has_lexicon:
            log_probs = F.pad(log_probs, (0, 0, 0, 1), value=NEVER)
            log_probs[-1, self.silence] = 0.0
        return log_probs.contiguous()

    def _labels(self, hypothesis: Any) -> tuple[list[int], list[int]]:
        """The labels of a hypothesis and their frames, spaces only between words."""
        pairs = list(zip(hypothesis.tokens.tolist(), hypothesis.timesteps.tolist(), strict=True))
        # The search's path has a frame before the first, and one after the last.
        pairs = [(label, max(frame - 1, 0)) for label, frame in pairs]
        kept = []
        for is_silence, group in groupby(pairs, key=lambda pair: pair[0] == self.silence):
            run = list(group)
            kept += run[:1] if is_silence else run
        if self.vocabulary.units != "bpe":
            while kept and kept[-1][0] == self.silence:
                kept.pop()
            while kept and kept[0][0] == self.silence:
                kept.pop(0)
        return [label for label, _ in kept], [frame for _, frame in kept]

    def _text(self, hypothesis: Any) -> str:
        if self.has_lexicon:
            return " ".join(hypothesis.words)
        return " ".join(self.vocabulary.decode(self._labels(hypothesis)[0]).split())

    def _spellings(self, lexicon: str | None) -> list[tuple[str, list[str]]] | None:
        """Each word of the lexicon with its tokens, a space at its end; None where anything can be written."""
        if lexicon is not None:
            words = _read_lexicon(lexicon)
            self._check_beside(lexicon)
        elif self.lm is None or self._is_of_units():
            return None
        else:
            words = [(word, None) for word in arpa_words(self.lm)]
        if self.vocabulary.units == "bpe":
            raise UserError(
                "a lexicon needs a model of characters or phonemes, and this one writes BPE pieces: give decoder.lm an "
                "LM of its pieces, as `speechssl lm checkpoint=` writes it"
            )
        found, unspellable = [], []
        for word, spelling in dict.fromkeys(words):
            tokens = spelling.split() if spelling else self._tokens_of(word)
            if self._can_write(tokens):
                found.append((word, [*tokens, SPACE]))
            else:
                unspellable.append(word)
        if unspellable and lexicon is not None:
            raise UserError(
                f"{lexicon}: the word {unspellable[0]!r} cannot be spelled with the checkpoint's symbols "
                f"({len(unspellable)} such words); take it out, or spell it after a tab"
            )
        if not found:
            raise UserError(
                f"{self.lm}: none of its words can be spelled with the checkpoint's symbols; build it from a text in "
                "the same script and case as the transcripts that the checkpoint was trained on"
            )
        if unspellable:
            log.warning(
                "%s: %d of %d words cannot be spelled with the checkpoint's symbols and are left out, the first %r",
                self.lm,
                len(unspellable),
                len(unspellable) + len(found),
                unspellable[0],
            )
        return found

    def _take_hotwords(self, phrases: list[str]) -> list[str]:
        """The phrases in the letter case that the model writes; a lexicon gets those of their words that it lacks."""
        known = {word for word, _ in self.spellings or ()}
        found = [self._hotword(phrase, known) for phrase in phrases if phrase]
        if self.spellings is not None:
            words = dict.fromkeys(word for phrase in found for word in phrase.split() if word not in known)
            self.spellings += [(word, [*self._tokens_of(word), SPACE]) for word in words]
        return found

    def _hotword(self, phrase: str, known: set[str]) -> str:
        """A phrase as it is or, where that cannot be spelled, in lower case, as some models write everything."""
        for form in (phrase, normalize(phrase, lowercase=True)):
            parts = form.split() if self.has_lexicon else [form]
            if all(part in known or self._can_write(self._tokens_of(part)) for part in parts):
                return form
        raise UserError(f"the hotword {phrase!r} cannot be spelled with the checkpoint's symbols; drop it")

    def _tokens_of(self, text: str) -> list[str]:
        return token_names(self.vocabulary.split(text))

    def _can_write(self, tokens: list[str]) -> bool:
        return bool(tokens) and set(tokens) <= set(self.tokens)

    def _is_of_units(self) -> bool:
        """Whether the language model is of the vocabulary's units, not of words."""
        with contextlib.suppress(OSError), Path(self.lm).open("rb") as file:
            if file.read(len(_BINARY)) == _BINARY:
                raise UserError(f"{self.lm}: a binary language model does not tell its words; give decoder.lexicon too")
        words = arpa_words(self.lm)
        missing = sorted(set(words) - set(self.tokens))
        if missing and _are_units(words):
            raise UserError(
                f"{self.lm} is a language model of units, some of which the checkpoint lacks, "
                f"{describe(missing[:NUM_NAMED])}: build it with `speechssl lm checkpoint=` of this checkpoint"
            )
        return not missing

    def _check_beside(self, lexicon: str) -> None:
        """UserError where the language model is of units; of KenLM's binary form that cannot be told."""
        words = []
        if self.lm is not None:
            with contextlib.suppress(UserError):  # KenLM will complain, if it cannot read the file either
                words = arpa_words(self.lm)
        if _are_units(words):
            raise UserError(
                f"{self.lm} is a language model of units, and decoder.lexicon={lexicon} needs one of words: drop one "
                "of them"
            )

    def _language_model(self, lexicon: str | None) -> Any:
        """The language model with bonuses for the hotwords; one that knows nothing where there is none."""
        from flashlight.lib.text.decoder import ZeroLM
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary, create_word_dict, load_words

        from speechssl.decoding.hotwords import HotwordLM

        if lexicon is not None:
            index = create_word_dict(load_words(lexicon))
            phrases = [[index.get_index(word) for word in phrase.split()] for phrase in self.hotwords]
            boundary = None
        else:
            # By the numbers of the search's tokens; torchaudio's own dictionary has them in another order.
            index = Dictionary(self.tokens)
            phrases = [[index.get_index(name) for name in self._tokens_of(phrase)] for phrase in self.hotwords]
            boundary = self.silence if self.vocabulary.units != "bpe" else None
        lm = KenLM(self.lm, index) if self.lm else ZeroLM()
        if not phrases:
            return lm
        weight = self.weights["lm_weight"]
        return HotwordLM(lm, phrases, weight=weight, bonus=self.hotword_score, boundary=boundary)


def _are_units(words: Sequence[str]) -> bool:
    """Whether the words of a language model are units: characters with the space, or pieces that begin with it."""
    return any(word.startswith(SPACE) for word in words)


def _read_lexicon(path: str) -> list[tuple[str, str | None]]:
    """(word, spelling or None) of each line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this lexicon cannot be read ({error}); give a text file with a word a line") from None
    words = [tuple(line.split(None, 1)) for line in lines if line.strip()]
    if not words:
        raise UserError(f"{path}: this lexicon is empty; write a word a line")
    return [(normalize(word[0]), word[1] if len(word) > 1 else None) for word in words]


@contextlib.contextmanager
def _readable(lm: str | None) -> Iterator[None]:
    """KenLM's complaints as one sentence."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if lm is None:
            raise
        reason = str(error).splitlines()[-1][:200] if str(error) else "broken"
        raise UserError(
            f"{lm}: this language model cannot be read ({reason}); build it again with `speechssl lm`"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """KenLM draws a progress bar on stderr, below Python: keep it off."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
