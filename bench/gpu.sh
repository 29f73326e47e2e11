#!/usr/bin/env bash
# Builds, tests and benches on a GPU machine, without a network, in under ten minutes; writes bench/RESULTS_GPU.md.
#
#   bash bench/gpu.sh [WHEELS]
#
# FlashInfer is compared with where it is installed, or lies in the folder WHEELS as wheels fetched elsewhere:
# flashinfer-python 0.6.12, apache-tvm-ffi, nvidia-ml-py, requests, tqdm. A stage that fails or runs out of time is told
# at the end and hides none of the others; build/gpu-logs has the output of each.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} logs=build/gpu-logs site=$PWD/build/gpu-site failed=0
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/python:$site${PYTHONPATH:+:$PYTHONPATH}"

stage() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 code=0 start=$SECONDS
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1 || code=$?
  printf '%4d s  %-10s %s\n' "$((SECONDS - start))" "$name" \
    "$([ "$code" = 0 ] && echo ok || echo "FAILED ($code)"): $(tail -n 1 "$logs/$name.log")" | tee -a "$logs/summary"
  [ "$code" = 0 ] || failed=1
}

if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "no GPU here: nothing was built, tested or measured" >&2
  exit 2
fi
rm -rf "$logs" "$site"
mkdir -p "$logs" "$site"

# Whoever compiles at run time links with -lcuda and -lcudart, which may lie under versioned names alone.
links=$PWD/build/gpu-links
mkdir -p "$links"
packages=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1] / "nvidia")')
for name in libcuda.so libcudart.so; do
  found=$(find -L /usr/local/nvidia /usr/local/cuda /usr/lib /usr/lib64 "$packages" -name "$name*" 2>/dev/null | head -n 1)
  [ -z "$found" ] || ln -sf "$found" "$links/$name"
done
for header in $(find -L "$packages" -name 'curand*.h' 2>/dev/null); do ln -sf "$header" "$links/"; done
export LIBRARY_PATH="$links${LIBRARY_PATH:+:$LIBRARY_PATH}" CPATH="$links${CPATH:+:$CPATH}"

[ $# = 0 ] || stage wheels 60 "$python" -m pip install -q --no-index --no-deps --target "$site" "$1"/*.whl
stage build 140 "$python" -m pip install -e . --no-build-isolation --no-deps

# What is compiled ahead, and the tests, while nothing is timed: the grid's results are checked, and peers compile.
stage compile 150 "$python" -m pytest -q -n 8 bench/bench_tree_grid.py &
pytest=("$python" -m pytest -q -p no:cacheprovider)
stage tests 110 "${pytest[@]}" -n 6 tests/kernels tests/model tests/engine
which='cuda and bfloat16 and (writes_the_slots or copies_the_pages or float64_reference) and not long'
sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer || echo compute-sanitizer)
ops=(tests/kernels/test_{append_kv,copy_pages,join_append,merge_states,paged_attention,sample,tree_attention}.py)
for tool in memcheck racecheck; do  # without the caching allocator each tensor has borders that can be seen
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 110 "$sanitizer" --tool "$tool" --error-exitcode 9 \
    "${pytest[@]}" -x "${ops[@]}" -k "$which" &
done
wait

benches=(bench/bench_{append_kv,copy_pages,join_append,merge_states,paged_attention,sample,tree_grid}.py)
stage bench $((560 - SECONDS)) "$python" -m pytest -q "${benches[@]}" --benchmark --quick \
  --budget $((520 - SECONDS)) --results bench/results/gpu
stage page 60 "$python" bench/report.py --gpu
cat "$logs/summary"
exit "$failed"
