"""Runs the kernels of the crate candle-kernels on the emulator, against numpy.

    python candle_kernels.py candle-kernels-0.11.1/src nvcc target/release/libcuda_emulator.so sm_80 [name ...]

The first argument is the folder of the crate's CUDA sources, the second the compiler. Needs numpy.
"""

import argparse
import ctypes
import math
import os
import subprocess
import sys
import tempfile
import time

import device

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sources", help="the folder src of candle-kernels")
parser.add_argument("nvcc", help="the CUDA compiler")
parser.add_argument("library", help="libcuda_emulator.so")
parser.add_argument("arch", choices=["sm_80", "sm_90"])
parser.add_argument("names", nargs="*", help="parts of the names of the cases to run; all without")
options = parser.parse_args()
device.use(options.library, options.arch)

import numpy

driver = device.Driver()
array = driver.array
random = numpy.random.default_rng(0)
size, i32, u32, f32 = ctypes.c_size_t, ctypes.c_int, ctypes.c_uint32, ctypes.c_float
NULL = ctypes.c_void_p()
DTYPES = {"f16": "f2", "f32": "f4", "f64": "f8", "u8": "u1", "u32": "u4", "i64": "i8"}
# What one rounding of the result leaves, relative to it or to 1, with as much again for approximate functions.
BOUNDS = {"f16": 2e-3, "f32": 2e-6, "f64": 1e-12}
modules = {}
scratch = tempfile.TemporaryDirectory()


def module(name):
    """The module of one source file, compiled as the crate's build script does."""
    if name not in modules:
        out = os.path.join(scratch.name, name + ".ptx")
        arch = options.arch.replace("sm", "compute")
        flags = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-arch", arch, "-ptx"]
        subprocess.run([options.nvcc, *flags, os.path.join(options.sources, name + ".cu"), "-o", out], check=True)
        with open(out, "rb") as ptx:
            modules[name] = driver.module(ptx.read() + b"\0")
    return modules[name]


def poison(shape, dtype):
    values = numpy.empty(shape, dtype)
    values.view("u1").fill(0xEE)
    return array(values)


def check(got, want, bound=0.0):
    """`bound`: of the difference, relative to the value or to 1, whichever is more."""
    got, want = got.get().astype("f8"), numpy.asarray(want, "f8")
    difference = numpy.max(numpy.abs(got - want) / numpy.maximum(numpy.abs(want), 1))
    assert difference <= bound, f"differs by {difference:.3g}, more than {bound:.3g}"


def layout(*arrays):
    """The dimensions of the first array and the strides of all, in elements."""
    strides = [stride // x.itemsize for x in arrays for stride in x.strides]
    return array(numpy.array([*arrays[0].shape, *strides], "u8"))


def base(view):
    """On the device: the memory that a view lies in, from its first element on."""
    return array(view.base if view.base is not None else view)


def views(dtype, low=-3, high=3):
    """An array that is contiguous, and one whose axes are not in order."""
    make = lambda *shape: (low + (high - low) * random.random(shape)).astype(dtype)
    return [make(7, 9, 11), make(11, 9, 7).transpose(2, 1, 0)]


def erf(x):
    return numpy.vectorize(math.erf, otypes=["f8"])(x)


UNARY = {
    "neg": lambda x: -x,
    "recip": lambda x: 1 / x,
    "exp": numpy.exp,
    "log": lambda x: numpy.log(x),
    "sin": numpy.sin,
    "cos": numpy.cos,
    "tanh": numpy.tanh,
    "erf": erf,
    "ceil": numpy.ceil,
    "floor": numpy.floor,
    "round": lambda x: numpy.copysign(numpy.floor(numpy.abs(x) + 0.5), x),
    "normcdf": lambda x: (1 + erf(x / math.sqrt(2))) / 2,
    "abs": numpy.abs,
    "sqr": lambda x: x * x,
    "sqrt": numpy.sqrt,
    "gelu": lambda x: x / 2 * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "relu": lambda x: numpy.maximum(x, 0),
    "silu": lambda x: x / (1 + numpy.exp(-x)),
    "sign": numpy.sign,
    "sigmoid": lambda x: 1 / (1 + numpy.exp(-x)),
    "copy": lambda x: x,
}


def unary(dtype):
    for name, function in UNARY.items():
        low = 0.5 if name in ("log", "sqrt", "recip") else -3
        for x in views(DTYPES[dtype], low):
            out = poison(x.shape, x.dtype)
            kernel = f"u{name}_{dtype}"
            module("unary").launch(kernel, (3,), (256,), size(x.size), size(3), layout(x), base(x), out)
            try:
                # f16 computes each step of these in f16
                steps = 4 if dtype == "f16" and name in ("gelu", "gelu_erf", "silu", "sigmoid", "normcdf") else 1
                check(out, function(x.astype("f8")), steps * BOUNDS[dtype])
            except AssertionError as error:
                raise AssertionError(f"{kernel}: {error}") from error


BINARY = {
    "badd": numpy.add,
    "bsub": numpy.subtract,
    "bmul": numpy.multiply,
    "bdiv": numpy.divide,
    "bmaximum": numpy.maximum,
    "bminimum": numpy.minimum,
}
COMPARE = {
    "eq": numpy.equal,
    "ne": numpy.not_equal,
    "lt": numpy.less,
    "le": numpy.less_equal,
    "gt": numpy.greater,
    "ge": numpy.greater_equal,
}


def binary(dtype):
    integer = dtype[0] in "ui"
    values = views(DTYPES[dtype], 1, 200) if integer else views(DTYPES[dtype])
    for x in values:
        for y in values:
            for name, function in (BINARY | COMPARE).items():
                compares = name in COMPARE
                out = poison(x.shape, "u1" if compares else x.dtype)
                info = layout(x, y)
                kernel = f"{name}_{dtype}"
                module("binary").launch(kernel, (3,), (256,), size(x.size), size(3), info, base(x), base(y), out)
                if integer and name == "bdiv":
                    want = x // y
                elif integer:
                    want = function(x, y)
                else:
                    want = function(x.astype("f8"), y.astype("f8"))
                check(out, want, 0 if compares or integer else BOUNDS[dtype])


def affine():
    for dtype in ("f16", "f32", "f64"):
        scalars = numpy.array([2.5, -0.75], DTYPES[dtype])
        mul, add = ((ctypes.c_char * x.itemsize).from_buffer_copy(x.tobytes()) for x in scalars)
        for x in views(DTYPES[dtype]):
            out = poison(x.shape, x.dtype)
            module("affine").launch(f"affine_{dtype}", (3,), (256,), size(x.size), size(3), layout(x), base(x), out, mul, add)
            check(out, x.astype("f8") * 2.5 - 0.75, 2 * BOUNDS[dtype])


def cast():
    for source in DTYPES:
        for target in DTYPES:
            if {source, target} in ({"f16", "u8"}, {"f16", "i64"}):
                continue  # candle lacks some of these
            for x in views(DTYPES[source], 0, 100):
                out = poison(x.shape, DTYPES[target])
                kernel = f"cast_{source}_{target}"
                module("cast").launch(kernel, (3,), (256,), size(x.size), size(3), layout(x), base(x), out)
                check(out, x.astype(DTYPES[target]))


def fill():
    out = poison((1000,), "f4")
    module("fill").launch("fill_f32", (2,), (256,), out, f32(1.25), size(1000))
    check(out, numpy.full(1000, 1.25))
    source, out = array(random.random((20, 30), "f4")), array(numpy.zeros((20, 40), "f4"))
    module("fill").launch("copy2d_f32", (3,), (256,), source, out, u32(20), u32(25), u32(30), u32(40))
    want = numpy.zeros((20, 40))
    want[:, :25] = source.host[:, :25]
    check(out, want)


def where():
    for x, y in zip(views("f4"), views("f4")):
        condition = (random.random(x.shape) > 0.5).astype("u1")
        out = poison(x.shape, x.dtype)
        info = layout(condition, x, y)
        module("ternary").launch("where_u8_f32", (3,), (256,), size(x.size), size(3), info, array(condition), base(x),
                                 base(y), out)
        check(out, numpy.where(condition, x, y))


def reduce():
    rows, columns, threads = 12, 700, 256
    for dtype in DTYPES:
        x = (200 * random.random((rows, columns)) - (0 if dtype[0] == "u" else 100)).astype(DTYPES[dtype])
        if dtype == "f16":
            x = (x / 100).astype("f2")
        if dtype == "u8":
            x //= 100
        for name, function in [("sum", numpy.sum), ("max", numpy.max), ("min", numpy.min), ("argmax", numpy.argmax),
                               ("argmin", numpy.argmin)]:
            index = name.startswith("arg")
            out = poison((rows,), "u4" if index else x.dtype)
            kernel = f"fast_{name}_{dtype}"
            arguments = size(x.size), size(columns), size(2), layout(x), array(x), out
            module("reduce").launch(kernel, (rows,), (threads,), *arguments)
            if index:  # of several equal values any may be told of
                found = out.get()
                best = x.max(-1) if name == "argmax" else x.min(-1)
                assert (x[range(rows), found] == best).all(), kernel
            else:
                wide = x.astype("f8" if dtype[0] == "f" else "i8")
                want = function(wide, -1) & 0xFF if dtype == "u8" else function(wide, -1)
                check(out, want, 0 if dtype[0] in "ui" else 20 * BOUNDS[dtype])


def softmax():
    for dtype in ("f16", "f32", "f64"):
        x = (4 * random.random((10, 333))).astype(DTYPES[dtype])
        out = poison(x.shape, x.dtype)
        module("reduce").launch(f"softmax_{dtype}", (10,), (1, 32), array(x), out, i32(333))
        want = numpy.exp(x.astype("f8") - x.max(-1, keepdims=True))
        check(out, want / want.sum(-1, keepdims=True), BOUNDS[dtype])


def norms():
    rows, columns, eps = 6, 2100, 1e-5
    for dtype in ("f16", "f32", "f64"):
        x, alpha, beta = ((2 * random.random(s) - 0.5).astype(DTYPES[dtype]) for s in ((rows, columns), columns, columns))
        wide = x.astype("f8")
        bound = 4 * max(BOUNDS[dtype], BOUNDS["f32"])  # they compute in f32
        for block in (32, 1024):
            out = poison(x.shape, x.dtype)
            given = array(x), out, array(alpha)
            module("reduce").launch(f"rmsnorm_{dtype}", (rows,), (block,), *given, i32(columns), i32(block), f32(eps))
            check(out, wide / numpy.sqrt((wide**2).mean(-1, keepdims=True) + eps) * alpha, bound)
            out = poison(x.shape, x.dtype)
            given = array(x), out, array(alpha), array(beta)
            module("reduce").launch(f"layernorm_{dtype}", (rows,), (block,), *given, i32(columns), i32(block), f32(eps))
            normal = (wide - wide.mean(-1, keepdims=True)) / numpy.sqrt(wide.var(-1, keepdims=True) + eps)
            check(out, normal * alpha + beta, bound)


def rope():
    batch, heads, length, dim = 2, 3, 10, 16
    for dtype in ("f16", "f32"):
        x = (random.random((batch, heads, length, dim)) - 0.5).astype(DTYPES[dtype])
        angle = numpy.arange(length)[:, None] / 100.0 ** (numpy.arange(dim // 2) / dim)
        cos, sin = numpy.cos(angle).astype(x.dtype), numpy.sin(angle).astype(x.dtype)
        wide, bh, td = x.astype("f8"), u32(batch * heads), u32(length * dim)
        for name, first, second in [("rope", slice(0, dim // 2), slice(dim // 2, dim)),
                                    ("rope_i", slice(0, dim, 2), slice(1, dim, 2))]:
            out, want = poison(x.shape, x.dtype), numpy.empty(x.shape)
            more = [u32(dim)] if name == "rope" else []
            given = array(x), array(cos), array(sin), out, bh, td, *more, u32(0)
            module("reduce").launch(f"{name}_{dtype}", (8,), (128,), *given)
            want[..., first] = wide[..., first] * cos - wide[..., second] * sin
            want[..., second] = wide[..., first] * sin + wide[..., second] * cos
            check(out, want, BOUNDS[dtype])


def indexing():
    x = random.random((4, 20, 6), "f4")
    ids = random.integers(0, 20, 9).astype("u4")
    out = poison((4, 9, 6), "f4")
    sides = size(4), size(20), size(9), size(6)
    module("indexing").launch("is_u32_f32", (2,), (128,), size(out.host.size), size(3), layout(x), array(ids), array(x),
                              out, *sides)
    check(out, x[:, ids])
    each = random.integers(0, 20, (4, 9, 6))
    out = poison((4, 9, 6), "f4")
    module("indexing").launch("gather_i64_f32", (2,), (128,), size(out.host.size), array(each), array(x), out, *sides)
    check(out, numpy.take_along_axis(x, each, 1))
    added, source = array(x), random.random((4, 9, 6), "f4")
    sides = size(4), size(9), size(20), size(6)
    module("indexing").launch("ia_u32_f32", (1,), (128,), array(ids), size(9), array(source), added, *sides)
    want = x.astype("f8")
    numpy.add.at(want, (slice(None), ids), source)
    check(added, want, 1e-6)
    added = array(x)
    module("indexing").launch("sa_i64_f32", (1,), (128,), array(each), array(source), added, *sides)
    want = x.astype("f8")
    place = numpy.ogrid[:4, :9, :6]
    numpy.add.at(want, (place[0], each, place[2]), source)
    check(added, want, 1e-6)


def windows(x, kernel, stride, dilation):
    """All places of a kernel of this shape over the last axes of a padded array."""
    spans = [dilation * (k - 1) + 1 for k in kernel]
    axes = tuple(range(x.ndim - len(kernel), x.ndim))
    found = numpy.lib.stride_tricks.sliding_window_view(x, spans, axes)
    step = (...,) + (slice(None, None, stride),) * len(kernel) + (slice(None, None, dilation),) * len(kernel)
    return found[step]


def convolutions():
    x, kernel = random.random((2, 3, 40), "f4"), random.random((5, 3, 4), "f4")
    want = numpy.einsum("bclk,ock->bol", windows(numpy.pad(x.astype("f8"), [(0, 0), (0, 0), (2, 2)]), (4,), 3, 1), kernel)
    out = poison(want.shape, "f4")
    info = array(numpy.array([*x.shape, 120, 40, 1, *kernel.shape, 12, 4, 1], "u8"))
    module("conv").launch("conv1d_f32", (2,), (128,), size(x.size), size(want.shape[2]), size(3), size(2), size(1), info,
                          array(x), array(kernel), out)
    check(out, want, 1e-5)
    x, kernel = random.random((2, 3, 15, 17), "f4"), random.random((4, 3, 3, 2), "f4")
    padded = numpy.pad(x.astype("f8"), [(0, 0), (0, 0), (1, 1), (1, 1)])
    want = numpy.einsum("bchwij,ocij->bohw", windows(padded, (3, 2), 2, 2), kernel)
    out = poison(want.shape, "f4")
    info = array(numpy.array([*x.shape, 765, 255, 17, 1, *kernel.shape, 18, 6, 2, 1], "u8"))
    module("conv").launch("conv2d_f32", (4,), (128,), size(x.size), size(want.shape[3]), size(want.shape[2]), size(2),
                          size(1), size(2), info, array(x), array(kernel), out)
    check(out, want, 1e-5)
    want = windows(x.astype("f8"), (3, 2), 2, 1)
    info = array(numpy.array([*x.shape, 765, 255, 17, 1], "u8"))
    for name, function in (("avg", numpy.mean), ("max", numpy.max)):
        # both step by 2 along both axes, over windows of 3 and 2
        out = poison(want.shape[:4], "f4")
        module("conv").launch(f"{name}_pool2d_f32", (4,), (128,), size(x.size), size(3), size(2), size(2), size(2), info,
                              array(x), out)
        check(out, function(want, (-2, -1)), 1e-6)


def sort():
    rows, columns, padded = 5, 600, 1024
    for dtype in ("f32", "u8", "i64"):
        x = (200 * random.random((rows, columns))).astype(DTYPES[dtype])
        for order in ("asc", "desc"):
            out = poison(x.shape, "u4")
            module("sort").launch(f"asort_{order}_{dtype}", (rows,), (padded,), array(x), out, i32(columns), i32(padded),
                                  shared=4 * padded)
            found = numpy.take_along_axis(x, out.get().astype("i8"), -1)
            want = numpy.sort(x, -1)
            assert (found == (want if order == "asc" else want[:, ::-1])).all(), f"{order} {dtype}"


def quantize(values):
    """Blocks of 32 values with a scale each, of 8 bits and of 4 bits: their bytes, and what they stand for."""
    blocks = values.reshape(-1, 32)
    scale = (numpy.abs(blocks).max(-1, keepdims=True) / 127).astype("f2")
    eight = numpy.round(blocks / scale.astype("f4")).astype("i1")
    of_eight = numpy.concatenate([scale.view("u1"), eight.view("u1")], -1), eight * scale.astype("f8")
    scale = (numpy.abs(blocks).max(-1, keepdims=True) / 7).astype("f2")
    four = (numpy.clip(numpy.round(blocks / scale.astype("f4")), -8, 7) + 8).astype("u1")
    packed = four[:, :16] | four[:, 16:] << 4
    of_four = numpy.concatenate([scale.view("u1"), packed], -1), (four.astype("i4") - 8) * scale.astype("f8")
    return {"q8_0": of_eight, "q4_0": of_four}


def quantized():
    rows, columns = 24, 512
    weights, x = 2 * random.random((rows, columns), "f4") - 1, 2 * random.random(columns, "f4") - 1
    for name, (data, values) in quantize(weights).items():
        values = values.reshape(rows, columns)
        out = poison(rows * columns, "f4")
        blocks = -(-rows * columns // 256)
        module("quantized").launch(f"dequantize_block_{name}_f32", (blocks,), (32,), array(data), out,
                                   i32(rows * columns // 32))
        check(out, values.ravel(), 1e-6)
        eight = array(numpy.zeros((columns // 32, 36), "u1"))
        module("quantized").launch("quantize_q8_1", (2,), (256,), array(x), eight, i32(columns), i32(columns))
        raw = eight.get()
        scale = raw[:, :2].copy().view("f2").astype("f8")
        quantized = raw[:, 4:].view("i1") * scale
        assert numpy.abs(quantized.ravel() - x).max() < 1 / 127
        out = poison(rows, "f4")
        module("quantized").launch(f"mul_mat_vec_{name}_q8_1_cuda1", (rows,), (32, 4), array(data), eight, out,
                                   i32(columns), i32(rows), i32(columns), i32(rows))
        # q4_0 takes eight times the sum of x in each of 16 blocks, which it has in f16
        check(out, values @ quantized.ravel(), 5e-2)
        out = poison(rows, "f4")
        module("quantized").launch(f"dequantize_mul_mat_vec_{name}_cuda", (rows,), (32, 1), array(data), array(x), out,
                                   i32(columns), i32(rows))
        check(out, values @ x.astype("f8"), 1e-4)


CASES = {f"unary {dtype}": lambda dtype=dtype: unary(dtype) for dtype in ("f16", "f32", "f64")}
CASES |= {f"binary {dtype}": lambda dtype=dtype: binary(dtype) for dtype in DTYPES}
CASES |= {case.__name__: case for case in (affine, cast, fill, where, reduce, softmax, norms, rope, indexing, convolutions,
                                           sort, quantized)}

failed = 0
for name, case in CASES.items():
    if options.names and not any(part in name for part in options.names):
        continue
    start = time.time()
    try:
        case()
        outcome = "ok"
    except Exception as error:
        failed += 1
        outcome = f"FAILED  {type(error).__name__}: {error}"
    print(f"{name:20}{time.time() - start:6.1f} s  {outcome}", flush=True)
sys.exit(bool(failed))
