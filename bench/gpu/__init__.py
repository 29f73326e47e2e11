"""Benches on a GPU: `bash bench/gpu.sh` builds, tests and benches in ten minutes; RESULTS_GPU.md is what they found.

| | |
|---|---|
| `grid` | the cells as data: trees, heads |
| `problem` | a cell on a device: cache, plan, K and V, the expected output, bytes that must move |
| `contestant`, `ours`, `peers`, `flashinfer_peers` | who is timed |
| `timing` | median, p20, p80; L2 flushed and warm; CUDA graphs |
| `copies` | copy bandwidth, and the ops that scatter |
| `measure`, `run` | one cell; cells within a budget, to JSON |
| `warm` | lets a peer compile its kernels ahead |
| `links`, `process` | libraries by the names that linkers know; commands with deadlines |
| `stages` | all of it in order, each part within its time |
| `record`, `spread`, `machine` | what is written down |
| `goals`, `plots`, `report` | JSON to RESULTS_GPU.md |
"""
