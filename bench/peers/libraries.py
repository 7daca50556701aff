"""The libraries that are measured, each behind the same two functions.

A contender is made for one case and returns (run, result): run() computes once, result() is what it wrote last, as
[batch, heads, queries, dim]. It raises Unsupported where the library has no such operator. Inputs are copied into the
layout that the library wants before any time is taken, and outputs are allocated before where the library allows it.
"""
import ctypes
import os
import weakref

import numpy as np


class Unsupported(Exception):
    """The library cannot do this case, or is not installed."""


class Shape(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("batch", "heads", "kv_heads", "queries", "keys", "dim")]

    @classmethod
    def of(cls, case):
        return cls(case.batch, case.heads, case.kv_heads, case.queries, case.keys, case.dim)


def address(x):
    return ctypes.c_void_p(None if x is None else x.ctypes.data)


class Ours:
    """attention_balancer, from bench/peers/ours.cpp."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(os.path.abspath(path))
        self.lib.peers_isa.restype = self.lib.peers_error.restype = ctypes.c_char_p
        self.lib.peers_fma_peak.restype = self.lib.peers_read_seconds.restype = ctypes.c_double
        self.isa = self.lib.peers_isa().decode()

    def fma_peak(self, threads):
        return self.lib.peers_fma_peak(ctypes.c_int(threads))

    def read_seconds(self, k, v, threads):
        passes = max(1, (32 << 20) // (k.nbytes + v.nbytes))
        return self.lib.peers_read_seconds(address(k), address(v), ctypes.c_int64(k.nbytes), ctypes.c_int(threads),
                                           ctypes.c_int(passes))

    def contender(self, case, q, k, v, threads, observed):
        out = np.empty(q.shape, np.float32)
        run = self.calling(self.lib.peers_attention, case, (q, k, v, out), case.causal, observed, threads)
        return run, lambda: out

    def cached(self, case, q, k, v, threads, storage):
        """Keys and values stored as bf16, f16, or int8 with a scale for each token and head."""
        out, scales = np.empty(q.shape, np.float32), (None, None)
        if storage == "f16":
            k, v = k.astype(np.float16), v.astype(np.float16)
        elif storage == "bf16":
            k, v = map(rounded_to_bf16, (k, v))
        else:
            scales = [abs(x).max(-1, keepdims=True) / 127 for x in (k, v)]
            k, v = (np.rint(x / scale).astype(np.int8) for x, scale in zip((k, v), scales))
        run = self.calling(self.lib.peers_cached_attention, case, (q, k, v, *scales, out), storage == "bf16", threads)
        return run, lambda: out

    def calling(self, function, case, arrays, *numbers):
        arguments = [ctypes.byref(Shape.of(case)), *map(address, arrays), *map(ctypes.c_int, numbers)]

        def run(_alive=arrays):  # as long as their addresses are used
            if function(*arguments):
                raise RuntimeError(self.lib.peers_error().decode())

        return run

    def backward(self, case, q, k, v, dout, threads):
        """The gradients, from an output that is there already."""
        out, gradients = np.empty(q.shape, np.float32), [np.empty(x.shape, np.float32) for x in (q, k, v)]
        arrays = (q, k, v, out, dout, *gradients)
        self.calling(self.lib.peers_prepare_backward, case, arrays)()
        return self.calling(self.lib.peers_backward, case, arrays, threads), lambda: gradients

    def mass(self, case):
        mass = np.empty((case.batch, case.heads, case.keys), np.float32)
        self.lib.peers_mass(ctypes.c_void_p(mass.ctypes.data))
        return mass


def rounded_to_bf16(x):
    """The upper halves of finite floats, to the nearest, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def rows_of(x):
    """[B, H, N, D] to [B, N, H * D]."""
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(x.shape[0], x.shape[2], -1)


def heads_of(x, heads):
    """[B, N, H * D] to [B, H, N, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)


class OnnxRuntime:
    """Models of one node each, with inputs and outputs bound once."""

    def __init__(self):
        import onnx
        import onnxruntime
        self.onnx, self.ort = onnx, onnxruntime

    def session(self, node, inputs, outputs, threads):
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        info = lambda name, x: helper.make_tensor_value_info(
            name, kinds.FLOAT if x.dtype == np.float32 else kinds.INT32, list(x.shape))
        graph = helper.make_graph([node], "attention", [info(n, x) for n, x in inputs.items()],
                                  [info(n, x) for n, x in outputs.items()])
        model = helper.make_model(graph, ir_version=10, opset_imports=[
            helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)])
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Its threads would go on spinning while the others are measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def bound(self, node, inputs, outputs, threads, shared=()):
        """run() for the node; shared are pairs of an output and the input whose memory it continues."""
        session = self.session(node, inputs, outputs, threads)
        values = {n: self.ort.OrtValue.ortvalue_from_numpy(x) for n, x in {**inputs, **outputs}.items()}
        values.update({output: values[input_] for output, input_ in shared})
        binding = session.io_binding()
        for name in inputs:
            binding.bind_ortvalue_input(name, values[name])
        for name in outputs:
            binding.bind_ortvalue_output(name, values[name])
        first = next(iter(outputs))
        # Bound is the memory of the values, which live no longer than their Python objects.
        return (lambda _alive=values: session.run_with_iobinding(binding)), lambda: values[first].numpy()

    def multi_head_attention(self, case, q, k, v, threads):
        if case.heads != case.kv_heads:
            raise Unsupported
        node = self.onnx.helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["out"], domain="com.microsoft",
                                          num_heads=case.heads, unidirectional=int(case.causal))
        inputs = {"q": rows_of(q), "k": rows_of(k), "v": rows_of(v)}
        run, out = self.bound(node, inputs, {"out": np.zeros_like(inputs["q"])}, threads)
        return run, lambda: heads_of(out(), case.heads)

    def group_query_attention(self, case, q, k, v, threads):
        """Keys and values in its cache, of which the last ones are new; always causal."""
        if not case.causal and case.queries > 1:
            raise Unsupported
        new, old = case.queries, case.keys - case.queries
        node = self.onnx.helper.make_node(
            "GroupQueryAttention", ["q", "k", "v", "past_k", "past_v", "lengths", "total"], ["out", "all_k", "all_v"],
            domain="com.microsoft", num_heads=case.heads, kv_num_heads=case.kv_heads)
        inputs = {"q": rows_of(q), "k": rows_of(k[:, :, old:]), "v": rows_of(v[:, :, old:]), "past_k": k, "past_v": v,
                  "lengths": np.full(case.batch, case.keys - 1, np.int32), "total": np.array([case.keys], np.int32)}
        outputs = {"out": np.zeros_like(inputs["q"]), "all_k": k, "all_v": v}
        run, out = self.bound(node, inputs, outputs, threads, shared=[("all_k", "past_k"), ("all_v", "past_v")])
        return run, lambda: heads_of(out(), case.heads)

    def attention(self, case, q, k, v, threads):
        """The operator of ONNX itself (opset 23)."""
        if case.causal and case.queries != case.keys:
            raise Unsupported
        node = self.onnx.helper.make_node("Attention", ["q", "k", "v"], ["out"], is_causal=int(case.causal))
        run, out = self.bound(node, {"q": q, "k": k, "v": v}, {"out": np.zeros_like(q)}, threads)
        return run, out


class OpenVino:
    def __init__(self):
        import openvino
        from openvino import opset13
        self.openvino, self.opset = openvino, opset13
        self.core = openvino.Core()

    def attention(self, case, q, k, v, threads):
        if case.heads != case.kv_heads:  # its operator has no groups: each query head gets a copy of its keys
            k, v = (np.repeat(x, case.heads // case.kv_heads, axis=1) for x in (k, v))
        nodes = [self.opset.parameter(x.shape, np.float32) for x in (q, k, v)]
        causal = case.causal and case.queries > 1
        if causal and case.queries != case.keys:  # it counts positions from the first key
            raise Unsupported
        model = self.openvino.Model([self.opset.scaled_dot_product_attention(*nodes, causal=causal)], nodes, "attention")
        request = self.core.compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        inputs = [self.openvino.Tensor(np.ascontiguousarray(x), shared_memory=True) for x in (q, k, v)]
        for i, tensor in enumerate(inputs):
            request.set_input_tensor(i, tensor)

        def run(_alive=inputs):
            request.infer()

        return run, lambda: request.get_output_tensor(0).data


class PyTorch:
    def __init__(self, threads):
        import torch
        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.flex = None

    def tensors(self, *arrays):
        return [self.torch.from_numpy(x) for x in arrays]

    def keeping(self, function):
        """function(), and its last result."""
        last = []

        def run():
            last[:] = [function()]

        return run, last

    def sdpa(self, case, q, k, v, threads):
        q, k, v = self.tensors(q, k, v)
        sdpa = self.torch.nn.functional.scaled_dot_product_attention
        options = {"is_causal": bool(case.causal and case.queries > 1)}
        if case.causal and case.queries != case.keys:  # it counts positions from the first key
            seen = self.torch.ones(case.queries, case.keys, dtype=self.torch.bool)
            options = {"attn_mask": seen.tril(case.keys - case.queries)}
        if case.heads != case.kv_heads:
            options["enable_gqa"] = True
        run, last = self.keeping(lambda: sdpa(q, k, v, **options))
        return run, lambda: last[0].numpy()

    def sdpa_backward(self, case, q, k, v, dout, threads):
        """The backward pass alone: the forward one, which keeps what it needs, has run once."""
        *inputs, upstream = self.tensors(q, k, v, dout)
        for x in inputs:
            x.requires_grad_()
        with self.torch.enable_grad():
            out = self.torch.nn.functional.scaled_dot_product_attention(*inputs, enable_gqa=case.heads != case.kv_heads)
        run, last = self.keeping(lambda: self.torch.autograd.grad(out, inputs, upstream, retain_graph=True))
        return run, lambda: [x.numpy() for x in last[0]]

    def flash_decode(self, case, q, k, v, threads):
        """flex_attention, which splits the keys among threads; compiled once, with this machine's C++ compiler."""
        if case.queries > 1:
            raise Unsupported
        if self.flex is None:
            from torch.nn.attention.flex_attention import flex_attention
            self.flex = self.torch.compile(flex_attention, dynamic=True)
        q, k, v = self.tensors(q, k, v)
        run, last = self.keeping(lambda: self.flex(q, k, v, enable_gqa=case.heads != case.kv_heads))
        try:
            run()
        except Exception as error:
            raise Unsupported(f"it does not compile here: {error}") from error
        return run, lambda: last[0].numpy()

    def explicit(self, case, q, k, v, threads):
        """What gives the importance of each key today: the softmax written out, and the sums of its columns."""
        if case.causal or case.heads != case.kv_heads:
            raise Unsupported
        q, k, v = self.tensors(q, k, v)

        def function():
            weights = self.torch.softmax(q @ k.transpose(-1, -2) * case.dim**-0.5, -1)
            return weights @ v, weights.sum(-2)

        run, last = self.keeping(function)
        run.mass = lambda: last[0][1].numpy()
        return run, lambda: last[0][0].numpy()


class Ggml:
    """ggml's CPU backend, from bench/peers/ggml. Keys, values and the mask, by which alone it knows what is causal, are
    converted before any time is taken."""

    TYPES = {"f32": 0, "f16": 1, "q8_0": 8}

    def __init__(self, path):
        self.lib = ctypes.CDLL(os.path.abspath(path))
        self.lib.ggml_peer_make.restype = ctypes.c_void_p

    def stored(self, x, storage):
        if storage != "q8_0":
            return x.astype({"f32": np.float32, "f16": np.float16}[storage], copy=False)
        blocks = np.empty((*x.shape[:-1], x.shape[-1] // 32 * 34), np.int8)
        self.lib.ggml_peer_quantize(address(x), address(blocks), ctypes.c_int64(x.size // x.shape[-1]),
                                    ctypes.c_int64(x.shape[-1]))
        return blocks

    def contender(self, case, q, k, v, threads, storage, scores, out):
        mask = None
        if case.causal and case.queries > 1:
            mask = np.triu(np.full((case.queries, case.keys), -np.inf, np.float16), case.keys - case.queries + 1)
        arrays = (q, k, v, mask, scores, out)
        graph = self.lib.ggml_peer_make(ctypes.byref(Shape.of(case)), ctypes.c_int(self.TYPES[storage]),
                                        *map(address, arrays), ctypes.c_int(threads))
        if not graph:
            raise Unsupported("it could not make the graph")
        graph = ctypes.c_void_p(graph)

        def run(_alive=arrays):
            if self.lib.ggml_peer_run(graph):
                raise RuntimeError("ggml_graph_compute failed")

        weakref.finalize(run, self.lib.ggml_peer_free, graph)
        return run

    def fused(self, case, q, k, v, threads, storage="f32"):
        out = np.empty((case.batch, case.queries, case.heads, case.dim), np.float32)
        k, v = self.stored(k, storage), self.stored(v, storage)
        return self.contender(case, q, k, v, threads, storage, None, out), lambda: out.transpose(0, 2, 1, 3)

    def fused_f16(self, case, q, k, v, threads):
        return self.fused(case, q, k, v, threads, "f16")

    def fused_q8_0(self, case, q, k, v, threads):
        if case.queries > 1:  # which it computes query by query
            raise Unsupported
        return self.fused(case, q, k, v, threads, "q8_0")

    def composed(self, case, q, k, v, threads, storage="f32"):
        out, v = np.empty(q.shape, np.float32), np.ascontiguousarray(v.transpose(0, 1, 3, 2))
        k, v = self.stored(k, storage), self.stored(v, storage)
        scores = np.empty((case.batch, case.heads, case.queries, case.keys), np.float32)
        return self.contender(case, q, k, v, threads, storage, scores, out), lambda: out

    def composed_f16(self, case, q, k, v, threads):
        if case.queries > 1:
            raise Unsupported
        return self.composed(case, q, k, v, threads, "f16")


def installed(threads, compiled, ggml):
    """(name, contender function) of all that can be imported, the same for their gradients, and a list of what cannot;
    without what would first have to be compiled for most of a minute unless `compiled`. ggml is a path, or None."""
    found, backwards, missing = [], [], []

    def add(name, make, functions, gradients=()):
        try:
            library = make()
        except (ImportError, OSError) as error:
            missing.append(f"{name}: {error}")
            return
        found.extend((f"{name} {label}", getattr(library, function)) for label, function in functions)
        backwards.extend((f"{name} {label}", getattr(library, function)) for label, function in gradients)

    add("ONNX Runtime", OnnxRuntime, [("MultiHeadAttention", "multi_head_attention"),
                                      ("GroupQueryAttention", "group_query_attention"), ("Attention", "attention")])
    add("OpenVINO", OpenVino, [("SDPA", "attention")])
    if ggml:
        add("ggml", lambda: Ggml(ggml), [("flash_attn_ext", "fused"), ("flash_attn_ext f16", "fused_f16"),
                                         ("flash_attn_ext q8_0", "fused_q8_0"), ("mul_mat and soft_max", "composed"),
                                         ("mul_mat and soft_max f16", "composed_f16")])
    add("PyTorch", lambda: PyTorch(threads), [("SDPA", "sdpa"), ("softmax and column sum", "explicit"),
                                              *([("flash decode", "flash_decode")] if compiled else [])],
        [("SDPA backward", "sdpa_backward")])
    return found, backwards, missing
