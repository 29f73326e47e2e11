#!/usr/bin/env bash
# Everything on ../results.md from random weights: `bash docs/results/run.sh`, or one stage: train, eval, page.
# Runs and reports go to runs/, and what is finished there is not made again: after an interruption the same command goes
# on. Configurations, reports and pictures are copied to this folder; logs stay in runs/.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=docs/results
mkdir -p "$data/eval" "$data/train" runs/reports
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

task=countdown-8x4
max_tokens=300    # tokens that one agent may draw, in training and in every evaluation
temperature=1.0   # of the rollouts and of the evaluation: the traces of `parallel` must differ

train() {  # NAME KIND OPTIONS...: a run whose configuration is kept
    local name=$1 kind=$2
    shift 2
    if [ ! -e "runs/$name/finished" ]; then
        local resume=()
        if compgen -G "runs/$name/step-*" > /dev/null; then resume=(--resume); else rm -rf "runs/$name"; fi
        asyncthink train "$kind" --out "runs/$name" --max-tokens $max_tokens "$@" "${resume[@]}"
        touch "runs/$name/finished"
    fi
    cp "runs/$name/config.json" "$data/train/$name.json"
}

last() {  # NAME: the last checkpoint of a run
    ls -d "runs/$1"/step-* | tail -n 1 | grep .
}

report() {  # NAME OPTIONS...: an evaluation whose report is kept once it is whole
    local name=$1
    shift
    if [ ! -e "runs/reports/$name.json" ]; then
        asyncthink eval --first 1000000 --max-tokens $max_tokens --temperature $temperature --latency 0 "$@" --json \
            > "runs/reports/$name.part"
        mv "runs/reports/$name.part" "runs/reports/$name.json"
    fi
    cp "runs/reports/$name.json" "$data/eval/$name.json"
}

train_all() {
    # The search alone, no protocol; countdown-8 has 4 to 6 solutions, so there are more puzzles of it.
    train base sft --task countdown-8 --steps 10000 --decay 0.25 --solo 0.5 --part 0.5 --shared 0 --isolated 0 \
        --threads 2
    local base alone organizer
    base=$(last base)
    # Three of four demonstrations are countdown.
    local cold=(--model "$base" --task $task,$task,$task,sudoku-4 --steps 9000 --decay 0.3 --learning-rate 1.5e-3)
    train alone sft "${cold[@]}" --solo 1 --shared 0 --isolated 0
    train organizer sft "${cold[@]}" --solo 0.1 --shared 0.9 --isolated 0 --append 0.15 --workers 0.25
    alone=$(last alone)
    organizer=$(last organizer)
    local rl=(--task $task --temperature $temperature --learning-rate 3e-4 --decay 0.2)
    train asyncthink grpo --model "$organizer" "${rl[@]}" --steps 300
    train parallel grpo --model "$alone" "${rl[@]}" --steps 300 --mode parallel
    train sequential grpo --model "$alone" "${rl[@]}" --steps 300 --mode sequential
    train longer grpo --model "$(last asyncthink)" "${rl[@]}" --steps 260 --eta-threshold 0.65
    train no-eta grpo --model "$organizer" "${rl[@]}" --steps 300 --eta-weight 0
    train no-sft grpo --model "$base" "${rl[@]}" --steps 300
}

eval_all() {
    local organizer asyncthink parallel sequential
    organizer=$(last organizer)
    asyncthink=$(last asyncthink)
    parallel=$(last parallel)
    sequential=$(last sequential)
    local held_out=(--task $task --puzzles 192 --draws 3)  # all that there are
    # First: it takes seconds, for which the machine should do nothing else.
    report countdown "${held_out[@]}" --mode sequential,parallel,asyncthink --latency 40 \
        --model sequential="$sequential" --model parallel="$parallel" --model asyncthink="$asyncthink"
    report longer "${held_out[@]}" --mode parallel,asyncthink --latency 40 \
        --model parallel="$parallel" --model asyncthink="$(last longer)"
    report no-rl "${held_out[@]}" --model "$organizer"
    local run
    for run in no-eta no-sft; do
        report $run "${held_out[@]}" --model "$(last $run)"
    done
    report vote "${held_out[@]}" --mode parallel --aggregate vote --model "$parallel"
    report joins-rl "${held_out[@]}" --model "$asyncthink" --join exact,append,link
    report sudoku-sft --task sudoku-4 --puzzles 500 --model "$organizer" --temperature 0
    report sudoku-rl --task sudoku-4 --puzzles 500 --model "$asyncthink" --temperature 0
    # The checkpoint in the box was trained with shared and isolated workers, and with appended returns.
    report joins --task countdown --puzzles 400 --max-tokens 700 --temperature 0 --mode sequential,asyncthink \
        --context shared,isolated --join exact,append,link
}

page() {
    python docs/results/make_page.py docs/results.md
}

case ${1:-all} in
    train) train_all ;;
    eval) eval_all ;;
    page) page ;;
    all)
        train_all
        eval_all
        page
        ;;
    *) echo "usage: $0 [train|eval|page]" >&2; exit 2 ;;
esac
