# What the scripts of experiments share; RUNS is the folder of their runs. Sourced.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

asyncthink() { python -m asyncthink "$@"; }

train() { # NAME KIND OPTIONS...: a run that goes on where it was interrupted, and is not made again
    local name=$1 kind=$2 resume=()
    shift 2
    [ -e "$RUNS/$name/finished" ] && return
    if [ -e "$RUNS/$name/config.json" ]; then resume=(--resume); fi
    asyncthink train "$kind" --out "$RUNS/$name" "$@" "${resume[@]}"
    touch "$RUNS/$name/finished"
}

newest() { # NAME KIND: the last folder KIND-N of a run
    ls -d "$RUNS/$1/$2"-* | tail -n 1 | grep .
}

report() { # NAME OPTIONS...: an evaluation whose report is kept once it is whole
    local name=$1
    shift
    [ -e "$RUNS/reports/$name.json" ] && return
    mkdir -p "$RUNS/reports"
    asyncthink eval --pool 4 "$@" --json > "$RUNS/reports/$name.part"
    mv "$RUNS/reports/$name.part" "$RUNS/reports/$name.json"
}
