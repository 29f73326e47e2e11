#!/usr/bin/env bash
# Builds, tests and benches on a GPU machine, without a network; writes bench/RESULTS_GPU.md.
#
#   bash bench/gpu.sh [WHEELS]             everything, in under ten minutes
#   bash bench/gpu.sh --quick [WHEELS]     what decides the goals, on the first GPU's architecture, in under eight: what
#                                          it leaves out is named at the end, each with its own command
#   bash bench/gpu.sh [--quick] --dry-run  prints what it would run; needs no GPU and touches nothing
#
# FlashInfer is compared with where it is installed, or lies in the folder WHEELS as wheels fetched elsewhere:
# flashinfer-python 0.6.12, apache-tvm-ffi, nvidia-ml-py, requests, tqdm. A stage that fails or runs out of time is told
# at the end and hides none of the others; build/gpu-logs has the output of each.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} logs=build/gpu-logs site=$PWD/build/gpu-site failed=0 quick=0 dry=0 wheels=
for argument in "$@"; do
  case $argument in
    --quick) quick=1 ;;
    --dry-run) dry=1 ;;
    -*) echo "$argument: expected --quick, --dry-run or a folder of wheels" >&2; exit 2 ;;
    *) wheels=$argument ;;
  esac
done
end=$((quick ? 445 : 560))  # seconds; the page comes after
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/python:$site${PYTHONPATH:+:$PYTHONPATH}"

stage() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 code=0 start=$SECONDS
  shift 2
  if [ "$dry" = 1 ]; then printf '%-10s %4d s %s\n' "$name" "$limit" "$(printf ' %q' "$@")"; return; fi
  timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1 || code=$?
  printf '%4d s  %-10s %s\n' "$((SECONDS - start))" "$name" \
    "$([ "$code" = 0 ] && echo ok || echo "FAILED ($code)"): $(tail -n 1 "$logs/$name.log")" | tee -a "$logs/summary"
  [ "$code" = 0 ] || failed=1
}

left() {  # SECONDS: what is left until then, one second at least
  local seconds=$(($1 - SECONDS))
  echo $((seconds > 1 ? seconds : 1))
}

if [ "$dry" = 0 ]; then
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
  if [ "$quick" = 1 ]; then
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')
    export ASYNCTHINK_CUDA_ARCHS=${ASYNCTHINK_CUDA_ARCHS:-$([ "$capability" = 90 ] && echo 90a || echo "$capability")-real}
  fi
fi

# The cells of bench_tree_grid.py that decide: the goals' sizes, shapes of one level and of several.
deciding='^32/8 (1,(1|16|64)\|(8192|32768),128|1,10\|4000,400|1,16,64\|1024,256,32|1,256\|256,32)$'
sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer || echo compute-sanitizer)
which='cuda and bfloat16 and (writes_the_slots or copies_the_pages or float64_reference) and not long'
ops=(tests/kernels/test_{append_kv,copy_pages,join_append,merge_states,paged_attention,sample,tree_attention}.py)
pytest=("$python" -m pytest -q -p no:cacheprovider)
results=(--benchmark --quick --results bench/results/gpu)

[ -z "$wheels" ] || stage wheels 60 "$python" -m pip install -q --no-index --no-deps --target "$site" "$wheels"/*.whl
stage build 140 "$python" -m pip install -e . --no-build-isolation --no-deps

# What is compiled ahead, and the tests, while nothing is timed: the grid's results are checked, and peers compile.
if [ "$quick" = 1 ]; then
  stage compile 130 "$python" -m pytest -q -n 6 bench/bench_tree_grid.py --cells "$deciding" &
  stage tests 130 "${pytest[@]}" -n 6 -k cuda tests/kernels tests/model/test_cuda_graphs_gpu.py &
  wait
  stage bench "$(left $((end - 70)))" "$python" -m pytest -q bench/bench_{tree_grid,append_kv,join_append}.py \
    "${results[@]}" --cells "$deciding" --budget "$(left $((end - 90)))"
  stage episode "$(left "$end")" "$python" -m pytest -q bench/bench_fork_join.py "${results[@]}"
else
  stage compile 150 "$python" -m pytest -q -n 8 bench/bench_tree_grid.py &
  stage tests 110 "${pytest[@]}" -n 6 tests/kernels tests/model tests/engine
  for tool in memcheck racecheck; do  # without the caching allocator each tensor has borders that can be seen
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 110 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "${pytest[@]}" -x "${ops[@]}" -k "$which" &
  done
  wait
  stage bench "$(left $((end - 60)))" "$python" -m pytest -q \
    bench/bench_{append_kv,copy_pages,join_append,merge_states,paged_attention,sample,tree_grid}.py \
    "${results[@]}" --budget "$(left $((end - 100)))"
  stage episode "$(left "$end")" "$python" -m pytest -q bench/bench_fork_join.py "${results[@]}"
fi
stage page 30 "$python" bench/report.py --gpu
[ "$dry" = 1 ] || cat "$logs/summary"
if [ "$quick" = 1 ]; then
  echo "Left out:"
  for tool in memcheck racecheck; do
    echo "  PYTORCH_NO_CUDA_MEMORY_CACHING=1 $sanitizer --tool $tool --error-exitcode 9 ${pytest[*]} -x ${ops[*]} -k '$which'"
  done
  echo "  ${pytest[*]} -n 6 tests/kernels tests/model tests/engine"
  echo "  $python -m pytest -q bench/bench_tree_grid.py ${results[*]} --cells quick"
  echo "  $python -m pytest -q bench/bench_{copy_pages,merge_states,paged_attention,sample}.py ${results[*]}"
  echo "  $python bench/report.py --gpu"
fi
exit "$failed"
