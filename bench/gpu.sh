#!/usr/bin/env bash
# Builds, tests and benches on a GPU machine, without a network, in under ten minutes; writes bench/RESULTS_GPU.md.
#
#   bash bench/gpu.sh [--wheels FOLDER] [--out FOLDER] [--help]
#
# FlashInfer is compared with where it is installed, or lies in FOLDER as wheels fetched elsewhere: flashinfer-python
# 0.6.12, apache-tvm-ffi, nvidia-ml-py, requests, tqdm.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m bench.gpu.stages "$@"
