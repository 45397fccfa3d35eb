#!/usr/bin/env bash
# bash recipes/mboshi/run.sh --data DIR: Mboshi, a Bantu language without a written tradition (3 speakers, 4 hours).
#
# Pretrains on the audio of the train split, fine-tunes on ten minutes of its transcripts (or more) from the pretrained
# encoder, from scratch, and on log-mel, has students learn from the first of these on the audio without transcripts and
# the text without audio, decodes with n-grams, and tests on the corpus's dev split.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "the data set: the folder with train/ and dev/"
option amounts "10min" "transcripts to fine-tune on, in quotes: 10min, 60min, all, or several of them"
option model tiny "model to pretrain, and to train from scratch: tiny, or small with more time"
option objective hubert "what to pretrain by"
option front stack40 "front end of the pretraining, and from scratch: stack40, fbank40, or conv, the model's own"
option pretrain-steps "" "steps of pretraining (default: the model's own)"
option finetune-steps "" "steps of each fine-tuning (default: 1500 for 10min, 3000 for 60min, 6000 for all)"
option lrs "5e-4 1e-3" "learning rates that each side tries with the first seed, in quotes"
option seeds "0 1 2" "seeds of the fine-tuning, in quotes"
option rounds 2 "rounds of students, from 0 to 3"
starts="pretrained scratch logmel"
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder with train/ and dev/ of the Mboshi corpus"
[[ "$rounds" == [0-3] ]] || fail "--rounds $rounds: the table has room for 0 to 3 rounds of students"
set_up ""
pretraining=(objective="$objective" feature_encoder="$front")
untrained=(feature_encoder="$front")
if [[ "$front" == conv ]]; then
    # Pretrained or not, tiny keeps its filter bank: trained from scratch in such batches it stays near the plateau.
    filter_bank=(task.freeze_feature_encoder=true)
fi

# steps AMOUNT: of fine-tuning; more transcripts take longer to learn.
steps() {
    case "$1" in
        10min) echo "${finetune_steps:-1500}" ;;
        60min) echo "${finetune_steps:-3000}" ;;
        *) echo "${finetune_steps:-6000}" ;;
    esac
}

# manifest AMOUNT: the name of the manifest with so many transcripts.
manifest() {
    [[ "$1" == all ]] && echo train || echo "train_$1"
}

# has_students AMOUNT: where all is transcribed there is nothing to learn from besides.
has_students() {
    [[ "$1" != all && "$rounds" != 0 ]]
}

if at_stage 1 "Manifests of $data"; then
    prepare corpus=mboshi corpus.root="$data"
fi
if at_stage 2 "Pretrain $model on the audio of the train split"; then
    pretrain
fi
if at_stage 3 "Fine-tune on transcripts: $amounts"; then
    for amount in $amounts; do
        finetune_steps="$(steps "$amount")" compare "$amount" "$(manifest "$amount")"
    done
fi
if at_stage 4 "Students of the pretrained recognisers, on audio without transcripts and an n-gram"; then
    for amount in $amounts; do
        if has_students "$amount"; then
            finetune_steps="$(steps "$amount")" students "$amount" "$(manifest "$amount")"
        fi
    done
fi
if at_stage 5 "Decode with n-grams of the text of the train split"; then
    for amount in $amounts; do
        for start in $starts; do
            ngram "$amount" "$start"
        done
        if has_students "$amount"; then
            ngram "$amount" "student_$rounds"
        fi
    done
fi
if at_stage 6 "The table, and the label curve"; then
    table
    label_curve
fi
