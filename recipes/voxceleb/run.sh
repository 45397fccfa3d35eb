#!/usr/bin/env bash
# bash recipes/voxceleb/run.sh --data DIR: whether two clips of VoxCeleb1 are by one speaker, on the official trials.
#
# DIR holds wav/SPEAKER/VIDEO/NUMBER.wav and veri_test.txt. Pretrains on the audio of the speakers who are not in the
# trials (or takes --init), trains a head with AAM-softmax on crops of them, and scores the trials by cosine and by
# AS-norm against a cohort of the training's speakers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "the folder with wav/ and veri_test.txt"
option model base "model to pretrain"
option pretrain-steps "" "steps of pretraining (default: the model's own)"
option speaker-steps 50000 "steps of the speaker head"
option crop-seconds 3 "seconds of the random crops that the head is trained on"
option task ecapa "the speaker head: speaker, superb, xvector or ecapa"
parse_options "$@"
[[ -n "$data" ]] || fail "--data DIR is needed: the folder with wav/ and veri_test.txt of VoxCeleb1"
set_up ""
run="$out/speaker"

# trials NAME KEY=VALUE...: scores the official list.
trials() {
    local folder="$run/$1"
    shift
    once "$folder" speechssl evaluate checkpoint="$run" data.test="$out/data/test.jsonl" out="$folder" \
        trials="$data/veri_test.txt" p_target=0.01 "$@"
}

if at_stage 1 "Manifests of $data"; then
    prepare corpus=voxceleb corpus.root="$data" corpus.trial_list=veri_test.txt
fi
if at_stage 2 "Pretrain $model on the speakers who are not in the trials"; then
    pretrain
fi
if at_stage 3 "A speaker head, with crops of $crop_seconds s"; then
    once "$run" speechssl finetune task="$task" init="$encoder" run_dir="$run" data.train="$out/data/train.jsonl" \
        data.valid="$out/data/valid.jsonl" data.max_clip_s="$crop_seconds" trainer.max_steps="$speaker_steps" \
        ${overrides[@]+"${overrides[@]}"}
fi
if at_stage 4 "The official trials, by cosine and by AS-norm"; then
    trials test
    trials asnorm cohort="$out/data/valid.jsonl"
fi
if at_stage 5 "The table"; then
    table
fi
