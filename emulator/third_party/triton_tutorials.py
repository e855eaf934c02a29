"""Runs the kernels of Triton's tutorials on the emulator, through Triton's own compiler and launcher.

    python triton_tutorials.py python/tutorials target/release/libcuda_emulator.so sm_80 [name ...]

The first argument is the folder of the tutorials in a checkout of Triton. Needs the packages triton (3.9 or later, which
launches without torch) and numpy, and gcc, with which Triton builds its launcher. From each tutorial only the functions
that Triton compiles are taken: the rest of the file needs torch. The blocks, warps and stages are those that a tutorial
tunes over; shapes are smaller. Instead of what ptxas makes, the driver is given the PTX.
"""

import argparse
import ast
import importlib.util
import math
import os
import sys
import tempfile
import time
import warnings

import device

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("tutorials", help="the folder python/tutorials of Triton")
parser.add_argument("library", help="libcuda_emulator.so")
parser.add_argument("arch", choices=["sm_80", "sm_90"])
parser.add_argument("names", nargs="*", help="parts of the names of the cases to run; all without")
options = parser.parse_args()
# Triton shows no mbarrier to the async proxy unless it serves a cluster
device.use(options.library, options.arch, forgive="unfenced-mbarriers")

warnings.simplefilter("ignore")  # defaults that a later Triton will change
scratch = tempfile.TemporaryDirectory()
os.environ["TRITON_CACHE_DIR"] = os.path.join(scratch.name, "cache")
os.environ["TRITON_LIBCUDA_PATH"] = os.environ["LD_LIBRARY_PATH"].split(os.pathsep)[0]

import numpy
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

HOPPER = options.arch == "sm_90"
driver = device.Driver()
array = driver.array
random = numpy.random.default_rng(0)
PREAMBLE = """import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


def keep_ptx(backend=None, stages=None, options=None, language=None, capability=None):
    """Makes PTX the last stage of Triton's compiler."""
    if backend is None:
        return "ptx", "ptx"  # what Triton adds to the key of its cache
    stages["cubin"] = lambda ptx, metadata: ptx.encode() + b"\0"


triton.knobs.runtime.add_stages_inspection_hook = keep_ptx
triton.set_allocator(lambda size, align, stream: array(numpy.zeros(size, "u1")))


def kernels(file):
    """A module of the functions in a tutorial that Triton compiles, without their tuning."""
    with open(os.path.join(options.tutorials, file)) as source:
        text = source.read()
    functions = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            node.decorator_list = [ast.parse("triton.jit", mode="eval").body]
            functions.append(ast.unparse(node))
    name = "kernels_" + "".join(c if c.isalnum() else "_" for c in file)
    path = os.path.join(scratch.name, name + ".py")
    with open(path, "w") as module:
        module.write("\n\n".join([PREAMBLE, *functions]) + "\n")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def normal(*shape, scale=1.0, dtype="f2"):
    return (scale * random.standard_normal(shape)).astype(dtype)


def poison(*shape, dtype="f2"):
    """An output of which every element must be written."""
    return array(numpy.full(shape, numpy.nan, dtype))


def check(got, want, bound):
    """`bound`: the largest absolute difference allowed."""
    difference = numpy.abs(got.get().astype("f8") - want).max()
    assert difference <= bound, f"differs by {difference:.3g}, more than {bound:.3g}"
    return difference


def vector_add():
    x, y = (array(random.random(98432, "f4")) for _ in range(2))
    out = poison(98432, dtype="f4")
    kernels("01-vector-add.py").add_kernel[(97,)](x, y, out, 98432, BLOCK_SIZE=1024)
    return check(out, x.host + y.host, 0)


def softmax(values):
    shifted = numpy.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def fused_softmax():
    rows, columns = 50, 781
    x, out = array(normal(rows, columns, dtype="f4")), poison(rows, columns, dtype="f4")
    kernel = kernels("02-fused-softmax.py").softmax_kernel
    stages = 4 if HOPPER else 2
    kernel[(8,)](out, x, columns, columns, rows, columns, BLOCK_SIZE=1024, num_stages=stages, num_warps=8)
    return check(out, softmax(x.host.astype("f8")), 1e-6)


def matmul(m, n, k, activation="", fp8=False, **config):
    def run():
        a, b = normal(m, k, scale=0.3), normal(k, n, scale=0.3)
        if fp8:  # e5m2 is the upper byte of f16; B is handed over transposed, as the tutorial does
            a, b = a.view("u2") >> 8, numpy.ascontiguousarray(b.T).view("u2") >> 8
            left, right = (array(x.astype("u1"), "float8_e5m2") for x in (a, b))
            a, b = (a << 8).view("f2"), (b << 8).view("f2").T
            strides = (1, k)
        else:
            left, right, strides = array(a), array(b), (n, 1)
        out = poison(m, n)
        grid = lambda meta: (triton.cdiv(m, meta["BLOCK_SIZE_M"]) * triton.cdiv(n, meta["BLOCK_SIZE_N"]),)
        kernel = kernels("03-matrix-multiplication.py").matmul_kernel
        kernel[grid](left, right, out, m, n, k, k, 1, *strides, n, 1, ACTIVATION=activation, GROUP_SIZE_M=8, **config)
        want = a.astype("f8") @ b.astype("f8")
        want = numpy.where(want < 0, 0.01 * want, want) if activation else want
        return check(out, want, 1e-2)

    return run


def tile(m, n, k):
    return {"BLOCK_SIZE_M": m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": k}


def dropout():
    n, p = 5000, 0.3
    x, keep = array(normal(n, dtype="f4")), array((random.random(n) > p).astype("i4"))
    out = poison(n, dtype="f4")
    kernels("04-low-memory-dropout.py")._dropout[(5,)](x, keep, out, n, p, BLOCK_SIZE=1024)
    return check(out, numpy.where(keep.host, x.host / (1 - p), 0), 1e-6)


def philox(seed, offsets):
    """The first of four words of Philox 4x32-10 (Salmon et al., 2011) for each counter."""
    low = numpy.uint64(0xFFFFFFFF)
    key = [numpy.uint64(seed), numpy.uint64(0)]
    c = [offsets.astype("u8")] + [numpy.zeros(len(offsets), "u8")] * 3
    for _ in range(10):
        a, b = c[0] * numpy.uint64(0xD2511F53), c[2] * numpy.uint64(0xCD9E8D57)
        c = [b >> numpy.uint64(32) ^ c[1] ^ key[0], b & low, a >> numpy.uint64(32) ^ c[3] ^ key[1], a & low]
        key = [key[0] + numpy.uint64(0x9E3779B9) & low, key[1] + numpy.uint64(0xBB67AE85) & low]
    return c[0].astype("u4")


def seeded_dropout():
    n, p, seed = 5000, 0.3, 123
    x, out = array(normal(n, dtype="f4")), poison(n, dtype="f4")
    kernels("04-low-memory-dropout.py")._seeded_dropout[(5,)](x, out, n, p, seed, BLOCK_SIZE=1024)
    word = philox(seed, numpy.arange(n)).view("i4").astype("i8")
    uniform = numpy.where(word < 0, -word - 1, word) * 4.6566127342e-10
    return check(out, numpy.where(uniform > p, x.host / (1 - p), 0), 1e-6)


def layer_norm():
    rows, columns, group, block, eps = 48, 1500, 16, 2048, 1e-5
    module = kernels("05-layer-norm.py")
    x, weight, bias = normal(rows, columns) - 2, normal(columns), normal(columns)
    grad = normal(rows, columns, scale=0.1)
    dx, dw, db = layer_norm_gradients(x.astype("f8"), weight.astype("f8"), grad.astype("f8"), eps)
    mean = x.astype("f8").mean(-1)
    rstd = 1 / numpy.sqrt(x.astype("f8").var(-1) + eps)
    want = (x - mean[:, None]) * rstd[:, None] * weight.astype("f8") + bias
    x, weight, bias, grad = map(array, (x, weight, bias, grad))
    out, means, rstds = poison(rows, columns), poison(rows, dtype="f4"), poison(rows, dtype="f4")
    forward = module._layer_norm_fwd_fused
    forward[(rows,)](x, out, weight, bias, means, rstds, columns, columns, eps, BLOCK_SIZE=block, num_warps=8, num_ctas=1)
    worst = max(check(out, want, 1e-2), check(means, mean, 1e-5), check(rstds, rstd, 1e-4))
    partial = [array(numpy.zeros((group, columns), "f2")) for _ in range(2)]
    locks = array(numpy.zeros(2 * group, "i4"))
    out, final = poison(rows, columns), [poison(columns), poison(columns)]
    backward = module._layer_norm_bwd_dx_fused
    backward[(rows,)](out, grad, *partial, x, weight, means, rstds, locks, columns, columns, BLOCK_SIZE_N=block,
                      GROUP_SIZE_M=group, num_warps=8)
    module._layer_norm_bwd_dwdb[(triton.cdiv(columns, 128),)](*partial, *final, group, columns, BLOCK_SIZE_M=32,
                                                              BLOCK_SIZE_N=128, num_ctas=1)
    return max(worst, check(out, dx, 1e-2), check(final[0], dw, 1e-2), check(final[1], db, 1e-2))


def layer_norm_gradients(x, weight, grad, eps):
    """The gradients of x, weight and bias."""
    normalised = (x - x.mean(-1, keepdims=True)) / numpy.sqrt(x.var(-1, keepdims=True) + eps)
    scaled = grad * weight
    along = (normalised * scaled).mean(-1, keepdims=True)
    dx = (scaled - normalised * along - scaled.mean(-1, keepdims=True)) / numpy.sqrt(x.var(-1, keepdims=True) + eps)
    return dx, (grad * normalised).sum(0), grad.sum(0)


def attention(dim, causal, host, backward=False, block=(64, 32), warp_specialize=False, **config):
    """`host`: tensor maps made by the driver API; otherwise the kernel makes them."""

    def run():
        batch, heads, length, scale = 1, 2, 256, 0.5
        q, k, v, grad = (normal(batch, heads, length, dim, scale=0.5) for _ in range(4))
        module = kernels("06-fused-attention.py")
        out, best = poison(*q.shape), poison(batch, heads, length, dtype="f4")
        on_device = [array(x) for x in (q, k, v)] + [out]
        given = on_device
        if host:
            rows = batch * heads * length
            blocks = [block[0], block[1], block[1], block[0]]
            given = [TensorDescriptor(x, [rows, dim], [dim, 1], [b, dim]) for x, b in zip(on_device, blocks)]
        module._attn_fwd[(length // block[0], batch * heads, 1)](
            scale, best, batch, heads, *given, N_CTX=length, HEAD_DIM=dim, BLOCK_M=block[0], BLOCK_N=block[1],
            FP8_OUTPUT=False, STAGE=3 if causal else 1, warp_specialize=warp_specialize, IS_HOPPER=HOPPER, **config)
        scores = scale * q.astype("f8") @ k.astype("f8").swapaxes(-1, -2)
        if causal:
            scores = numpy.where(numpy.tri(length, dtype=bool), scores, -numpy.inf)
        p = softmax(scores)
        worst = check(out, p @ v.astype("f8"), 1e-2)
        if not backward:
            return worst
        dp = grad.astype("f8") @ v.astype("f8").swapaxes(-1, -2)
        want_v = p.swapaxes(-1, -2) @ grad.astype("f8")
        ds = p * (dp - (dp * p).sum(-1, keepdims=True))
        want_q, want_k = scale * ds @ k.astype("f8"), scale * ds.swapaxes(-1, -2) @ q.astype("f8")
        delta, dq, dk, dv = poison(batch, heads, length, dtype="f4"), *(poison(*q.shape) for _ in range(3))
        do, scaled = array(grad), array((k * (scale * math.log2(math.e))).astype("f2"))
        module._attn_bwd_preprocess[(length // 128, batch * heads)](out, do, delta, batch, heads, length, BLOCK_M=128,
                                                                   HEAD_DIM=dim)
        module._attn_bwd[(length // 128, 1, batch * heads)](
            on_device[0], scaled, on_device[2], scale, do, dq, dk, dv, best, delta, heads * length * dim, length * dim,
            dim, 1, heads, length, BLOCK_M1=32, BLOCK_N1=128, BLOCK_M2=128, BLOCK_N2=32, BLK_SLICE_FACTOR=2,
            HEAD_DIM=dim, CAUSAL=causal, num_warps=4, num_stages=5 if dim == 64 else 3)
        return max(worst, check(dq, want_q, 1e-2), check(dk, want_k, 1e-2), check(dv, want_v, 1e-2))

    return run


def libdevice_asin():
    n = 5000
    x, out = array(2 * random.random(n, "f4") - 1), poison(n, dtype="f4")
    kernels("07-extern-functions.py").asin_kernel[(5,)](x, out, n, BLOCK_SIZE=1024)
    return check(out, numpy.arcsin(x.host.astype("f8")), 1e-6)


def grouped_gemm(tma):
    def run():
        sizes = [(256, 128, 192), (128, 256, 64), (128, 128, 128)]
        a = [array(normal(m, k, scale=0.3)) for m, n, k in sizes]
        b = [array(normal(n, k, scale=0.3) if tma else normal(k, n, scale=0.3)) for m, n, k in sizes]
        c = [poison(m, n) for m, n, k in sizes]
        pointers = [array(numpy.array([x.data_ptr() for x in group], "i8")) for group in (a, b, c)]
        leading = [x.stride(0) for group in zip(a, b, c) for x in group]
        facts = [array(numpy.array(x, "i4").ravel()) for x in (sizes, leading)]
        module = kernels("08-grouped-gemm.py")
        kernel = module.grouped_matmul_tma_kernel if tma else module.grouped_matmul_kernel
        config = tile(128, 128, 64) | {"num_stages": 3, "num_warps": 8, "FP8": False} if tma else tile(64, 64, 32)
        kernel[(6,)](*pointers, *facts, len(sizes), NUM_SM=6, **config)
        wants = [x.host.astype("f8") @ (y.host.T if tma else y.host).astype("f8") for x, y in zip(a, b)]
        return max(check(out, want, 1e-2) for out, want in zip(c, wants))

    return run


def persistent_matmul(name, subtile=None, **config):
    """The kernels of the tutorial: pointers, tensor maps of the host, and tensor maps that the kernel makes."""

    def run():
        m, n, k, blocks = 300, 384, 264, 4
        a, b = normal(m, k, scale=0.3), normal(n, k, scale=0.3)
        left, out = array(a), poison(m, n)
        maps = "tma" in name or "descriptor" in name
        right = array(b if maps else b.T)
        tiles = triton.cdiv(m, config["BLOCK_SIZE_M"]) * triton.cdiv(n, config["BLOCK_SIZE_N"])
        given, more = [left, right, out], {}
        if "tma" in name:
            bm, bn, bk = (config[f"BLOCK_SIZE_{axis}"] for axis in "MNK")
            shapes = [(bm, bk), (bn, bk), (bm, bn // 2 if subtile else bn)]
            given = [TensorDescriptor(x, list(x.shape), [x.stride(0), 1], list(s)) for x, s in zip(given, shapes)]
            more["FP8_OUTPUT"] = False
        if maps:
            more["WARP_SPECIALIZE"] = False
        if subtile is not None:
            more["EPILOGUE_SUBTILE"] = subtile
        if "persistent" in name:
            more["NUM_SMS"] = blocks
        strides = [] if maps else [k, 1, n, 1, n, 1]
        kernel = getattr(kernels("09-persistent-matmul.py"), name)
        grid = (min(blocks, tiles) if "persistent" in name else tiles,)
        kernel[grid](*given, m, n, k, *strides, GROUP_SIZE_M=8, **more, **config)
        return check(out, a.astype("f8") @ b.astype("f8").T, 1e-2)

    return run


def pdl_add():
    n = 5000
    x, y = (array(random.random(n, "f4")) for _ in range(2))
    out = poison(n, dtype="f4")
    kernel = kernels("11-programmatic-dependent-launch.py").add_kernel
    kernel[(5,)](x, y, out, n, BLOCK_SIZE=1024, USE_GDC=True, launch_pdl=True)
    return check(out, x.host + y.host, 0)


CASES = {
    "vector_add": vector_add,
    "fused_softmax": fused_softmax,
    "matmul 128x256x64, 8 warps": matmul(300, 512, 200, **tile(128, 256, 64), num_stages=3, num_warps=8),
    "matmul 64x32x32, 5 stages": matmul(200, 160, 264, "leaky_relu", **tile(64, 32, 32), num_stages=5, num_warps=2),
    "matmul 128x128x32, 4 stages": matmul(256, 256, 256, **tile(128, 128, 32), num_stages=4, num_warps=4),
    "matmul e5m2 128x128x128": matmul(256, 256, 256, fp8=True, **tile(128, 128, 128), num_stages=3, num_warps=4),
    "dropout": dropout,
    "seeded_dropout": seeded_dropout,
    "layer_norm": layer_norm,
    "attention dim 64": attention(64, False, False, num_stages=2, num_warps=4),
    "attention dim 64, causal, backward": attention(64, True, False, True, num_stages=3, num_warps=4),
    "attention dim 128, backward": attention(128, False, False, True, (128, 64), num_stages=2, num_warps=8),
    "libdevice_asin": libdevice_asin,
    "grouped_gemm": grouped_gemm(False),
    "matmul_kernel": persistent_matmul("matmul_kernel", **tile(128, 128, 64), num_stages=3, num_warps=8),
    "persistent": persistent_matmul("matmul_kernel_persistent", **tile(128, 128, 64), num_stages=3, num_warps=8),
}
if HOPPER:
    CASES |= {
        "attention dim 64, tensor maps": attention(64, False, True, num_stages=3, num_warps=4),
        "attention dim 128, tensor maps, causal": attention(128, True, True, block=(128, 64), num_stages=2, num_warps=4),
        "attention dim 128, specialised warps": attention(
            128, False, False, block=(128, 64), warp_specialize=True, num_stages=2, num_warps=4),
        "grouped_gemm, tensor maps": grouped_gemm(True),
        "tma": persistent_matmul("matmul_kernel_tma", **tile(128, 256, 64), num_stages=3, num_warps=8),
        "tma_persistent": persistent_matmul(
            "matmul_kernel_tma_persistent", subtile=False, **tile(128, 128, 64), num_stages=3, num_warps=4),
        "tma_persistent, subtiles": persistent_matmul(
            "matmul_kernel_tma_persistent", subtile=True, **tile(128, 256, 64), num_stages=2, num_warps=8),
        "descriptor_persistent": persistent_matmul(
            "matmul_kernel_descriptor_persistent", subtile=True, FLATTEN=True, **tile(128, 128, 64), num_stages=3,
            num_warps=4),
        "pdl_add": pdl_add,
    }

failed = 0
for name, case in CASES.items():
    if options.names and not any(part in name for part in options.names):
        continue
    start = time.time()
    try:
        outcome = f"ok      largest difference {case():.3g}"
    except Exception as error:
        failed += 1
        outcome = f"FAILED  {type(error).__name__}: {error}"
    print(f"{name:40}{time.time() - start:6.1f} s  {outcome}", flush=True)
sys.exit(bool(failed))
