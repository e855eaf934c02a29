"""The driver API by ctypes: arrays on the device, modules and launches, for the programs in this folder.

The driver is the one that the process finds under the name libcuda.so.1. `use` makes that the emulator, by
starting the process again with a folder on its search path in which the emulator has this name.
"""

import atexit
import ctypes
import os
import shutil
import sys
import tempfile

import numpy


def use(library, arch, forgive=""):
    """Makes `library` (libcuda_emulator.so) the driver of this process, posing as `arch`. `forgive`: the mistakes that are
    let pass, as CUDA_EMULATOR_FORGIVE takes them."""
    chosen = "EMULATOR_THIRD_PARTY"
    if chosen in os.environ:
        atexit.register(shutil.rmtree, os.environ[chosen], ignore_errors=True)
        return
    folder = tempfile.mkdtemp()
    os.symlink(os.path.abspath(library), os.path.join(folder, "libcuda.so.1"))
    path = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
    change = {chosen: folder, "LD_LIBRARY_PATH": path, "CUDA_EMULATOR_ARCH": arch, "CUDA_EMULATOR_FORGIVE": forgive}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | change)


class Driver:
    """The driver, with the context of its first device current."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(0))
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *arguments):
        """Calls a function of the driver; an error is raised with the driver's words."""
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            words = text.value.decode() if text.value else "unknown"
            raise RuntimeError(f"{name}: error {code}: {words}")

    def array(self, values, dtype=None):
        """A copy of `values` on the device."""
        return Array(self, numpy.ascontiguousarray(values), dtype)

    def module(self, image):
        """A module from bytes of PTX or a fatbin."""
        return Module(self, image)


class Array:
    """Memory on the device with a shape. `data_ptr` and `dtype` are what Triton asks of a tensor; `dtype` may name a
    type that numpy lacks."""

    def __init__(self, driver, values, dtype):
        self.driver, self.host, self.shape = driver, values, values.shape
        self.dtype = dtype or values.dtype
        address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(values.nbytes, 1)))
        self.address = address.value
        driver.call("cuMemcpyHtoD_v2", address, values.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(values.nbytes))

    def __del__(self):
        self.driver.library.cuMemFree_v2(ctypes.c_uint64(self.address))

    def data_ptr(self):
        return self.address

    def stride(self, axis):
        return self.host.strides[axis] // self.host.itemsize

    def get(self):
        """The values now."""
        values = numpy.empty_like(self.host)
        out = values.ctypes.data_as(ctypes.c_void_p)
        self.driver.call("cuMemcpyDtoH_v2", out, ctypes.c_uint64(self.address), ctypes.c_size_t(values.nbytes))
        return values


class Module:
    """A loaded module."""

    def __init__(self, driver, image):
        self.driver, self.handle = driver, ctypes.c_void_p()
        driver.call("cuModuleLoadData", ctypes.byref(self.handle), ctypes.c_char_p(image))

    def launch(self, name, grid, block, *arguments, shared=0, cooperative=False):
        """Launches a kernel and waits. Arguments are arrays, ctypes values and ctypes structures."""
        function = ctypes.c_void_p()
        self.driver.call("cuModuleGetFunction", ctypes.byref(function), self.handle, name.encode())
        sides = [ctypes.c_uint(n) for xyz in (grid, block) for n in (*xyz, 1, 1)[:3]]
        values = [ctypes.c_uint64(a.address) if isinstance(a, Array) else a for a in arguments]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(v) for v in values))
        launch = "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
        extra = [] if cooperative else [None]
        self.driver.call(launch, function, *sides, ctypes.c_uint(shared), None, pointers, *extra)
        self.driver.call("cuCtxSynchronize")
