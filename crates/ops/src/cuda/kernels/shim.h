// CUDA's words on a CPU, for tests: a block's threads are fibers that take turns at barriers and warp operations; blocks run one
// after the other.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __expf(x) expf(x)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

struct uint4 {
    uint32_t x, y, z, w;
};

struct __nv_bfloat16 {
    uint16_t bits;
};
static inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static inline __nv_bfloat16 __float2bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

namespace shim {
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};
struct Barrier {
    unsigned arrived = 0, generation = 0;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current, progress;
static Barrier block_barrier, warp_barriers[32];
static float warp_floats[32][32];
static uint32_t warp_a[32][32][4], warp_b[32][32][2];
static const std::function<void()> *body;

static void wait(Barrier &barrier, unsigned count) {
    unsigned generation = barrier.generation;
    progress++;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    while (barrier.generation == generation) swapcontext(&fibers[current].context, &scheduler);
}
static void wait_warp() { wait(warp_barriers[threadIdx.x / 32], 32); }
static void start() {
    (*body)();
    fibers[current].done = true;
    progress++;
}

// Runs a kernel (threads of a block are counted by x alone). A barrier that some threads never reach ends the program.
static void launch(dim3 grid, unsigned threads, const std::function<void()> &kernel) {
    body = &kernel;
    gridDim = grid;
    blockDim = {threads, 1, 1};
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                block_barrier = Barrier();
                for (auto &barrier : warp_barriers) barrier = Barrier();
                for (unsigned i = 0; i < threads; i++) {
                    Fiber &fiber = fibers[i];
                    fiber.stack.resize(256 << 10);
                    fiber.done = false;
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack.data();
                    fiber.context.uc_stack.ss_size = fiber.stack.size();
                    fiber.context.uc_link = &scheduler;
                    makecontext(&fiber.context, start, 0);
                }
                for (unsigned left = threads; left > 0;) {
                    progress = 0;
                    left = 0;
                    for (unsigned i = 0; i < threads; i++) {
                        if (fibers[i].done) continue;
                        left++;
                        current = i;
                        threadIdx = {i, 0, 0};
                        swapcontext(&scheduler, &fibers[i].context);
                    }
                    if (left > 0 && progress == 0) {
                        std::fprintf(stderr, "a barrier that not all threads reach\n");
                        std::abort();
                    }
                }
            }
}
} // namespace shim

static inline void __syncthreads() { shim::wait(shim::block_barrier, blockDim.x); }

static inline float __shfl_xor_sync(unsigned, float x, int lanes) {
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    shim::warp_floats[warp][lane] = x;
    shim::wait_warp();
    float other = shim::warp_floats[warp][lane ^ lanes];
    shim::wait_warp();
    return other;
}

// mma.m16n8k16: which lane holds what is the PTX manual's ("Matrix Fragments for mma.m16n8k16").
static inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    std::memcpy(shim::warp_a[warp][lane], a, sizeof a);
    std::memcpy(shim::warp_b[warp][lane], b, sizeof b);
    shim::wait_warp();
    auto half = [](uint32_t word, int i) { return __bfloat162float({uint16_t(word >> (16 * i))}); };
    for (int e = 0; e < 4; e++) {
        int row = lane / 4 + (e < 2 ? 0 : 8), column = lane % 4 * 2 + e % 2;
        for (int k = 0; k < 16; k++) {
            uint32_t left = shim::warp_a[warp][row % 8 * 4 + k % 8 / 2][(row < 8 ? 0 : 1) + (k < 8 ? 0 : 2)];
            uint32_t right = shim::warp_b[warp][column * 4 + k % 8 / 2][k < 8 ? 0 : 1];
            d[e] += half(left, k % 2) * half(right, k % 2);
        }
    }
    shim::wait_warp();
}
