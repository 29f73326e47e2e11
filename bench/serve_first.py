"""What the first requests of a server wait for, with and without steps recorded before it is ready.

    python bench/serve_first.py --model FOLDER

For `asyncthink serve --warm-up N`, a fresh server each: seconds until it is ready, and then chats of one client, and of
four at once, in their order: time to the first token, and the mean time per token of the next ones.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

from serve_load import PLAIN, closed_loop, server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--warm-up", default="0,8", help="numbers of agents, one server each")
    parser.add_argument("--tokens", type=int, default=9)
    args = parser.parse_args()
    print("| --warm-up | ready after s | clients | request | first token s | per token ms | all s |")
    print("|---|---|---|---|---|---|---|")
    for agents in args.warm_up.split(","):
        command = f"{sys.executable} -m asyncthink serve --model {args.model} --port {{port}} --warm-up {agents}"
        began = time.perf_counter()
        with server(command) as url:
            ready = time.perf_counter() - began
            for clients in (1, 4):
                for number in (1, 2, 3):
                    whole, done = asyncio.run(closed_loop(url, "default", clients, 1, args.tokens, PLAIN, bare=True))
                    first = statistics.fmean(each.first for each in done)
                    token = 1000 * statistics.fmean(each.token for each in done)
                    row = (agents, f"{ready:.1f}", clients, number, f"{first:.2f}", f"{token:.0f}", f"{whole:.2f}")
                    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
