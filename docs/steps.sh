# What the scripts of experiments share; RUNS is the folder of their runs. Sourced.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

fail() { # MESSAGE
    echo "$(basename "$0"): $1" >&2
    exit 1
}

asyncthink() { python -m asyncthink "$@"; }

train() { # NAME KIND --steps N OPTIONS...: a run that goes on where it was interrupted, and is not made again
    local name=$1 kind=$2 steps=$4 resume=()
    shift 2
    if [ ! -e "$RUNS/$name/$(printf 'step-%06d' "$steps")" ]; then # the last thing that a run writes
        rm -f "$RUNS/$name/finished"
        if [ -e "$RUNS/$name/config.json" ]; then resume=(--resume); fi
        asyncthink train "$kind" --out "$RUNS/$name" "$@" "${resume[@]}"
    fi
    touch "$RUNS/$name/finished"
}

newest() { # NAME KIND: the last folder KIND-N of a finished run
    [ -e "$RUNS/$1/finished" ] || fail "$RUNS/$1 is not finished: run its stage first"
    ls -d "$RUNS/$1/$2"-[0-9]* | tail -n 1
}

report() { # NAME OPTIONS...: an evaluation whose report is kept once it is whole
    local name=$1
    shift
    [ -e "$RUNS/reports/$name.json" ] && return
    mkdir -p "$RUNS/reports"
    asyncthink eval --pool 4 "$@" --json > "$RUNS/reports/$name.part" || return # also where `set -e` does not reach
    mv "$RUNS/reports/$name.part" "$RUNS/reports/$name.json"
}

# A script of stages says in `stages` what they are, one a line, in order, and does one in `stage WORDS...`.

is_done() { # STAGE WORDS...
    [ -e "$RUNS/done/$(IFS=-; echo "$*")" ]
}

run() { # STAGE WORDS...: once. Two at a time would write into the same files
    local name
    is_done "$@" && return
    name=$(IFS=-; echo "$*")
    mkdir -p "$RUNS/done" "$RUNS/locks"
    exec 9> "$RUNS/locks/$name" # what the stage starts inherits it: the rest of a killed stage still holds it
    flock -n 9 || fail "stage \"$*\" is running already"
    stage "$@"
    touch "$RUNS/done/$name"
}

next() { # the first stage that is not done
    local words
    while read -r -a words; do
        is_done "${words[@]}" && continue
        echo "$(basename "$0"): ${words[*]}" >&2
        run "${words[@]}" < /dev/null
        return
    done < <(stages)
    echo "$(basename "$0"): every stage is done" >&2
    exit 3
}
