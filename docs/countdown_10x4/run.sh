#!/usr/bin/env bash
# The experiment of plan.md, one stage at a time; a stage that was interrupted goes on where it was, one that is finished
# is not made again.
#
#   run.sh next               the next stage that is not done, in the order of their value; status 3 when nothing is left
#   run.sh stages             all stages in that order, and which are done
#
#   run.sh cold SEED          the cold start of a seed, shared by its arms
#   run.sh given SEED         instead: the shipped cold start, as longer-SEED
#   run.sh any-deal SEED      the cold start again, of organizers that deal the search in any way
#   run.sh budget             `parallel` at the budgets of plan.md until one fits, which all later stages use
#   run.sh rl ARM SEED        reinforcement learning of one arm
#   run.sh rl ARM SEED LIMIT  the same at a budget that may become the chosen one, beside the stage `budget`
#   run.sh sweep ARM          its best checkpoint of the first seed on validation puzzles at several temperatures
#   run.sh test ARM SEED      its best checkpoint on the test puzzles, at the temperature that validation chose (from any
#                             deal: the last one, greedy)
#   run.sh frontier           the three modes of the first seed on test puzzles under other budgets
#   run.sh transfer           Sudoku, which no organizer's demonstration has shown
#   run.sh seconds            the three modes of the first seed, one episode at a time: the machine must do nothing else
#   run.sh collect            configurations, logs and reports into this folder
#
# Arms: asyncthink, parallel, sequential, uncapped, no-cold, no-rl; from a cold start that shows any deal: free, paper,
# no-path, any-deal (no reinforcement learning). RUNS is the folder of the runs (default: runs/countdown_10x4), SMOKE=1
# makes everything tiny, to test this script.
#
# All that is left, unattended: while bash docs/countdown_10x4/run.sh next; do :; done
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
RUNS=${RUNS:-runs/countdown_10x4}
# shellcheck source=../steps.sh
. "$here/../steps.sh"
# shellcheck source=settings.sh
. "$here/settings.sh"

cold() {  # SEED
    local seed=$1 steps
    # What searches alone do not teach a model of this size: whether a number is among those of the puzzle, arithmetic.
    train "drill-$seed" sft --steps "$drill_steps" --seed "$seed" --task "$drilled" --shape "$shape" --decay 0.3 \
        --solo 1 --shared 0 --isolated 0 "${sft[@]}"
    # Organizers that deal the search evenly, one agent alone that fills the budget, and the drills among them; then
    # more of the same, from a rate that falls again.
    organizers cold "$cold_steps" "drill-$seed" "$seed" --decay 0.7
    for steps in $longer_steps; do # the next one goes on where this one ends, its rate falling from what is left of it
        organizers longer "$steps" "cold-$seed" "$seed" --decay 0.9 --learning-rate 1.5e-3
        settled "$seed" "longer-$seed-$steps" && return
        [ $? -eq 3 ] || fail "the cold start of seed $seed could not be judged"
    done
    fail "the cold start of seed $seed misses a rule after $steps steps of longer-$seed: add more to settings.sh"
}

organizers() {  # NAME STEPS BEGINNING SEED OPTIONS...: a part of the cold start, from the end of the run BEGINNING;
                # OPTIONS stand behind those of all parts and replace them
    local name=$1-$4 steps=$2 seed=$4 model
    model=$(newest "$3" step)
    shift 4
    train "$name" sft --steps "$steps" --seed "$seed" --task "$organized" --model "$model" --batches 2 \
        --max-tokens "$filled" --solo 0.25 --shared 0.75 --isolated 0 --workers 0.6 "${sft[@]}" "$@"
}

settled() {  # SEED REPORT: whether a cold start meets the rules of plan.md; status 3 if not
    local model
    model=$(newest "longer-$1" step)
    report "$2" --latency 0 --task "$task" --part validation --first 2000000 --puzzles "$validation" --model "$model" \
        --max-tokens "$filled" || return 1
    python "$here/choose.py" copied "$model" "$filled" && python "$here/choose.py" found "$RUNS/reports/$2.json"
}

rl() {  # ARM SEED [BUDGET]
    local arm=$1 seed=$2 limit model steps=$rl_steps rate=$alone_rate own=() name=$1-$2
    case $arm in
        no-rl | any-deal) return ;;
        asyncthink) ;;
        parallel) own=(--mode parallel --credit marginal --validate-temperature 1) ;;
        sequential | uncapped) own=(--mode sequential) ;;
        paper) own=(--eta-weight 0.2 --complete 0 --path-weight 0 --scale group) ;;
        no-path) own=(--path-weight 0) ;;
        no-cold | free) ;;
        *) fail "arm: expected one of those in its head, got $arm" ;;
    esac
    if [ $# -eq 3 ]; then
        limit=$3 name=$arm-$seed-$3
    else
        limit=$(limit_of "$arm")
        if [ -e "$RUNS/$name-$limit/finished" ] && [ ! -e "$RUNS/$name" ]; then # it is not trained a second time
            ln -sfn "$name-$limit" "$RUNS/$name"
            return
        fi
    fi
    case $arm in
        no-cold)
            # As long as the cold start, without an organizer: this arm shall lack the protocol alone.
            model=$(newest "drill-$seed" step)
            train "plain-$seed" sft --steps "$((cold_steps + ${longer_steps%% *}))" --seed "$seed" --task "$searched" \
                --model "$model" --decay 0.7 --batches 2 --solo 0.5 --part 0.5 --shared 0 --isolated 0 "${sft[@]}"
            model=$(newest "plain-$seed" step) ;;
        uncapped)
            # The cold start shows no search this long.
            model=$(newest "longer-$seed" step)
            train "alone-$seed" sft --steps "$alone_steps" --seed "$seed" --task "$drills:ALONE" --decay 1 \
                --model "$model" --solo 1 --shared 0 --isolated 0 "${sft[@]}"
            model=$(newest "alone-$seed" step) ;;
        free | paper | no-path) model=$(newest "any-deal-$seed" step) ;;
        *) model=$(newest "longer-$seed" step) ;;
    esac
    if [ "$(mode_of "$arm")" = asyncthink ]; then steps=$organizer_steps; fi
    case $arm in asyncthink | no-cold) rate=$organizer_rate ;; esac
    train "$name" grpo --steps "$steps" --seed "$seed" --model "$model" --task "$task" --max-tokens "$limit" \
        --learning-rate "$rate" "${grpo[@]}" "${own[@]}"
}

any_deal() {  # SEED: organizers that deal the search in any way: which one is short, they must find out themselves
    organizers any-deal "$any_deal_steps" "longer-$1" "$1" --task "$dealt" --decay 1
}

model_of() {  # ARM SEED
    case $1 in
        no-rl) newest "longer-$2" step ;;
        any-deal | free | paper | no-path) newest "$1-$2" step ;; # rewards are told apart by what they end with
        *) newest "$1-$2" best ;;
    esac
}

mode_of() {  # ARM
    case $1 in
        parallel) echo parallel ;;
        sequential | uncapped) echo sequential ;;
        *) echo asyncthink ;;
    esac
}

limit_of() {  # ARM
    if [ "$1" = uncapped ]; then
        echo "$uncapped"
    else
        [ -e "$RUNS/budget" ] || fail "$RUNS has no budget yet: run its stage budget first"
        cat "$RUNS/budget"
    fi
}

sweep() {  # ARM
    local heat limit model heats=$heats
    [ "$1" = parallel ] && heats=$parallel_heats
    limit=$(limit_of "$1")
    model=$(model_of "$1" "$first")
    for heat in $heats; do
        if [ "$1" = parallel ]; then # the stage budget has asked these puzzles, and more
            cp "$RUNS/reports/budget-$limit-$heat.json" "$RUNS/reports/sweep-parallel-$heat.json"
            continue
        fi
        report "sweep-$1-$heat" --latency 0 --task "$task" --part validation --first 2000000 --puzzles "$validation" \
            --mode "$(mode_of "$1")" --model "$model" --max-tokens "$limit" --temperature "$heat"
    done
}

given() {  # SEED
    local model=$RUNS/longer-$1 shipped=python/asyncthink/checkpoints/$task
    [ "$1" = "$first" ] || fail "only the cold start of seed $first is shipped, got $1"
    [ -e "$model" ] && fail "$model exists already"
    mkdir -p "$model" "$RUNS/done"
    cp -r "$shipped" "$model/step-$(printf '%06d' "${longer_steps%% *}")"
    touch "$model/finished" "$RUNS/done/cold-$1"
}

temperature() {  # ARM: by its sweep; greedy where any deal was shown, for time
    case $1 in
        free | paper | no-path | any-deal) echo 0 ;;
        *) python "$here/choose.py" temperature "$RUNS/reports" "$1" ;;
    esac
}

tested() {  # NAME ARM SEED OPTIONS...
    local name=$1 arm=$2 heat model
    model=$(model_of "$arm" "$3")
    heat=$(temperature "$arm")
    shift 3
    report "$name" --latency 0 --task "$task" --part test --first "$test_first" --mode "$(mode_of "$arm")" \
        --model "$model" --temperature "$heat" "$@"
}

test_arm() {  # ARM SEED
    local limit
    limit=$(limit_of "$1")
    tested "test-$1-$2" "$1" "$2" --puzzles "$test" --max-tokens "$limit"
}

frontier() {
    local arm limit
    for arm in asyncthink parallel sequential; do
        for limit in $frontier_budgets; do
            tested "frontier-$arm-$limit" "$arm" "$first" --puzzles "$frontier_puzzles" --max-tokens "$limit"
        done
    done
}

seconds() {
    local arm model heat limit modes=()
    for arm in asyncthink parallel sequential; do
        model=$(model_of "$arm" "$first")
        heat=$(temperature "$arm")
        limit=$(limit_of "$arm")
        modes+=("$arm=$model=$heat=$limit")
    done
    python "$here/seconds.py" "$RUNS/reports/seconds.json" --task "$task" --puzzles "$timed_puzzles" "${modes[@]}"
}

transfer() {
    local arm model heat
    for arm in asyncthink no-rl sequential parallel; do
        model=$(model_of "$arm" "$first")
        heat=0
        [ "$arm" = parallel ] && heat=1
        report "sudoku-$arm-$first" --latency 0 --task sudoku-4 --part test --puzzles "$frontier_puzzles" --max-tokens 300 \
            --mode "$(mode_of "$arm")" --model "$model" --temperature "$heat"
    done
}

budget() {  # the rule of plan.md
    local limit model heat
    while :; do
        limit=$(python "$here/choose.py" budget "$RUNS/reports" "$budgets")
        [ "${limit#fits }" != "$limit" ] && break
        rl parallel "$first" "$limit"
        model=$(newest "parallel-$first-$limit" best)
        for heat in $parallel_heats; do
            report "budget-$limit-$heat" --latency 0 --task "$task" --part validation --first 2000000 --mode parallel \
                --puzzles "$budget_puzzles" --model "$model" --max-tokens "$limit" --temperature "$heat"
        done
    done
    limit=${limit#fits }
    ln -sfn "parallel-$first-$limit" "$RUNS/parallel-$first"
    echo "$limit" > "$RUNS/budget.part"
    mv "$RUNS/budget.part" "$RUNS/budget"
}

stages() {  # one a line, in the order of their value
    local arm
    printf '%s\n' "cold $first" budget "rl asyncthink $first" "rl sequential $first"
    for arm in asyncthink parallel sequential no-rl; do printf '%s\n' "sweep $arm" "test $arm $first"; done
    printf '%s\n' frontier transfer "any-deal $first" "test any-deal $first"
    for arm in free no-path paper; do printf '%s\n' "rl $arm $first" "test $arm $first"; done
    for arm in no-cold uncapped; do printf '%s\n' "rl $arm $first" "sweep $arm" "test $arm $first"; done
    echo "cold $second"
    for arm in asyncthink parallel sequential; do printf '%s\n' "rl $arm $second" "test $arm $second"; done
    echo "cold $third"
    for arm in asyncthink parallel; do printf '%s\n' "rl $arm $third" "test $arm $third"; done
    echo "any-deal $second"
    for arm in free no-path paper no-cold uncapped; do printf '%s\n' "rl $arm $second" "test $arm $second"; done
    for arm in no-rl any-deal; do echo "test $arm $second"; done
    echo "collect"
}

stage() {  # STAGE WORDS...
    case $1 in
        test) shift && test_arm "$@" ;;
        any-deal) any_deal "$2" ;;
        collect) python "$here/page.py" collect "$RUNS" ;;
        *) "$@" ;;
    esac
}

case ${1:-}:$# in
    next:1) next ;;
    stages:1)
        stages | while read -r -a stage; do is_done "${stage[@]}" && mark=x || mark=" "; echo "[$mark] ${stage[*]}"; done ;;
    cold:2 | given:2 | any-deal:2 | rl:[34] | sweep:2 | test:3 | budget:1 | frontier:1 | seconds:1 | transfer:1 | collect:1)
        run "$@" ;;
    *) sed -n '2,26p' "$here/run.sh" >&2; exit 2 ;;
esac
