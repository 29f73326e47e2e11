#!/usr/bin/env bash
# The experiment of plan.md, one stage at a time; a stage that was interrupted goes on where it was, one that is finished
# is not made again.
#
#   run.sh cold SEED          the cold start of a seed, shared by its arms
#   run.sh budget             `parallel` at the budgets of plan.md until one fits; prints it (put it into settings.sh)
#   run.sh rl ARM SEED        reinforcement learning of one arm
#   run.sh sweep ARM SEED     its best checkpoint on validation puzzles at several temperatures
#   run.sh test ARM SEED      its best checkpoint on the test puzzles, at the temperature that validation chose
#   run.sh frontier           the three modes of seed 0 on test puzzles under other budgets
#   run.sh seconds            the three modes of seed 0, one episode at a time: the machine must do nothing else
#   run.sh transfer           Sudoku, which no organizer's demonstration has shown
#   run.sh collect            configurations, logs and reports into this folder
#
# Arms: asyncthink, parallel, sequential, uncapped, paper, no-path, no-cold, no-rl. RUNS is the folder of the runs
# (default: runs/countdown_10x4), SMOKE=1 makes everything tiny, to test this script.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
RUNS=${RUNS:-runs/countdown_10x4}
# shellcheck source=../steps.sh
. "$here/../steps.sh"
# shellcheck source=settings.sh
. "$here/settings.sh"

cold() {  # SEED
    local seed=$1
    # The search alone, without any protocol: what the arm no-cold begins with.
    train "search-$seed" sft --seed "$seed" --task "$task,$task,$task,sudoku-4" --shape "$shape" --decay 0 \
        --solo 0.5 --part 0.5 --shared 0 --isolated 0 --steps "$search_steps" "${sft[@]}"
    # Organizers of countdown alone: a quarter of the demonstrations is Sudoku by one agent.
    train "cold-$seed" sft --seed "$seed" --task "$task,$task,$task,solo:sudoku-4" --decay 0.3 \
        --model "$(newest "search-$seed" step)" --solo 0.25 --shared 0.75 --isolated 0 --workers 0.25 \
        --steps "$cold_steps" "${sft[@]}"
    python "$here/choose.py" copied "$RUNS/cold-$seed"
}

rl() {  # ARM SEED [BUDGET]
    local arm=$1 seed=$2 budget=${3:-$budget} model own=() name=$1-$2
    [ "$arm" = no-rl ] && return
    [ $# -eq 3 ] && name=$arm-$seed-$budget
    model=$(newest "cold-$seed" step)
    case $arm in
        asyncthink) ;;
        parallel) own=(--mode parallel --credit marginal --validate-temperature 1) ;;
        sequential) own=(--mode sequential) ;;
        uncapped) own=(--mode sequential) budget=$uncapped ;;
        paper) own=(--eta-weight 0.2 --complete 0 --path-weight 0 --scale group) ;;
        no-path) own=(--path-weight 0) ;;
        no-cold) model=$(newest "search-$seed" step) ;;
        *) echo "arm: expected one of those in the head of $0, got $arm" >&2; exit 2 ;;
    esac
    train "$name" grpo --seed "$seed" --model "$model" --task "$task" --max-tokens "$budget" "${grpo[@]}" "${own[@]}"
}

model_of() {  # ARM SEED
    if [ "$1" = no-rl ]; then newest "cold-$2" step; else newest "$1-$2" best; fi
}

mode_of() {  # ARM
    case $1 in
        parallel) echo parallel ;;
        sequential | uncapped) echo sequential ;;
        *) echo asyncthink ;;
    esac
}

limit_of() {  # ARM
    if [ "$1" = uncapped ]; then echo "$uncapped"; else echo "$budget"; fi
}

sweep() {  # ARM SEED
    local heat heats="0 0.3 0.6 0.8 1"
    [ "$1" = parallel ] && heats="0.6 0.8 1 1.2"
    for heat in $heats; do
        report "sweep-$1-$2-$heat" --latency 0 --task "$task" --part validation --first 2000000 --puzzles "$validation" \
            --mode "$(mode_of "$1")" --model "$(model_of "$1" "$2")" --max-tokens "$(limit_of "$1")" \
            --temperature "$heat"
    done
}

temperature() {  # ARM: by the sweeps of all its seeds
    python "$here/choose.py" temperature "$RUNS/reports" "$1"
}

tested() {  # NAME ARM SEED OPTIONS...
    local name=$1 arm=$2 seed=$3
    shift 3
    report "$name" --latency 0 --task "$task" --part test --first 1000000 --mode "$(mode_of "$arm")" \
        --model "$(model_of "$arm" "$seed")" --temperature "$(temperature "$arm")" "$@"
}

frontier() {
    local arm limit
    for arm in asyncthink parallel sequential; do
        for limit in $frontier_budgets; do
            tested "frontier-$arm-$limit" "$arm" 0 --puzzles "$frontier_puzzles" --max-tokens "$limit"
        done
    done
}

seconds() {
    python "$here/seconds.py" "$RUNS/reports/seconds.json" --task "$task" --puzzles "$timed_puzzles" \
        "asyncthink=$(model_of asyncthink 0)=$(temperature asyncthink)=$budget" \
        "parallel=$(model_of parallel 0)=$(temperature parallel)=$budget" \
        "sequential=$(model_of sequential 0)=$(temperature sequential)=$budget"
}

transfer() {
    local arm
    for arm in asyncthink no-rl; do
        report "sudoku-$arm" --latency 0 --task sudoku-4 --part test --puzzles "$frontier_puzzles" --max-tokens 300 \
            --model "$(model_of "$arm" 0)"
    done
    report sudoku-sequential --latency 0 --task sudoku-4 --part test --puzzles "$frontier_puzzles" --max-tokens 300 \
        --mode sequential --model "$(model_of sequential 0)"
    report sudoku-parallel --latency 0 --task sudoku-4 --part test --puzzles "$frontier_puzzles" --max-tokens 300 \
        --mode parallel --temperature 1 --model "$(model_of parallel 0)"
}

budget() {  # the rule of plan.md
    local limit
    for limit in $budgets; do
        rl parallel 0 "$limit"
        report "budget-$limit" --latency 0 --task "$task" --part validation --first 2000000 --puzzles "$budget_puzzles" \
            --mode parallel --model "$(newest "parallel-0-$limit" best)" --max-tokens "$limit" --temperature 1
        if python "$here/choose.py" budget "$RUNS/reports/budget-$limit.json"; then
            ln -sfn "parallel-0-$limit" "$RUNS/parallel-0" # it is not trained a second time
            return
        fi
    done
    echo "no budget of settings.sh fits: add one between those that are too small and too large" >&2
    exit 1
}

stage=${1:-}
[ $# -gt 0 ] && shift
case $stage in
    cold | rl | sweep | budget | frontier | seconds | transfer) "$stage" "$@" ;;
    test) tested "test-$1-$2" "$1" "$2" --puzzles "$test" --max-tokens "$(limit_of "$1")" ;;
    collect) python "$here/page.py" collect "$RUNS" ;;
    *) sed -n '2,19p' "$0" >&2; exit 2 ;;
esac
