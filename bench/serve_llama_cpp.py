"""llama.cpp's HTTP server as a peer of bench/serve_load.py, from the wheel of xllamacpp (with gguf, in an own venv).

python bench/serve_llama_cpp.py MODEL.gguf PORT [--wide FILE.gguf] [--slots N] [--context TOKENS]

``--wide`` first writes the same weights in bfloat16, so that both servers read as many bits, and serves that file.
``--slots`` are sequences that decode at once, ``--context`` the tokens of each.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import numpy as np


def widen(source: Path, target: Path) -> None:
    """Write a GGUF file again with bfloat16 in the place of quantised weights; norms stay float32."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, Kind.BF16), raw_dtype=Kind.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--wide", type=Path)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--context", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.wide is not None and not args.wide.exists():
        widen(args.model, args.wide)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(args.wide or args.model)
    params.hostnames, params.port = ["127.0.0.1"], args.port
    params.n_threads_http = args.slots + 8  # a thread for each connection; else 64 clients are turned away
    params.n_parallel, params.n_ctx = args.slots, args.slots * args.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
