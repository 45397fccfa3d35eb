#!/usr/bin/env bash
# bash recipes/mboshi/run.sh --data DIR: Mboshi, a Bantu language without a written tradition (3 speakers, 4 hours).
#
# Pretrains on the audio of the train split, fine-tunes on ten minutes of its transcripts from the pretrained encoder
# and from scratch, and tests on the corpus's dev split.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "the data set: the folder with train/ and dev/"
option minutes 10 "minutes of transcribed speech to fine-tune on: 10 or 60"
option model tiny "model to pretrain, and to train from scratch: tiny, or small with more time"
option pretrain-steps "" "steps of pretraining (default: the model's own)"
option finetune-steps 1500 "steps of each fine-tuning"
option lrs "5e-4 1e-3" "learning rates that both sides try with the first seed, in quotes"
option seeds "0 1 2" "seeds of the fine-tuning, in quotes"
# CTC leaves its blank plateau after so many steps, not so much speech: small batches. Both sides keep the filter bank
# that tiny begins with: trained from scratch in such batches it stays near the plateau.
few_labels+=(data.batch_seconds=10 task.freeze_feature_encoder=true)
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder with train/ and dev/ of the Mboshi corpus"
set_up ""

if at_stage 1 "Manifests of $data"; then
    prepare corpus=mboshi corpus.root="$data"
fi
if at_stage 2 "Pretrain $model on the audio of the train split"; then
    pretrain
fi
if at_stage 3 "Fine-tune on $minutes minutes of transcripts"; then
    compare "${minutes}min" "train_${minutes}min"
fi
if at_stage 4 "The table"; then
    table
fi
