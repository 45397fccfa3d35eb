#!/usr/bin/env bash
# bash recipes/quickstart/run.sh: the whole path on speech that the toolkit speaks itself, without any data.
#
# Pretrains an encoder on the audio, fine-tunes it and an untrained one on the same few transcripts, trains a speaker
# classifier, tests all of them, and closes with a table. Sets up .venv first; needs Python 3.10 and bash, no root.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option num-train 1000 "clips to train on, about 3 s each"
option num-labelled 100 "how many of them have a transcript"
option num-test 150 "clips for the test"
option num-voices 6 "speakers"
option model tiny "model to pretrain, and to train from scratch"
option pretrain-steps 900 "steps of pretraining"
option finetune-steps 800 "steps of each fine-tuning"
option speaker-steps 100 "steps of the speaker classifier"
option lrs "1e-3" "learning rates of the fine-tuning, in quotes; the best on valid is taken, \"5e-4 1e-3\" tries two"
option seeds "0" "seeds of the fine-tuning, in quotes"
# Spectra side by side, each normed over its bands, in the place of the convolutions: few transcripts and minutes read them
# better (RESULTS.md), and the average spectrum of a clip stays, which tells voices apart.
untrained=(feature_encoder=stack40 model.encoder.conv_norm=layer)
pretraining=("${untrained[@]}")
parse_options "$@"
set_up synthetic

if at_stage 1 "Speak a corpus of $num_train clips in $num_voices voices"; then
    prepare corpus=synthetic corpus.num_train="$num_train" corpus.num_labelled="$num_labelled" \
        corpus.num_test="$num_test" corpus.num_voices="$num_voices"
fi
if at_stage 2 "Pretrain $model on the audio alone"; then
    pretrain
fi
if at_stage 3 "Fine-tune on $num_labelled transcripts, from the pretrained encoder and from scratch"; then
    compare "${num_labelled}_clips" train_labelled
fi
if at_stage 4 "Tell the speakers apart"; then
    speakers
fi
if at_stage 5 "The table"; then
    table
    best="$out/ctc/${num_labelled}_clips/pretrained/lr_$(best_rate "${num_labelled}_clips" pretrained)/seed_${seeds%% *}"
    echo
    echo "Next, have it write down a recording, or a folder of your own in its place:"
    echo "  $(shown transcribe checkpoint="$best" audio="$out/data/audio/test-00000.flac")"
fi
