// Kernels with one block for each row: normalisation and cross-entropy. NEVER RUN ON A GPU YET.
//
// What ptxas 13.0 makes of this file for sm_90; nothing is spilled, no kernel has a stack. Blocks and warps are those that a
// multiprocessor holds at a time, of 64 warps at most. `cargo xtask test --long` holds the table against nvcc.
//
// | kernel | threads | registers | shared bytes | blocks | warps |
// |---|---|---|---|---|---|
// | cross_entropy_bf16 | 256 | 22 | 128 | 8 | 64 |
// | cross_entropy_f32 | 256 | 22 | 128 | 8 | 64 |
// | layer_norm_backward_bf16 | 256 | 22 | 128 | 8 | 64 |
// | layer_norm_backward_f32 | 256 | 22 | 128 | 8 | 64 |
// | layer_norm_bf16 | 256 | 19 | 128 | 8 | 64 |
// | layer_norm_f32 | 256 | 20 | 128 | 8 | 64 |
// | rms_norm_backward_bf16 | 256 | 20 | 128 | 8 | 64 |
// | rms_norm_backward_f32 | 256 | 20 | 128 | 8 | 64 |
// | rms_norm_bf16 | 256 | 15 | 128 | 8 | 64 |
// | rms_norm_f32 | 256 | 16 | 128 | 8 | 64 |
#include "common.cuh"

// y = x / sqrt(mean(x²) + eps) · w
template <typename T> __device__ void rms_norm(T *y, const T *x, const T *w, int n, float eps) {
    __shared__ float room[32];
    const size_t at = size_t(blockIdx.x) * n;
    float sum = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float value = wide(x[at + i]);
        sum += value * value;
    }
    const float inverse = rsqrtf(block_sum(sum, room) / n + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[at + i] = narrow<T>(wide(x[at + i]) * inverse * wide(w[i]));
}

// dx = (w∘dy − x · mean(w∘dy∘x) · i²) · i with i = 1/sqrt(mean(x²) + eps)
template <typename T>
__device__ void rms_norm_backward(T *dx, const T *x, const T *w, const T *dy, int n, float eps) {
    __shared__ float room[32];
    const size_t at = size_t(blockIdx.x) * n;
    float square = 0.f, product = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float value = wide(x[at + i]);
        square += value * value;
        product += wide(w[i]) * wide(dy[at + i]) * value;
    }
    const float inverse = rsqrtf(block_sum(square, room) / n + eps);
    const float along = block_sum(product, room) / n * inverse * inverse;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float value = wide(w[i]) * wide(dy[at + i]) - wide(x[at + i]) * along;
        dx[at + i] = narrow<T>(value * inverse);
    }
}

// A row's mean, and i = 1/sqrt(variance + eps).
struct Statistics {
    float mean, inverse;
};
template <typename T> __device__ __forceinline__ Statistics statistics(const T *x, int n, float eps, float *room) {
    float sum = 0.f, square = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += wide(x[i]);
    const float mean = block_sum(sum, room) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float centred = wide(x[i]) - mean;
        square += centred * centred;
    }
    return {mean, rsqrtf(block_sum(square, room) / n + eps)};
}

// y = (x − mean) · i · w + b
template <typename T> __device__ void layer_norm(T *y, const T *x, const T *w, const T *b, int n, float eps) {
    __shared__ float room[32];
    const size_t at = size_t(blockIdx.x) * n;
    const Statistics row = statistics(x + at, n, eps, room);
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[at + i] = narrow<T>((wide(x[at + i]) - row.mean) * row.inverse * wide(w[i]) + wide(b[i]));
}

// dx = (g − mean(g) − h · mean(g∘h)) · i with g = w∘dy and h = (x − mean) · i
template <typename T>
__device__ void layer_norm_backward(T *dx, const T *x, const T *w, const T *dy, int n, float eps) {
    __shared__ float room[32];
    const size_t at = size_t(blockIdx.x) * n;
    const Statistics row = statistics(x + at, n, eps, room);
    float sum = 0.f, product = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float g = wide(w[i]) * wide(dy[at + i]);
        sum += g;
        product += g * (wide(x[at + i]) - row.mean);
    }
    const float level = block_sum(sum, room) / n;
    const float along = block_sum(product, room) / n * row.inverse * row.inverse;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float value = wide(w[i]) * wide(dy[at + i]) - level - (wide(x[at + i]) - row.mean) * along;
        dx[at + i] = narrow<T>(value * row.inverse);
    }
}

// Each row's loss; what is left in `logits` is their gradient, softmax − one-hot.
template <typename T>
__device__ void cross_entropy(T *logits, float *losses, const uint32_t *labels, int vocabulary) {
    __shared__ float room[32];
    T *row = logits + size_t(blockIdx.x) * vocabulary;
    const int label = labels[blockIdx.x];
    float most = -INFINITY;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) most = fmaxf(most, wide(row[i]));
    most = block_max(most, room);
    float sum = 0.f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += __expf(wide(row[i]) - most);
    sum = block_sum(sum, room);
    const float chosen = wide(row[label]);
    __syncthreads();
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + most - chosen;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float weight = __expf(wide(row[i]) - most) / sum;
        row[i] = narrow<T>(i == label ? weight - 1.f : weight);
    }
}

#define ROW_KERNELS(T, NAME)                                                                                                \
    extern "C" __global__ void rms_norm_##NAME(T *y, const T *x, const T *w, int n, float eps) {                      \
        rms_norm(y, x, w, n, eps);                                                                                    \
    }                                                                                                                 \
    extern "C" __global__ void rms_norm_backward_##NAME(T *dx, const T *x, const T *w, const T *dy, int n, float eps) { \
        rms_norm_backward(dx, x, w, dy, n, eps);                                                                      \
    }                                                                                                                 \
    extern "C" __global__ void layer_norm_##NAME(T *y, const T *x, const T *w, const T *b, int n, float eps) {        \
        layer_norm(y, x, w, b, n, eps);                                                                               \
    }                                                                                                                 \
    extern "C" __global__ void layer_norm_backward_##NAME(T *dx, const T *x, const T *w, const T *dy, int n, float eps) { \
        layer_norm_backward(dx, x, w, dy, n, eps);                                                                    \
    }                                                                                                                 \
    extern "C" __global__ void cross_entropy_##NAME(T *logits, float *losses, const uint32_t *labels, int vocabulary) { \
        cross_entropy(logits, losses, labels, vocabulary);                                                            \
    }
ROW_KERNELS(float, f32)
ROW_KERNELS(bf16, bf16)
