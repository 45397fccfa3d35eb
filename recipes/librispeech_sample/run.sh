#!/usr/bin/env bash
# bash recipes/librispeech_sample/run.sh --data DIR: who speaks, from one clip a speaker (or few).
#
# DIR holds recordings named SPEAKER-ANYTHING, such as one utterance each of LibriSpeech's speakers. The first half of
# each clip is for training, the second for test; a fifth of the speakers is held out, for verification. Pretrains by
# SimCLR on the training audio (or takes --init), probes every layer beside log-mel and a random encoder, trains a
# speaker head on the pretrained encoder and on one from scratch, and tests both on every speaker and on those never
# trained on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "folder of recordings named SPEAKER-ANYTHING (.flac, .opus, .wav)"
option model tiny "model to pretrain, and to train from scratch"
option pretrain-steps 250 "steps of pretraining"
option speaker-steps 500 "steps of each speaker head"
option probe-steps 300 "steps of each probe"
option task speaker "the speaker head: speaker, superb, xvector or ecapa"
option seed 0 "seed of heads and probes"
# What tells voices apart is in the average spectrum, too, which a norm over each clip takes away, as the first layer of
# wav2vec 2.0 has it: here each frame is normed over its bands.
front=(feature_encoder=stack40 model.encoder.conv_norm=layer)
# Pieces of one recording against those of others; a recording that is played faster or slower is another voice.
pretraining=(
    "${front[@]}" objective=simclr data.batch_seconds=150 data.max_clip_s=3 optim.lr=1e-3
    augment.speed_probability=0.8 "augment.speed_factors=[0.8,0.85,0.9,0.95,1.05,1.1,1.15,1.2]"
)
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder of recordings named SPEAKER-ANYTHING"
set_up ""

# speaker_head START INIT...: trains one head on every speaker and tests it on their second halves, and one on the known
# speakers, which is tested on the others.
speaker_head() {
    local run="$out/speaker/$1" name part
    shift
    for name in all known; do
        part="$([[ "$name" == all ]] && echo _all || true)"
        once "$run/$name" speechssl finetune task="$task" "$@" run_dir="$run/$name" trainer.seed="$seed" \
            data.train="$out/data/train$part.jsonl" data.valid="$out/data/valid$part.jsonl" \
            trainer.max_steps="$speaker_steps" ${overrides[@]+"${overrides[@]}"}
    done
    once "$run/all/test" speechssl evaluate checkpoint="$run/all" data.test="$out/data/test_all.jsonl" out="$run/all/test"
    once "$run/known/verify" speechssl evaluate checkpoint="$run/known" data.test="$out/data/verify.jsonl" \
        out="$run/known/verify"
}

if at_stage 1 "Manifests of $data"; then
    prepare corpus=halves corpus.root="$data"
fi
if at_stage 2 "Pretrain $model on the audio of the train split"; then
    pretrain
fi
if at_stage 3 "Probe every layer"; then
    probe identification seed="$seed" data.train="$out/data/train_all.jsonl" data.valid="$out/data/valid_all.jsonl" \
        data.test="$out/data/test_all.jsonl"
    probe verification seed="$seed" data.verify="$out/data/verify.jsonl"
fi
if at_stage 4 "Speaker heads, from the pretrained encoder and from scratch"; then
    speaker_head pretrained init="$encoder"
    speaker_head scratch init=none model="$model" "${front[@]}"
fi
if at_stage 5 "The table"; then
    table
fi
