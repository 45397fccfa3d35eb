# What the recipes share, for a run.sh to source: options, set-up, stages, and the steps that their experiments have in
# common. A run.sh declares its options and then reads like the experiment. Runs under bash 3.2 and newer.
#
# Under --out:
#   data/                                   manifests
#   pretrained/                             run folder of the pretraining
#   ctc/TRANSCRIPTS/START/lr_RATE/seed_N/   run folders of the fine-tuning, START is one of `starts`, or student_ROUND
#   ctc/TRANSCRIPTS/lm/ORDER/               an n-gram of their units
#   speaker/                                run folder of the speaker head, or of each START
#   probe/NAME/                             what `speechssl probe` wrote
#   RUN_FOLDER/test/                        what `speechssl evaluate` wrote
#   RUN_FOLDER/DECODER/                     weights of an n-gram, and what `speechssl evaluate` wrote with it
#   .done in each of them                   its command has succeeded and is not run again
#   settings, seconds.tsv, table.txt        options given, seconds of each stage, the closing table

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)"
recipe="$(basename "$(cd "$(dirname "$0")" > /dev/null && pwd)")"
option_names=""
option_help=""
# The fine-tuning on transcripts; both sides of a comparison have it.
transcripts=(task=ctc_few)
# What the pretraining has besides its model.
pretraining=()
# What those sides have besides that begin with the filter bank of tiny.
filter_bank=()
# What the side from scratch has besides its model: the front end of the pretraining, where that is not the model's own.
untrained=()
# What a comparison begins from: the pretrained encoder; the same network, untrained; and one untrained on log-mel.
starts="pretrained scratch"
overrides=()
running="" # the stage that runs now

log() {
    echo "$(date '+%H:%M:%S') $*" >&2
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# option NAME DEFAULT HELP: declares --NAME VALUE; the value is in the variable NAME, with _ for -.
option() {
    option_names+=" $1"
    option_help+="$(printf '  --%-21s %s' "$1 VALUE" "$3${2:+ (default: $2)}")"$'\n'
    printf -v "${1//-/_}" '%s' "$2"
}

# parse_options ARGUMENTS: sets the options, and `overrides` to the key=value among the arguments.
parse_options() {
    option init "" "start from this checkpoint instead of pretraining; --model is to have its shape"
    option out "$root/runs/$recipe" "folder for manifests and run folders"
    option stage 1 "first stage to run"
    option stop-stage 99 "last stage to run"
    while [[ $# -gt 0 ]]; do
        case "$1" in
            -h | --help)
                usage
                exit 0
                ;;
            --*)
                [[ "$option_names " == *" ${1#--} "* ]] || fail "there is no option $1: --help lists those there are"
                [[ $# -ge 2 ]] || fail "$1 needs a value"
                local name="${1#--}"
                printf -v "${name//-/_}" '%s' "$2"
                shift 2
                ;;
            *=*)
                overrides+=("$1")
                shift
                ;;
            *) fail "'$1' is neither --OPTION nor key=value: --help lists the options" ;;
        esac
    done
    [[ "$stage" =~ ^[0-9]+$ && "$stop_stage" =~ ^[0-9]+$ ]] || fail "--stage and --stop-stage are whole numbers"
    encoder="${init:-$out/pretrained}"
}

# The comment at the head of run.sh, and its options.
usage() {
    sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"
    echo
    echo "Options:"
    printf '%s' "$option_help"
    echo
    echo "key=value goes to every pretraining and fine-tuning, for example trainer.precision=bf16."
    echo "What is done is skipped: after an interruption, give the same command again."
}

# set_up EXTRAS: finds the Python to use, SPEECHSSL_PYTHON where that is set, else .venv, which it makes; opens --out.
set_up() {
    if [[ -n "${SPEECHSSL_PYTHON:-}" ]]; then
        python="$SPEECHSSL_PYTHON"
        command -v "$python" > /dev/null || fail "SPEECHSSL_PYTHON=$python is no program"
    else
        log "setting up $root/.venv, unless that is done"
        "$root/tools/setup" "$1"
        python="$root/.venv/bin/python"
    fi
    mkdir -p "$out"
    local now
    now="$(settings)"
    if [[ ! -f "$out/settings" ]]; then
        echo "$now" > "$out/settings"
    elif [[ "$(< "$out/settings")" != "$now" ]]; then
        fail "$out was made with other options, which $out/settings lists: give those, or another --out"
    fi
}

# The options that decide what is in --out. Rates, seeds and amounts have folders of their own.
settings() {
    local name variable
    for name in $option_names; do
        variable="${name//-/_}"
        case "$name" in
            out | stage | stop-stage | lrs | seeds | amounts) ;;
            *) echo "--$name ${!variable}" ;;
        esac
    done
    printf '%s\n' ${overrides[@]+"${overrides[@]}"}
}

# at_stage N WHAT: whether stage N is to run; says so, and ends the stage before it.
at_stage() {
    end_stage
    [[ "$1" -ge "$stage" && "$1" -le "$stop_stage" ]] || return 1
    running="$1. $2"
    stage_began=$SECONDS
    log "stage $running"
}

# Notes the seconds that the running stage took, also where it failed or was interrupted.
end_stage() {
    if [[ -n "$running" ]]; then
        printf '%s\t%s\n' "$running" "$((SECONDS - stage_began))" >> "$out/seconds.tsv"
        running=""
    fi
}
trap end_stage EXIT

speechssl() {
    "$python" -m speechssl.cli "$@"
}

# shown VERB KEY=VALUE...: a command of the tool as one would type it.
shown() {
    local tool=("$root/.venv/bin/speechssl")
    if [[ -n "${SPEECHSSL_PYTHON:-}" ]]; then
        tool=("$python" -m speechssl.cli)
    fi
    printf '%q ' "${tool[@]}" "$@"
}

summarize() {
    "$python" "$root/recipes/summarize.py" "$@"
}

# once FOLDER COMMAND: runs the command, which fills FOLDER, unless it has done so before.
once() {
    local folder="$1"
    shift
    if [[ -f "$folder/.done" ]]; then
        log "done before: $folder"
        return
    fi
    log "$(printf '%q ' "$@")"
    "$@" >&2
    touch "$folder/.done"
}

# prepare KEY=VALUE...: the manifests of a corpus.
prepare() {
    once "$out/data" speechssl prepare "$@" out="$out/data"
}

# An encoder from the audio of the train split, without transcripts.
pretrain() {
    if [[ -n "$init" ]]; then
        log "no pretraining: --init $init"
        return
    fi
    once "$out/pretrained" speechssl pretrain model="$model" run_dir="$out/pretrained" \
        data.train="$out/data/train.jsonl" data.valid="$out/data/valid.jsonl" \
        ${pretraining[@]+"${pretraining[@]}"} ${pretrain_steps:+trainer.max_steps="$pretrain_steps"} \
        ${overrides[@]+"${overrides[@]}"}
}

# compare NAME MANIFEST: fine-tunes on the same transcripts from each of `starts`, and tests them.
# The first seed tries every rate; every seed is tested at the rate that had the lowest CER on valid.
compare() {
    local start rate seed run
    for start in $starts; do
        for rate in $lrs; do
            finetune "$1/$start/lr_$rate/seed_${seeds%% *}" "$2"
        done
        rate="$(best_rate "$1" "$start")"
        log "$1, $start: rate $rate"
        for seed in $seeds; do
            run="$1/$start/lr_$rate/seed_$seed"
            finetune "$run" "$2"
            evaluate "$out/ctc/$run"
        done
    done
}

# students NAME MANIFEST: `rounds` times, for each seed a student, on the same transcripts and on the audio of the train
# split without them, at the rate that the recognisers had; and tests it. Its teachers are the pretrained recognisers of all
# seeds, and then the students of the round before, with an n-gram of the text of the train split.
students() {
    local round seed run teachers rate lm from=pretrained
    rate="$(best_rate "$1" pretrained)"
    lm="$(units_lm "$1" 4)"
    sed 's/"text":/"spoken":/' "$out/data/train.jsonl" > "$out/data/train_untranscribed.jsonl"
    for ((round = 1; round <= rounds; round++)); do
        teachers=""
        for seed in $seeds; do
            teachers+=",$out/ctc/$1/$from/lr_$rate/seed_$seed"
        done
        from="student_$round"
        for seed in $seeds; do
            run="$out/ctc/$1/$from/lr_$rate/seed_$seed"
            once "$run" speechssl finetune task=distil_few "task.teacher=[${teachers#,}]" init="$encoder" run_dir="$run" \
                task.lm="$lm" data.train="[$out/data/$2.jsonl,$out/data/train_untranscribed.jsonl]" \
                data.valid="$out/data/valid.jsonl" data.skip_invalid=true optim.lr="$rate" trainer.seed="$seed" \
                trainer.max_steps="$finetune_steps" trainer.valid_every=100 ${overrides[@]+"${overrides[@]}"}
            evaluate "$run"
        done
    done
}

# units_lm NAME ORDER: the n-gram of the units of these recognisers, from the text of the train split.
units_lm() {
    local rate lm="$out/ctc/$1/lm/$2"
    rate="$(best_rate "$1" pretrained)"
    once "$lm" speechssl lm text="$out/data/train.jsonl" order="$2" out="$lm/units.arpa" \
        checkpoint="$out/ctc/$1/pretrained/lr_$rate/seed_${seeds%% *}"
    echo "$lm/units.arpa"
}

# finetune NAME/START/lr_RATE/seed_N MANIFEST: one run; its folder says how. Clips of valid with a character that the few
# transcripts lack are left out there (in the test, that character counts as an error).
finetune() {
    local run="$out/ctc/$1" seed="${1##*_}" rate="${1##*/lr_}" from
    case "$1" in
        */pretrained/*) from=(init="$encoder" ${filter_bank[@]+"${filter_bank[@]}"}) ;;
        */scratch/*)
            from=(init=none model="$model" ${untrained[@]+"${untrained[@]}"} ${filter_bank[@]+"${filter_bank[@]}"})
            ;;
        */logmel/*) from=(init=none model="$model" feature_encoder=fbank40) ;;
    esac
    once "$run" speechssl finetune "${transcripts[@]}" "${from[@]}" run_dir="$run" \
        data.train="$out/data/$2.jsonl" data.valid="$out/data/valid.jsonl" data.skip_invalid=true \
        optim.lr="${rate%/*}" trainer.seed="$seed" trainer.max_steps="$finetune_steps" trainer.valid_every=100 \
        ${overrides[@]+"${overrides[@]}"}
}

# ngram NAME START: tests the first seed's model again, with n-grams of its units from the text of the train split: by beam
# search for words, and by posterior decoding for characters.
ngram() {
    decode "$1" "$2" beam wer 6
    decode "$1" "$2" posterior cer 5
}

# decode NAME START DECODER ERROR ORDER: its weights on valid, by that error, and a test with them.
decode() {
    local run lm with
    run="$out/ctc/$1/$2/lr_$(best_rate "$1" "$2")/seed_${seeds%% *}"
    lm="$(units_lm "$1" "$5")"
    with=(checkpoint="$run" decoder="$3" decoder.lm="$lm")
    once "$run/$3/weights" speechssl tune "${with[@]}" by="$4" data.valid="$out/data/valid.jsonl" \
        out="$run/$3/weights/weights.json"
    once "$run/$3/test" speechssl evaluate "${with[@]}" decoder.weights="$run/$3/weights/weights.json" \
        data.test="$out/data/test.jsonl" out="$run/$3/test" against="$run/test/hypotheses.jsonl"
}

# best_rate NAME START: the rate with the lowest CER on valid.
best_rate() {
    summarize rate "$out/ctc/$1/$2"
}

# Who is speaking, from the pretrained encoder.
speakers() {
    once "$out/speaker" speechssl finetune task=speaker init="$encoder" run_dir="$out/speaker" \
        data.train="$out/data/train.jsonl" data.valid="$out/data/valid.jsonl" \
        trainer.max_steps="$speaker_steps" ${overrides[@]+"${overrides[@]}"}
    evaluate "$out/speaker"
}

# probe NAME KEY=VALUE...: what each layer of the pretrained encoder knows of the speakers, or of label=; log-mel and a
# random encoder beside it.
probe() {
    local folder="$out/probe/$1"
    shift
    once "$folder" speechssl probe checkpoint="$encoder" out="$folder" data.train="$out/data/train.jsonl" \
        data.valid="$out/data/valid.jsonl" data.test="$out/data/test.jsonl" steps="$probe_steps" "$@"
}

# evaluate RUN: on the test split.
evaluate() {
    once "$1/test" speechssl evaluate checkpoint="$1" data.test="$out/data/test.jsonl" out="$1/test"
}

# The error rates over the amount of transcripts, drawn.
label_curve() {
    summarize plot "$out" "$out/label_curve.svg"
}

# The closing table, on stdout and in --out.
table() {
    summarize table "$out" | tee "$out/table.txt"
}
