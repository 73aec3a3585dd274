// Kernels with one thread for each element: gated activation and rotary embedding. NEVER RUN ON A GPU YET.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

// y = gate · σ(gate) · up
template <typename T> __device__ void swiglu(T *y, const T *gate, const T *up, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = wide(gate[i]);
    y[i] = narrow<T>(g * sigmoid(g) * wide(up[i]));
}

// d gate = dy · up · σ · (1 + gate · (1 − σ)), d up = dy · gate · σ
template <typename T>
__device__ void swiglu_backward(T *dgate, T *dup, const T *gate, const T *up, const T *dy, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = wide(gate[i]), d = wide(dy[i]), s = sigmoid(g);
    dgate[i] = narrow<T>(d * wide(up[i]) * s * (1.f + g * (1.f - s)));
    dup[i] = narrow<T>(d * g * s);
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

#define ELEMENT_KERNELS(T, NAME)                                                                                            \
    extern "C" __global__ void swiglu_##NAME(T *y, const T *gate, const T *up, int64_t n) { swiglu(y, gate, up, n); } \
    extern "C" __global__ void swiglu_backward_##NAME(T *dgate, T *dup, const T *gate, const T *up, const T *dy,      \
                                                      int64_t n) {                                                    \
        swiglu_backward(dgate, dup, gate, up, dy, n);                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void rope_##NAME(T *y, const T *x, const float *cosines, const float *sines,                \
                                           const uint32_t *positions, int heads, int half, int64_t pairs,             \
                                           float direction) {                                                         \
        rope(y, x, cosines, sines, positions, heads, half, pairs, direction);                                         \
    }
ELEMENT_KERNELS(float, f32)
ELEMENT_KERNELS(bf16, bf16)
