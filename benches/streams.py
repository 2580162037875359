#!/usr/bin/env python3
"""Latency of a frame that comes by itself, the state kept, by onnxruntime and by PyTorch on the CPU.

    python benches/streams.py [--threads 1]

The networks of `cargo bench --bench streams`. onnxruntime has a model of one node (a node a layer), with the frame and the states in and out,
and is given its tensors in place (IO binding) and as NumPy arrays, as is simplest; PyTorch runs the module without gradients.
"""
import argparse
import time

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

NETWORKS = [("lstm", 128, 1, 1), ("gru", 128, 1, 1), ("lstm", 256, 2, 1), ("lstm", 32, 1, 1), ("lstm", 128, 1, 8), ("lstm", 128, 1, 64)]


def model(kind, hidden, layers, lanes):
    rng = np.random.default_rng(0)
    gates = {"lstm": 4, "gru": 3}[kind]
    nodes, constants, inputs, outputs = [], [], [("X", [1, lanes, hidden])], []
    x = "X"
    for layer in range(layers):
        states = [f"{state}{layer}" for state in ("hc" if kind == "lstm" else "h")]
        weights = {"W": [1, gates * hidden, hidden], "R": [1, gates * hidden, hidden], "B": [1, 2 * gates * hidden]}
        for name, shape in weights.items():
            values = (rng.standard_normal(shape) / hidden**0.5).astype(np.float32)
            constants.append(numpy_helper.from_array(values, f"{name}{layer}"))
        inputs += [(state, [1, lanes, hidden]) for state in states]
        outputs += [(f"next_{state}", [1, lanes, hidden]) for state in states]
        ins = [x, f"W{layer}", f"R{layer}", f"B{layer}", "", *states]
        outs = ["", *(f"next_{state}" for state in states)]
        more = {"linear_before_reset": 1} if kind == "gru" else {}
        nodes.append(helper.make_node(kind.upper(), ins, outs, hidden_size=hidden, **more))
        x = f"next_h{layer}"  # of one step, the state is what comes out
    value = lambda pair: helper.make_tensor_value_info(pair[0], TensorProto.FLOAT, pair[1])
    graph = helper.make_graph(nodes, kind, [value(i) for i in inputs], [value(o) for o in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), inputs, outputs


def timed(run, frames):
    times = []
    for i in range(frames + frames // 10):
        start = time.perf_counter()
        run(i)
        times.append(1e6 * (time.perf_counter() - start))
    times = np.array(times[frames // 10:])
    return np.percentile(times, 50), np.percentile(times, 99)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"onnxruntime {onnxruntime.__version__}, PyTorch {torch.__version__}, {options.threads} thread(s)")
    print("network                 bound: p50 us   p99   arrays: p50   p99   PyTorch: p50   p99")
    for kind, hidden, layers, lanes in NETWORKS:
        graph, inputs, outputs = model(kind, hidden, layers, lanes)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        frames = np.random.default_rng(1).standard_normal([64, 1, lanes, hidden]).astype(np.float32)

        # Two sets of states, each what the other's run begins with.
        values = {name: np.zeros(shape, np.float32) for name, shape in inputs}
        sets = [[onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for _, shape in outputs] for _ in range(2)]
        x = onnxruntime.OrtValue.ortvalue_from_numpy(frames[0])
        bindings = []
        for now, then in [(0, 1), (1, 0)]:
            binding = session.io_binding()
            binding.bind_ortvalue_input("X", x)
            for (name, _), value in zip(inputs[1:], sets[now]):
                binding.bind_ortvalue_input(name, value)
            for (name, _), value in zip(outputs, sets[then]):
                binding.bind_ortvalue_output(name, value)
            bindings.append(binding)

        def bound(i):
            x.update_inplace(frames[i % 64])
            session.run_with_iobinding(bindings[i % 2])

        def arrays(i):
            values["X"] = frames[i % 64]
            for (name, _), result in zip(inputs[1:], session.run(None, values)):
                values[name] = result

        module = getattr(torch.nn, kind.upper())(hidden, hidden, layers)
        state, tensors = [None], torch.from_numpy(frames)

        def eager(i):
            _, state[0] = module(tensors[i % 64], state[0])

        row = [*timed(bound, options.frames), *timed(arrays, options.frames)]
        with torch.inference_mode():
            row += timed(eager, options.frames)
        name = f"{kind} {layers} x {hidden}, {lanes} lanes"
        print(f"{name:20} " + " ".join(f"{value:9.2f}" for value in row))


if __name__ == "__main__":
    main()
