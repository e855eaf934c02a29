// Programs on CUB, Thrust and cooperative groups, as nvcc compiles them from the toolkit's headers: each fills its inputs,
// runs, and compares with the host. Prints a line a program; the exit status counts those that failed.
//
//     nvcc -O2 -std=c++17 --extended-lambda -gencode arch=compute_80,code=compute_80 -cudart none -c programs.cu
//     g++ -std=c++17 -I TOOLKIT/include -c runtime.cpp
//     g++ programs.o runtime.o libcuda_emulator.so -o programs
//
// At run time the emulator is found as libcuda.so: the name that it carries. The merge sort reads one element past those
// that it wrote, and does not use it: CUDA_EMULATOR_FORGIVE=unwritten-shared lets that pass.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cub/cub.cuh>
#include <cuda/atomic>
#include <cuda/barrier>
#include <thrust/execution_policy.h>
#include <thrust/inner_product.h>
#include <thrust/sort.h>
#include <thrust/unique.h>

namespace cg = cooperative_groups;

namespace {

constexpr int COUNT = 30'001;

bool failed = false;

void check(cudaError_t error) { failed |= error != cudaSuccess; }

// An array on the device.
template <class T>
struct Array {
    T *data = nullptr;
    size_t count;

    explicit Array(size_t count) : count(count) {
        void *pointer = nullptr;
        check(cudaMalloc(&pointer, count * sizeof(T)));
        data = static_cast<T *>(pointer);
    }
    explicit Array(const std::vector<T> &values) : Array(values.size()) {
        check(cudaMemcpyAsync(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice, 0));
    }
    Array(const Array &) = delete;
    ~Array() { check(cudaFree(data)); }

    std::vector<T> get() const {
        std::vector<T> values(count);
        check(cudaMemcpyAsync(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost, 0));
        check(cudaStreamSynchronize(0));
        return values;
    }
};

// Calls an algorithm of CUB: once for the size of its workspace, once to run.
template <class Algorithm>
void run(Algorithm algorithm) {
    size_t bytes = 0;
    check(algorithm(nullptr, bytes));
    Array<char> workspace(bytes);
    check(algorithm(workspace.data, bytes));
}

template <class T>
std::vector<T> numbers(int count, int most) {
    std::mt19937 random(count);
    std::vector<T> values(count);
    for (T &value : values) value = static_cast<T>(static_cast<int>(random() % (2u * most)) - most);
    return values;
}

bool scan() {
    const auto values = numbers<int>(COUNT, 1000);
    std::vector<int> want(COUNT);
    std::partial_sum(values.begin(), values.end(), want.begin());
    Array<int> in(values), out(COUNT);
    run([&](void *space, size_t &bytes) { return cub::DeviceScan::InclusiveSum(space, bytes, in.data, out.data, COUNT); });
    return out.get() == want;
}

bool scan_of_maxima() {
    const auto values = numbers<double>(COUNT, 1 << 20);
    std::vector<double> want(COUNT);
    double most = -INFINITY;
    for (int i = 0; i < COUNT; i++) want[i] = most, most = std::max(most, values[i]);
    Array<double> in(values), out(COUNT);
    run([&](void *space, size_t &bytes) {
        return cub::DeviceScan::ExclusiveScan(space, bytes, in.data, out.data, cuda::maximum<>{}, -INFINITY, COUNT);
    });
    return out.get() == want;
}

template <class T>
bool sort_keys(int count) {
    auto values = numbers<T>(count, 1 << 30);
    Array<T> in(values), out(count);
    run([&](void *space, size_t &bytes) { return cub::DeviceRadixSort::SortKeys(space, bytes, in.data, out.data, count); });
    std::sort(values.begin(), values.end());
    return out.get() == values;
}

bool sort_pairs() {
    const auto keys = numbers<float>(COUNT, 500);
    std::vector<int> places(COUNT);
    std::iota(places.begin(), places.end(), 0);
    Array<float> in(keys), out(COUNT);
    Array<int> from(places), to(COUNT);
    run([&](void *space, size_t &bytes) {
        return cub::DeviceRadixSort::SortPairsDescending(space, bytes, in.data, out.data, from.data, to.data, COUNT);
    });
    std::stable_sort(places.begin(), places.end(), [&](int a, int b) { return keys[a] > keys[b]; });
    return to.get() == places; // it is stable too
}

bool merge_sort() {
    auto values = numbers<short>(COUNT, 30'000);
    Array<short> keys(values);
    const auto less = [] __device__(short a, short b) { return abs(a) < abs(b) || (abs(a) == abs(b) && a < b); };
    run([&](void *space, size_t &bytes) { return cub::DeviceMergeSort::SortKeys(space, bytes, keys.data, COUNT, less); });
    std::sort(values.begin(), values.end(),
              [](short a, short b) { return std::abs(a) < std::abs(b) || (std::abs(a) == std::abs(b) && a < b); });
    return keys.get() == values;
}

bool reduce() {
    const auto values = numbers<long long>(COUNT, 1 << 30);
    Array<long long> in(values), sum(1);
    run([&](void *space, size_t &bytes) { return cub::DeviceReduce::Sum(space, bytes, in.data, sum.data, COUNT); });
    return sum.get()[0] == std::accumulate(values.begin(), values.end(), 0LL);
}

bool select() {
    const auto values = numbers<int>(COUNT, 1000);
    std::vector<int> want;
    std::copy_if(values.begin(), values.end(), std::back_inserter(want), [](int value) { return value % 3 == 0; });
    Array<int> in(values), out(COUNT), count(1);
    run([&](void *space, size_t &bytes) {
        return cub::DeviceSelect::If(space, bytes, in.data, out.data, count.data, COUNT,
                                     [] __device__(int value) { return value % 3 == 0; });
    });
    return count.get()[0] == static_cast<int>(want.size()) &&
           [&] {
               std::vector<int> found(want.size());
               check(cudaMemcpyAsync(found.data(), out.data, 4 * want.size(), cudaMemcpyDeviceToHost, 0));
               check(cudaStreamSynchronize(0));
               return found == want;
           }();
}

bool histogram() {
    const auto values = numbers<float>(COUNT, 100);
    std::vector<int> want(50);
    for (float value : values) want[static_cast<int>((value + 100) / 4)]++;
    Array<float> in(values);
    Array<int> out(50);
    run([&](void *space, size_t &bytes) {
        return cub::DeviceHistogram::HistogramEven(space, bytes, in.data, out.data, 51, -100.f, 100.f, COUNT);
    });
    return out.get() == want;
}

bool segmented_reduce() {
    const std::vector<int> offsets{0, 1, 700, 700, 5000, COUNT};
    const auto values = numbers<int>(COUNT, 1000);
    std::vector<int> want;
    for (int i = 0; i < 5; i++) want.push_back(std::accumulate(&values[offsets[i]], values.data() + offsets[i + 1], 0));
    Array<int> in(values), at(offsets), out(5);
    run([&](void *space, size_t &bytes) {
        return cub::DeviceSegmentedReduce::Sum(space, bytes, in.data, out.data, 5, at.data, at.data + 1);
    });
    return out.get() == want;
}

bool thrust_algorithms() {
    auto values = numbers<int>(COUNT, 3000);
    Array<int> in(values);
    const long long squares = std::inner_product(values.begin(), values.end(), values.begin(), 0LL);
    const long long found =
        thrust::inner_product(thrust::device, in.data, in.data + COUNT, in.data, 0LL, cuda::std::plus<long long>{},
                              [] __device__(int a, int b) { return static_cast<long long>(a) * b; });
    thrust::sort(thrust::device, in.data, in.data + COUNT, cuda::std::greater<int>{});
    const int *end = thrust::unique(thrust::device, in.data, in.data + COUNT);
    std::sort(values.begin(), values.end(), std::greater<int>{});
    values.erase(std::unique(values.begin(), values.end()), values.end());
    auto left = in.get();
    left.resize(end - in.data);
    return found == squares && left == values;
}

// Every block adds its part, and after a barrier of the grid reads what all have added.
__global__ void add_through_grid(const int *in, int count, int *rounds, int *sums) {
    const cg::grid_group grid = cg::this_grid();
    for (int round = 0; round < 3; round++) {
        int sum = 0;
        for (int i = grid.thread_rank(); i < count; i += grid.num_threads()) sum += in[i] + round;
        const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
        sum = cg::reduce(warp, sum, cg::plus<int>());
        if (warp.thread_rank() == 0) atomicAdd(rounds + round, sum);
        grid.sync();
        if (threadIdx.x == 0) sums[round * gridDim.x + blockIdx.x] = rounds[round];
    }
}

bool grid_barrier() {
    constexpr int BLOCKS = 12;
    const auto values = numbers<int>(COUNT, 1000);
    Array<int> in(values), rounds(std::vector<int>(3)), sums(3 * BLOCKS);
    int count = COUNT;
    void *arguments[] = {&in.data, &count, &rounds.data, &sums.data};
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void *>(add_through_grid), BLOCKS, 128, arguments, 0, 0));
    std::vector<int> want;
    for (int round = 0; round < 3; round++)
        want.insert(want.end(), BLOCKS, std::accumulate(values.begin(), values.end(), round * COUNT));
    return sums.get() == want;
}

// Groups of 8 lanes, of the lanes that took a branch, and of equal labels.
__global__ void groups(const int *in, int *scanned, int *odd, int *labelled) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, value = in[at];
    const auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    scanned[at] = cg::inclusive_scan(tile, value, cg::plus<int>());
    if (value & 1) {
        const auto active = cg::coalesced_threads();
        odd[at] = cg::reduce(active, value, cg::greater<int>());
    } else {
        odd[at] = 0;
    }
    const auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    const auto same = cg::labeled_partition(warp, value & 3);
    labelled[at] = cg::reduce(same, value, cg::less<int>());
}

bool groups_of_lanes() {
    constexpr int THREADS = 256;
    const auto values = numbers<int>(THREADS, 1000);
    Array<int> in(values), scanned(THREADS), odd(THREADS), labelled(THREADS);
    groups<<<2, THREADS / 2>>>(in.data, scanned.data, odd.data, labelled.data);
    std::vector<int> want(THREADS), most(THREADS), least(THREADS);
    for (int i = 0; i < THREADS; i++) {
        want[i] = std::accumulate(&values[i & ~7], &values[i] + 1, 0);
        const int warp = i & ~31;
        int greatest = -1 << 20;
        least[i] = 1 << 20;
        for (int j = warp; j < warp + 32; j++) {
            if (values[j] & 1) greatest = std::max(greatest, values[j]);
            if ((values[j] & 3) == (values[i] & 3)) least[i] = std::min(least[i], values[j]);
        }
        most[i] = values[i] & 1 ? greatest : 0;
    }
    return scanned.get() == want && odd.get() == most && labelled.get() == least;
}

// A ring of two tiles: the next is fetched while one is summed.
__global__ void sum_by_async_copies(const int *in, int tiles, int *sums) {
    using Barrier = cuda::barrier<cuda::thread_scope_block>;
    constexpr int TILE = 256;
    __shared__ alignas(16) int ring[2][TILE];
    __shared__ alignas(Barrier) unsigned char storage[2][sizeof(Barrier)];
    auto *arrived = reinterpret_cast<Barrier *>(storage);
    const auto block = cg::this_thread_block();
    if (block.thread_rank() < 2) init(arrived + block.thread_rank(), block.size());
    block.sync();
    const auto fetch = [&](int tile) {
        cuda::memcpy_async(block, ring[tile % 2], in + tile * TILE, cuda::aligned_size_t<16>(sizeof(ring[0])),
                           arrived[tile % 2]);
    };
    fetch(0);
    int sum = 0;
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) fetch(tile + 1);
        arrived[tile % 2].arrive_and_wait();
        for (int i = block.thread_rank(); i < TILE; i += block.size()) sum += ring[tile % 2][TILE - 1 - i];
        block.sync(); // the tile has been read before it is fetched anew
    }
    sums[block.thread_rank()] = sum;
}

bool async_copies() {
    constexpr int TILES = 7;
    const auto values = numbers<int>(256 * TILES, 1000);
    Array<int> in(values), sums(64);
    sum_by_async_copies<<<1, 64>>>(in.data, TILES, sums.data);
    const auto found = sums.get();
    return std::accumulate(found.begin(), found.end(), 0) == std::accumulate(values.begin(), values.end(), 0);
}

// A value handed from block to block in order, by release and acquire of a flag.
__global__ void pass_on(int *flag, int *value) {
    cuda::atomic_ref<int, cuda::thread_scope_device> turn(*flag);
    if (threadIdx.x == 0) {
        while (turn.load(cuda::memory_order_acquire) != static_cast<int>(blockIdx.x)) __nanosleep(20);
        *value = 3 * *value + static_cast<int>(blockIdx.x);
        turn.store(blockIdx.x + 1, cuda::memory_order_release);
    }
}

bool release_and_acquire() {
    constexpr int BLOCKS = 15;
    Array<int> flag(std::vector<int>{0}), value(std::vector<int>{1});
    pass_on<<<BLOCKS, 32>>>(flag.data, value.data);
    int want = 1;
    for (int i = 0; i < BLOCKS; i++) want = 3 * want + i;
    return value.get()[0] == want;
}

} // namespace

int main(int count, char **names) {
    const struct {
        const char *name;
        bool (*run)();
    } programs[] = {
        {"DeviceScan: sums", scan},
        {"DeviceScan: maxima of f64", scan_of_maxima},
        {"DeviceRadixSort: u32", [] { return sort_keys<unsigned>(COUNT); }},
        {"DeviceRadixSort: i64", [] { return sort_keys<long long>(COUNT); }},
        {"DeviceRadixSort: one tile", [] { return sort_keys<int>(500); }},
        {"DeviceRadixSort: pairs", sort_pairs},
        {"DeviceMergeSort", merge_sort},
        {"DeviceReduce", reduce},
        {"DeviceSelect", select},
        {"DeviceHistogram", histogram},
        {"DeviceSegmentedReduce", segmented_reduce},
        {"Thrust: sort, unique, inner product", thrust_algorithms},
        {"cooperative groups: grid", grid_barrier},
        {"cooperative groups: lanes", groups_of_lanes},
        {"cuda::barrier and memcpy_async", async_copies},
        {"cuda::atomic_ref", release_and_acquire},
    };
    int failures = 0;
    for (const auto &program : programs) {
        if (count > 1 && !std::strstr(program.name, names[1])) continue;
        failed = false;
        const bool equal = program.run();
        const char *outcome = failed ? "FAILED: an error" : equal ? "ok" : "FAILED: differs from the host";
        std::printf("%-40s %s\n", program.name, outcome);
        std::fflush(stdout);
        failures += failed || !equal;
    }
    return failures;
}
