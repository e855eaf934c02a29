// As much of the CUDA runtime as CUB, Thrust and cooperative groups ask for, on the driver API.
//
// The toolkit's own runtime speaks to the driver through tables that are not documented, which the emulator lacks
// (cuGetExportTable). A program that nvcc compiles with -cudart none needs the functions below.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace {

struct Image {
    const void *data;
    CUmodule module;
};

struct Named {
    Image *image;
    std::string name;
    CUfunction function;
};

// What static initialisers register before main.
std::map<const void *, Named> &kernels() {
    static std::map<const void *, Named> all;
    return all;
}

cudaError_t last = cudaSuccess;

cudaError_t check(CUresult result) {
    if (result == CUDA_SUCCESS) return cudaSuccess;
    const char *text = nullptr;
    cuGetErrorString(result, &text);
    std::fprintf(stderr, "error %d: %s\n", static_cast<int>(result), text ? text : "unknown");
    return last = static_cast<cudaError_t>(result);
}

void use_device() {
    static const bool once = [] {
        CUcontext context;
        return check(cuInit(0)) == cudaSuccess && check(cuDevicePrimaryCtxRetain(&context, 0)) == cudaSuccess &&
               check(cuCtxSetCurrent(context)) == cudaSuccess;
    }();
    if (!once) std::exit(1);
}

CUfunction function(const void *stub) {
    use_device();
    Named &kernel = kernels().at(stub);
    if (!kernel.image->module && check(cuModuleLoadData(&kernel.image->module, kernel.image->data))) std::exit(1);
    if (!kernel.function && check(cuModuleGetFunction(&kernel.function, kernel.image->module, kernel.name.c_str())))
        std::exit(1);
    return kernel.function;
}

CUdeviceptr at(const void *pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

struct Call {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
std::vector<Call> calls;

} // namespace

extern "C" {

void **__cudaRegisterFatBinary(void *wrapper) {
    struct Wrapper {
        int magic, version;
        const void *data;
        void *file;
    };
    return reinterpret_cast<void **>(new Image{static_cast<Wrapper *>(wrapper)->data, nullptr});
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
void __cudaRegisterFunction(void **image, const char *stub, char *, const char *name, int, void *, void *, void *, void *,
                            int *) {
    kernels()[stub] = Named{reinterpret_cast<Image *>(image), name, nullptr};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    calls.push_back({grid, block, shared, stream});
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    const Call call = calls.back();
    calls.pop_back();
    *grid = call.grid, *block = call.block, *shared = call.shared;
    *static_cast<cudaStream_t *>(stream) = call.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *stub) {
    *kernel = reinterpret_cast<cudaKernel_t>(function(stub));
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return check(cuLaunchKernel(reinterpret_cast<CUfunction>(kernel), grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                shared, stream, arguments, nullptr));
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *stub, void **arguments) {
    static_assert(sizeof(cudaLaunchAttribute) == sizeof(CUlaunchAttribute), "the same structure by two names");
    const CUlaunchConfig same{config->gridDim.x,
                              config->gridDim.y,
                              config->gridDim.z,
                              config->blockDim.x,
                              config->blockDim.y,
                              config->blockDim.z,
                              static_cast<unsigned>(config->dynamicSmemBytes),
                              config->stream,
                              reinterpret_cast<CUlaunchAttribute *>(config->attrs),
                              config->numAttrs};
    return check(cuLaunchKernelEx(&same, function(stub), arguments, nullptr));
}
cudaError_t cudaLaunchCooperativeKernel(const void *stub, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t stream) {
    return check(cuLaunchCooperativeKernel(function(stub), grid.x, grid.y, grid.z, block.x, block.y, block.z, shared,
                                           stream, arguments));
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    use_device();
    CUdeviceptr address = 0;
    const cudaError_t error = check(cuMemAlloc(&address, bytes ? bytes : 1));
    *pointer = reinterpret_cast<void *>(address);
    return error;
}
cudaError_t cudaFree(void *pointer) { return pointer ? check(cuMemFree(at(pointer))) : cudaSuccess; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return check(cuMemcpyAsync(at(to), at(from), bytes, stream));
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    return check(cuMemcpy(at(to), at(from), bytes));
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return check(cuMemsetD8Async(at(to), static_cast<unsigned char>(value), bytes, stream));
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return check(cuStreamSynchronize(stream)); }
cudaError_t cudaDeviceSynchronize() { return check(cuCtxSynchronize()); }

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) {
    use_device();
    return check(cuDeviceGetCount(count));
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    use_device();
    return check(cuDeviceGetAttribute(value, static_cast<CUdevice_attribute>(attribute), device));
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *stub) {
    *out = {};
    const CUfunction kernel = function(stub);
    const auto get = [&](CUfunction_attribute attribute) {
        int value = 0;
        check(cuFuncGetAttribute(&value, attribute, kernel));
        return value;
    };
    out->maxThreadsPerBlock = get(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    out->sharedSizeBytes = get(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
    out->ptxVersion = get(CU_FUNC_ATTRIBUTE_PTX_VERSION);
    out->binaryVersion = get(CU_FUNC_ATTRIBUTE_BINARY_VERSION);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *stub, cudaFuncAttribute attribute, int value) {
    return check(cuFuncSetAttribute(function(stub), static_cast<CUfunction_attribute>(attribute), value));
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *stub, int threads,
                                                                   size_t shared, unsigned flags) {
    return check(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(count, function(stub), threads, shared, flags));
}

cudaError_t cudaPeekAtLastError() { return last; }
cudaError_t cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
const char *cudaGetErrorString(cudaError_t error) {
    const char *text = nullptr;
    cuGetErrorString(static_cast<CUresult>(error), &text);
    return text;
}
const char *cudaGetErrorName(cudaError_t error) {
    const char *text = nullptr;
    cuGetErrorName(static_cast<CUresult>(error), &text);
    return text;
}

} // extern "C"
