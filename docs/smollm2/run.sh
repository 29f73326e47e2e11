#!/usr/bin/env bash
# A pretrained instruct model learns to organize: SmolLM2-135M-Instruct on countdown-5x2, in its chat template, the tags
# added as tokens.
#
#   run.sh next              the next stage that is not done; status 3 when nothing is left
#
#   run.sh before            the model as it is, and one of its shape with random weights: 150 test puzzles each
#   run.sh sft               the cold start, about 1M tokens
#   run.sh rl MODE           40 steps of GRPO: asyncthink, parallel or sequential
#   run.sh test MODE         150 test puzzles, 30 of them timed one at a time: the machine must do nothing else
#   run.sh transfer MODE     Sudoku 4x4, which only one agent alone has demonstrated
#
# MODEL is the folder or hub id of the model, RUNS the folder of the runs. SMOKE=1 makes everything tiny.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
MODEL=${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}
RUNS=${RUNS:-runs/smollm2}
# shellcheck source=../steps.sh
. "$here/../steps.sh"

task=countdown-5x2
budget=320
steps=500 rl_steps=40 questions=4 drawn=6 group=6 puzzles=150 timed=30 validation=40 every=10 batch=2000
if [ -n "${SMOKE:-}" ]; then
    budget=8 steps=2 rl_steps=1 questions=1 drawn=1 group=2 puzzles=2 timed=1 validation=1 every=1 batch=300
fi

before() {
    report before --task $task --part test --puzzles $puzzles --max-tokens $budget --model "$MODEL" --latency 0
    [ -e "$RUNS/random/config.json" ] || python "$here/random_weights.py" "$MODEL" "$RUNS/random"
    report random --task $task --part test --puzzles $puzzles --max-tokens $budget --model "$RUNS/random" --latency 0
}

sft() {
    train sft sft --steps $steps --model "$MODEL" --tag-tokens --task "$task,$task,$task,solo:sudoku-4" --solo 0.25 --shared 0.75 \
        --isolated 0 --batch-tokens $batch --learning-rate 3e-4 --warmup 20 --decay 0.5 --no-bfloat16 \
        --evaluate-every $((steps / 2)) --save-every $((steps / 2)) --threads "$OMP_NUM_THREADS"
}

rl() { # MODE
    local model own=()
    [ "$1" = parallel ] && own=(--credit marginal --validate-temperature 1)
    model=$(newest sft step)
    train "$1" grpo --steps $rl_steps --model "$model" --task $task --mode "$1" --max-tokens $budget \
        --questions $questions --drawn $drawn --rounds 1 --group-size $group --entropy 1e-3 --learning-rate 1e-5 \
        --eta-weight 0 --complete 0.5 --path-weight 0.4 --batch-tokens 2048 --validate-every $every \
        --validate-puzzles $validation --save-every $every --threads "$OMP_NUM_THREADS" "${own[@]}"
}

tested() { # NAME MODE OPTIONS...
    local name=$1 mode=$2 model heat=0
    shift 2
    [ "$mode" = parallel ] && heat=1
    model=$(newest "$mode" best)
    report "$name" --part test --mode "$mode" --temperature $heat --model "$model" --max-tokens $budget "$@"
}

stages() { # one a line, in order
    local mode
    printf '%s\n' before sft
    for mode in asyncthink parallel sequential; do printf '%s\n' "rl $mode" "test $mode" "transfer $mode"; done
}

stage() { # STAGE WORDS...
    case $1:$# in
        before:1 | sft:1 | rl:2) "$@" ;;
        test:2) tested "test-$2" "$2" --task $task --puzzles $puzzles --latency $timed ;;
        transfer:2) tested "sudoku-$2" "$2" --task sudoku-4 --puzzles $puzzles --latency 0 ;;
    esac
}

case ${1:-}:$# in
    next:1) next ;;
    before:1 | sft:1 | rl:2 | test:2 | transfer:2) run "$@" ;;
    *) sed -n '2,13p' "$0" >&2; exit 2 ;;
esac
