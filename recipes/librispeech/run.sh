#!/usr/bin/env bash
# bash recipes/librispeech/run.sh --data DIR --limited DIR: wav2vec 2.0's own experiment on LibriSpeech.
#
# Pretrains on the audio of LibriSpeech, fine-tunes on one of Libri-Light's official splits with the paper's settings for
# so many transcripts, and tests on test-clean and test-other, greedily and with a 4-gram whose weights dev-clean chose.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "the folder LibriSpeech, or the one that it is in"
option limited "" "Libri-Light's folder librispeech_finetuning (1h and 9h); not needed for --labels 100h"
option labels 10min "transcripts to fine-tune on: 10min, 1h, 10h or 100h (train-clean-100)"
option train "train-clean-100 train-clean-360 train-other-500" "subsets to pretrain on, in quotes"
option lm-text "" "text of the 4-gram, a sentence a line (default: the transcripts of --train)"
option model base "model to pretrain"
option pretrain-steps "" "steps of pretraining (default: the model's own)"
option finetune-steps "" "steps of fine-tuning (default: the paper's for --labels)"
option seeds "0" "seeds of the fine-tuning, in quotes"
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder LibriSpeech, or the one that it is in"
case "$labels" in
    10min | 1h | 10h) [[ -n "$limited" ]] || fail "--limited DIR is needed for --labels $labels: librispeech_finetuning" ;;
    100h) ;;
    *) fail "--labels $labels: there are 10min, 1h, 10h and 100h" ;;
esac
set_up ""

# subset FOLDER NAMES: a manifest FOLDER/train.jsonl of subsets of LibriSpeech.
subset() {
    once "$1" speechssl prepare corpus=librispeech corpus.root="$data" corpus.train="[${2// /,}]" corpus.valid="[]" \
        corpus.test="[]" out="$1"
}

# The manifest with the transcripts of --labels.
labelled() {
    case "$labels" in
        100h) echo "$out/data/clean100/train.jsonl" ;;
        *) echo "$out/data/limited/train_$labels.jsonl" ;;
    esac
}

if at_stage 1 "Manifests"; then
    subset "$out/data/pretraining" "$train"
    for name in dev-clean test-clean test-other; do
        subset "$out/data/$name" "$name"
    done
    if [[ "$labels" == 100h ]]; then
        subset "$out/data/clean100" train-clean-100
    else
        once "$out/data/limited" speechssl prepare corpus=librilight corpus.root="$limited" out="$out/data/limited"
    fi
fi
if at_stage 2 "Pretrain $model on the audio of $train"; then
    if [[ -z "$init" ]]; then
        once "$out/pretrained" speechssl pretrain model="$model" run_dir="$out/pretrained" \
            data.train="$out/data/pretraining/train.jsonl" data.valid="$out/data/dev-clean/train.jsonl" \
            ${pretrain_steps:+trainer.max_steps="$pretrain_steps"} ${overrides[@]+"${overrides[@]}"}
    fi
fi
if at_stage 3 "Fine-tune on $labels of transcripts"; then
    for seed in $seeds; do
        once "$out/ctc/$labels/seed_$seed" speechssl finetune task="ctc_$labels" init="$encoder" \
            run_dir="$out/ctc/$labels/seed_$seed" data.train="$(labelled)" data.valid="$out/data/dev-clean/train.jsonl" \
            data.skip_invalid=true trainer.best=wer trainer.seed="$seed" \
            ${finetune_steps:+trainer.max_steps="$finetune_steps"} ${overrides[@]+"${overrides[@]}"}
    done
fi
if at_stage 4 "A 4-gram of words"; then
    once "$out/lm" speechssl lm text="${lm_text:-$out/data/pretraining/train.jsonl}" order=4 out="$out/lm/words.arpa"
fi
if at_stage 5 "Its weights, on dev-clean"; then
    for seed in $seeds; do
        run="$out/ctc/$labels/seed_$seed"
        once "$run/weights" speechssl tune checkpoint="$run" data.valid="$out/data/dev-clean/train.jsonl" \
            decoder.lm="$out/lm/words.arpa" out="$run/weights/weights.json"
    done
fi
if at_stage 6 "Test"; then
    for seed in $seeds; do
        run="$out/ctc/$labels/seed_$seed"
        for name in test-clean test-other; do
            test="data.test=$out/data/$name/train.jsonl"
            once "$run/$name/greedy" speechssl evaluate checkpoint="$run" "$test" out="$run/$name/greedy"
            once "$run/$name/4-gram" speechssl evaluate checkpoint="$run" "$test" out="$run/$name/4-gram" decoder=beam \
                decoder.lm="$out/lm/words.arpa" decoder.weights="$run/weights/weights.json" \
                against="$run/$name/greedy/hypotheses.jsonl"
        done
    done
fi
if at_stage 7 "The table"; then
    "$python" "$root/recipes/librispeech/table.py" "$out" | tee "$out/table.txt"
fi
