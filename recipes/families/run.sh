#!/usr/bin/env bash
# bash recipes/families/run.sh --data DIR: every family of self-supervision on Mboshi, the same seconds of compute each.
#
# Pretrains each objective on the audio of the train split for as long as the budget lasts, fine-tunes it on ten minutes
# of transcripts, probes it for the speaker, and shows a table beside an encoder that was never trained. Mboshi has three
# speakers; --speakers DIR, recordings named SPEAKER-ANYTHING, has the probe name those instead, from the first half of
# each recording in the second.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "the data set: the folder with train/ and dev/"
option objectives "wav2vec2 hubert best_rq data2vec data2vec2 dinosr wav2vec cpc apc reconstruction simclr byol pretext multi" "objectives to compare, in quotes"
option budget 600 "seconds of compute of each pretraining: of the processor, or by the clock beside a GPU"
option speakers "" "folder of recordings named SPEAKER-ANYTHING, to be probed for who speaks"
option minutes "10" "minutes of transcribed speech to fine-tune on, in quotes: 10, or 10 60"
option model tiny "model to pretrain"
option front conv "front end: conv, fbank, fbank40 or stack40"
option finetunings "ctc selftrain semi" "ways to fine-tune, in quotes: on the transcripts alone, on the model's own too, with the pretraining's loss"
option finetune-steps 1000 "steps of each fine-tuning, of 10 s"
option probe-steps 300 "steps of each speaker probe"
# As task=ctc_few has them, for task=semi too.
few_labels=(
    encoder.dropout=0.1 encoder.attention_dropout=0.1 encoder.activation_dropout=0.1 encoder.reset_layers=2
    task.mask_start_probability=0.08 task.mask_span=5 data.batch_seconds=10
)
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder with train/ and dev/ of the Mboshi corpus"
set_up ""

if at_stage 1 "Manifests of $data"; then
    prepare corpus=mboshi corpus.root="$data"
    if [[ -n "$speakers" ]]; then
        once "$out/speakers" speechssl prepare corpus=halves corpus.root="$speakers" out="$out/speakers"
    fi
fi
if at_stage 2 "Every family, $budget s each"; then
    labelled=""
    for amount in $minutes; do
        labelled+="${labelled:+,}'$out/data/train_${amount}min.jsonl'"
    done
    names="$(printf "'%s'," $objectives)"
    finetune="$(printf "'%s'," "${few_labels[@]}")"
    voices=()
    if [[ -n "$speakers" ]]; then
        voices=(
            data.speakers="$out/speakers/train_all.jsonl" data.speakers_valid="$out/speakers/valid_all.jsonl"
            data.speakers_test="$out/speakers/test_all.jsonl"
        )
    fi
    speechssl compare objectives="[${names%,}]" budget="$budget" model="$model" feature_encoder="$front" \
        data.train="$out/data/train.jsonl" data.valid="$out/data/valid.jsonl" data.test="$out/data/test.jsonl" \
        data.labelled="[$labelled]" ${voices[@]+"${voices[@]}"} finetune_steps="$finetune_steps" \
        finetune="[${finetune%,}]" finetunings="[${finetunings// /,}]" probe_steps="$probe_steps" \
        out="$out/compared" ${overrides[@]+"${overrides[@]}"} > "$out/table.txt"
fi
if at_stage 3 "The table"; then
    cat "$out/table.txt"
fi
