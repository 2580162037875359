#!/usr/bin/env python3
"""Runs a peer's program and ours in turn on each workload and prints the ratio of their medians.

    benches/compare.py w1 w2 w5 -- python bench.py {}
    benches/compare.py --device gpu --rounds 5 w1 -- ./burn-peer wgpu {}

After `--` comes the peer's command, with {} where the workload's name goes. Its last line that is JSON must have
`med_ms` or `median_ms` (per character for w4), and may have `chars_s_med` (w4) and `vectors` (the width it computes with). Peer and ours take turns `--rounds` times, so that both
see the same machine; the table has the median of the rounds.
"""
import argparse
import json
import statistics
import subprocess
import sys


def last_json(command):
    out = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("{")]
    if out.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{out.stdout}{out.stderr}")
    return json.loads(lines[-1])


def main():
    args, peer = sys.argv[1:], []
    if "--" in args:
        at = args.index("--")
        args, peer = args[:at], args[at + 1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cell", default="rnn", help="of w1 and w5")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(args)
    if not peer:
        parser.error("the peer's command is missing: put it after --")
    bench = ["cargo", "bench", "--quiet", "--bench", "workloads", "--"]
    print("| workload | elman | peer | peer / elman |\n|---|---|---|---|", flush=True)
    devices = set()
    for workload in options.workloads:
        ours, theirs = [], []
        for _ in range(options.rounds):
            mine = last_json([*bench, workload, "--device", options.device, "--cell", options.cell, "--json"])
            other = last_json([word.replace("{}", workload) for word in peer])
            devices.add((mine["device"], other.get("vectors", "vectors not said")))
            if workload == "w4":
                # Milliseconds for a character, since programs differ in how many they write.
                ours.append(1e3 / mine["chars_per_second"])
                theirs.append(1e3 / other["chars_s_med"] if "chars_s_med" in other else other.get("med_ms", other.get("median_ms")))
            else:
                ours.append(mine["median_ms"])
                theirs.append(other.get("med_ms", other.get("median_ms")))
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(f"| {workload} | {mine:.4g} ms | {other:.4g} ms | {other / mine:.2f} |", flush=True)
    for mine, other in sorted(devices):
        print(f"elman: {mine}; peer: {other}")


if __name__ == "__main__":
    main()
