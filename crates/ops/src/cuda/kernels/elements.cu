// Kernels with one thread for each element: gated activation and rotary embedding. NEVER RUN ON A GPU YET.
//
// What ptxas 13.0 makes of this file for sm_90; nothing is spilled, no kernel has a stack. Blocks and warps are those that a
// multiprocessor holds at a time, of 64 warps at most. `cargo xtask test --long` holds the table against nvcc.
//
// | kernel | threads | registers | shared bytes | blocks | warps |
// |---|---|---|---|---|---|
// | gelu_backward_bf16 | 256 | 15 | 0 | 8 | 64 |
// | gelu_backward_f32 | 256 | 17 | 0 | 8 | 64 |
// | gelu_bf16 | 256 | 15 | 0 | 8 | 64 |
// | gelu_f32 | 256 | 16 | 0 | 8 | 64 |
// | gelu_tanh_backward_bf16 | 256 | 16 | 0 | 8 | 64 |
// | gelu_tanh_backward_f32 | 256 | 16 | 0 | 8 | 64 |
// | gelu_tanh_bf16 | 256 | 16 | 0 | 8 | 64 |
// | gelu_tanh_f32 | 256 | 16 | 0 | 8 | 64 |
// | rope_bf16 | 256 | 24 | 0 | 8 | 64 |
// | rope_f32 | 256 | 24 | 0 | 8 | 64 |
// | silu_backward_bf16 | 256 | 16 | 0 | 8 | 64 |
// | silu_backward_f32 | 256 | 16 | 0 | 8 | 64 |
// | silu_bf16 | 256 | 16 | 0 | 8 | 64 |
// | silu_f32 | 256 | 16 | 0 | 8 | 64 |
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

// An activation f and its slope.
struct Active {
    float value, slope;
};

// x · σ(x)
struct Silu {
    static __device__ __forceinline__ Active of(float x) {
        const float s = sigmoid(x);
        return {x * s, s * (1.f + x * (1.f - s))};
    }
};

// x · Φ(x), with the normal distribution Φ; its density is exp(−x²/2) / √(2π)
struct Gelu {
    static __device__ __forceinline__ Active of(float x) {
        const float below = 0.5f * (1.f + erff(x * 0.70710678f));
        return {x * below, below + x * __expf(-0.5f * x * x) * 0.39894228f};
    }
};

// x/2 · (1 + tanh u), which is x · σ(2u), with u = √(2/π) · (x + 0.044715 x³)
struct GeluTanh {
    static __device__ __forceinline__ Active of(float x) {
        const float twice = 1.5957691f, s = sigmoid(twice * (x + 0.044715f * x * x * x));
        return {x * s, s + x * s * (1.f - s) * twice * (1.f + 0.134145f * x * x)};
    }
};

// y = f(gate) · up
template <typename A, typename T> __device__ void gated(T *y, const T *gate, const T *up, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = narrow<T>(A::of(wide(gate[i])).value * wide(up[i]));
}

// d gate = dy · up · f'(gate), d up = dy · f(gate)
template <typename A, typename T>
__device__ void gated_backward(T *dgate, T *dup, const T *gate, const T *up, const T *dy, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Active active = A::of(wide(gate[i]));
    const float d = wide(dy[i]);
    dgate[i] = narrow<T>(d * wide(up[i]) * active.slope);
    dup[i] = narrow<T>(d * active.value);
}

// Turns element i of each head with element i + d/2, x [rows, heads, 2·half], by the angles of the row's position.
template <typename T>
__device__ void rope(T *y, const T *x, const float *cosines, const float *sines, const uint32_t *positions, int heads,
                     int half, int64_t pairs, float direction) {
    const int64_t pair = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    const int i = pair % half;
    const int64_t head = pair / half, at = head * 2 * half + i;
    const size_t angle = size_t(positions[head / heads]) * half + i;
    const float c = cosines[angle], s = sines[angle] * direction, a = wide(x[at]), b = wide(x[at + half]);
    y[at] = narrow<T>(a * c - b * s);
    y[at + half] = narrow<T>(b * c + a * s);
}

#define GATED_KERNELS(ACTIVATION, KERNEL, T, NAME)                                                                    \
    extern "C" __global__ void KERNEL##_##NAME(T *y, const T *gate, const T *up, int64_t n) {                         \
        gated<ACTIVATION>(y, gate, up, n);                                                                            \
    }                                                                                                                 \
    extern "C" __global__ void KERNEL##_backward_##NAME(T *dgate, T *dup, const T *gate, const T *up, const T *dy,    \
                                                        int64_t n) {                                                  \
        gated_backward<ACTIVATION>(dgate, dup, gate, up, dy, n);                                                      \
    }
#define ELEMENT_KERNELS(T, NAME)                                                                                      \
    GATED_KERNELS(Silu, silu, T, NAME)                                                                                \
    GATED_KERNELS(Gelu, gelu, T, NAME)                                                                                \
    GATED_KERNELS(GeluTanh, gelu_tanh, T, NAME)                                                                       \
    extern "C" __global__ void rope_##NAME(T *y, const T *x, const float *cosines, const float *sines,                \
                                           const uint32_t *positions, int heads, int half, int64_t pairs,             \
                                           float direction) {                                                         \
        rope(y, x, cosines, sines, positions, heads, half, pairs, direction);                                         \
    }
ELEMENT_KERNELS(float, f32)
ELEMENT_KERNELS(bf16, bf16)
