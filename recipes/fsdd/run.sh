#!/usr/bin/env bash
# bash recipes/fsdd/run.sh --data DIR: spoken digits of six speakers (Free Spoken Digit Dataset, 22 minutes).
#
# Pretrains on the audio of the train split, fine-tunes on 60 of its transcripts (one a speaker and digit) and on all
# 2,580, each from the pretrained encoder and from scratch, and tests on the official test split. Then the speakers, and
# what each layer knows of digits and of speakers who say digits that they were not trained on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "the data set: the folder with recordings/, .wav or .flac"
option model tiny "model to pretrain, and to train from scratch"
option objective hubert "what to pretrain by"
option front stack40 "front end of the pretraining, and from scratch: stack40, fbank40, or conv, the model's own"
option pretrain-steps "" "steps of pretraining (default: the model's own)"
option finetune-steps 1000 "steps of each fine-tuning"
option speaker-steps 300 "steps of the speaker classifier"
option probe-steps 300 "steps of each probe"
option lrs "3e-4 1e-3 3e-3" "learning rates that both sides try with the first seed, in quotes"
option seeds "0 1 2" "seeds of the fine-tuning, in quotes"
# Clips of half a second: 60 of them are a batch.
transcripts+=(data.batch_seconds=40)
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder with recordings/ of the Free Spoken Digit Dataset"
set_up ""
untrained=(feature_encoder="$front")
if [[ "$front" != conv ]]; then
    untrained+=(model.encoder.conv_norm=layer) # each frame normed over its bands: a clip's average spectrum has the voice
fi
pretraining=(objective="$objective" "${untrained[@]}")

if at_stage 1 "Manifests of $data"; then
    prepare corpus=fsdd corpus.root="$data"
fi
if at_stage 2 "Pretrain $model on the audio of the train split"; then
    pretrain
fi
if at_stage 3 "Fine-tune on 60 transcripts"; then
    compare 60_clips train_60
fi
if at_stage 4 "Fine-tune on every transcript of the train split"; then
    compare all_clips train
fi
if at_stage 5 "Tell the speakers apart"; then
    speakers
fi
if at_stage 6 "Probe every layer for digits, and for speakers by digits that are new"; then
    probe digits label=digit
    probe speakers
    probe speakers_new_digits data.train="$out/data/train_speakers.jsonl" data.valid="$out/data/valid_speakers.jsonl" \
        data.test="$out/data/test_speakers.jsonl"
fi
if at_stage 7 "The table"; then
    table
fi
