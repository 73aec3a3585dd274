// Causal grouped-query attention on bf16 tensor cores, after FlashAttention-2 (https://arxiv.org/abs/2307.08691): nothing of size t x s exists.
// NEVER RUN ON A GPU YET.
//
// q, o and their gradients are [b, t, h, d], k and v [b, s, hkv, d]; query i stands at key s - t + i. `first` holds the first key that each
// query sees, [b, t], never falling along a row, or is null. `log_sums` and `along` are [b, h, t].
//
// A warp has 16 rows of a product. In its fragments lane l holds, of an accumulator, the elements (l/4, l%4·2 + {0, 1}) and the same
// eight rows below; an accumulator's elements, rounded to bf16, are a left operand's fragment as they lie.
//
// What ptxas 13.0 makes of this file for sm_90; nothing is spilled, no kernel has a stack. Blocks and warps are those that a
// multiprocessor holds at a time, of 64 warps at most. `cargo xtask test --long` holds the table against nvcc.
//
// | kernel | threads | registers | shared bytes | blocks | warps |
// |---|---|---|---|---|---|
// | attention_128 | 128 | 241 | 34816 | 2 | 8 |
// | attention_64 | 128 | 161 | 18432 | 3 | 12 |
// | attention_dots_128 | 128 | 21 | 0 | 16 | 64 |
// | attention_dots_64 | 128 | 21 | 0 | 16 | 64 |
// | attention_keys_128 | 128 | 255 | 8832 | 2 | 8 |
// | attention_keys_64 | 128 | 168 | 9472 | 3 | 12 |
// | attention_queries_128 | 128 | 242 | 34816 | 2 | 8 |
// | attention_queries_64 | 128 | 166 | 18432 | 3 | 12 |
#include "common.cuh"

static constexpr int THREADS = 128;
// Rows of a block (16 for each of four warps), and keys of a tile.
static constexpr int ROWS = 64;
// Between rows in shared memory, so that the lanes of a warp read from different banks.
static constexpr int GAP = 8;

struct Shape {
    int t, s, h, hkv;
    float scale;
};

__device__ __forceinline__ uint32_t bits(bf16 x) {
#ifdef TUNEBOOK_CPU
    return x.bits;
#else
    return __bfloat16_as_ushort(x);
#endif
}

__device__ __forceinline__ uint32_t pack(bf16 low, bf16 high) { return bits(low) | bits(high) << 16; }
__device__ __forceinline__ uint32_t pack(float low, float high) { return pack(narrow<bf16>(low), narrow<bf16>(high)); }
// Two neighbours of a row; the first has an even index.
__device__ __forceinline__ uint32_t pair(const bf16 *x) { return *reinterpret_cast<const uint32_t *>(x); }

// `count` rows of D values, `stride` apart, into rows of shared memory; zeros beyond `count`.
template <int D, int N>
__device__ __forceinline__ void load_tile(bf16 (*tile)[D + GAP], const bf16 *from, size_t stride, int count) {
    for (int i = threadIdx.x; i < N * D / 8; i += THREADS) {
        const int row = i / (D / 8), column = i % (D / 8) * 8;
        uint4 values = {0, 0, 0, 0};
        if (row < count) values = *reinterpret_cast<const uint4 *>(from + row * stride + column);
        *reinterpret_cast<uint4 *>(&tile[row][column]) = values;
    }
}

// The left operand's fragments of this warp's 16 rows: rows r0 and r0 + 8 of each lane, read where they lie; zeros from `count` on.
template <int D>
__device__ __forceinline__ void load_left(uint32_t (&a)[D / 16][4], const bf16 *from, size_t stride, int r0, int count) {
    const int c = threadIdx.x % 4 * 2;
    for (int k = 0; k < D / 16; k++)
        for (int e = 0; e < 4; e++) {
            const int row = r0 + (e % 2) * 8;
            a[k][e] = row < count ? pair(from + row * stride + k * 16 + (e / 2) * 8 + c) : 0u;
        }
}

// products[n] = left · tileᵀ: 16 rows against the tile's rows, 8·N of them.
template <int D, int N>
__device__ __forceinline__ void against_rows(float (&products)[N][4], const uint32_t (&left)[D / 16][4],
                                             const bf16 (*tile)[D + GAP]) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    for (int n = 0; n < N; n++) {
        for (int e = 0; e < 4; e++) products[n][e] = 0.f;
        for (int k = 0; k < D / 16; k++) {
            const bf16 *at = &tile[n * 8 + g][k * 16 + c];
            const uint32_t right[2] = {pair(at), pair(at + 8)};
            mma(products[n], left[k], right);
        }
    }
}

// sums += weights · tile: 16 rows of 8·N weights, with the tile's 8·N rows of D values.
template <int D, int N>
__device__ __forceinline__ void add_rows(float (&sums)[D / 8][4], const float (&weights)[N][4], const bf16 (*tile)[D + GAP]) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    for (int k = 0; k < N / 2; k++) {
        const uint32_t left[4] = {
            pack(weights[2 * k][0], weights[2 * k][1]), pack(weights[2 * k][2], weights[2 * k][3]),
            pack(weights[2 * k + 1][0], weights[2 * k + 1][1]), pack(weights[2 * k + 1][2], weights[2 * k + 1][3])};
        for (int n = 0; n < D / 8; n++) {
            const int row = k * 16 + c, column = n * 8 + g;
            const uint32_t right[2] = {pack(tile[row][column], tile[row + 1][column]),
                                       pack(tile[row + 8][column], tile[row + 9][column])};
            mma(sums[n], left, right);
        }
    }
}

// Two rows of 16 x D sums, to rows r0 and r0 + 8.
template <int D>
__device__ __forceinline__ void store(bf16 *to, size_t stride, int r0, int count, const float (&sums)[D / 8][4],
                                      float factor0, float factor1) {
    const int c = threadIdx.x % 4 * 2;
    for (int n = 0; n < D / 8; n++) {
        if (r0 < count) {
            to[r0 * stride + n * 8 + c] = narrow<bf16>(sums[n][0] * factor0);
            to[r0 * stride + n * 8 + c + 1] = narrow<bf16>(sums[n][1] * factor0);
        }
        if (r0 + 8 < count) {
            to[(r0 + 8) * stride + n * 8 + c] = narrow<bf16>(sums[n][2] * factor1);
            to[(r0 + 8) * stride + n * 8 + c + 1] = narrow<bf16>(sums[n][3] * factor1);
        }
    }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The keys that a query sees are first..=last.
struct Seen {
    int first, last;
    __device__ __forceinline__ Seen(const int *firsts, const Shape &shape, int row, int query)
        : first(query < shape.t && firsts ? firsts[size_t(row) * shape.t + query] : 0),
          last(query < shape.t ? shape.s - shape.t + query : -1) {}
    __device__ __forceinline__ bool has(int key) const { return key >= first && key <= last; }
};

template <int D>
__device__ void forward(bf16 *o, float *log_sums, const bf16 *q, const bf16 *k, const bf16 *v, const int *firsts, Shape shape) {
    __shared__ __align__(16) bf16 keys[ROWS][D + GAP];
    __shared__ __align__(16) bf16 values[ROWS][D + GAP];
    // The last blocks see the most keys: they go first.
    const int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, row = blockIdx.z;
    const int group = head / (shape.h / shape.hkv);
    const int r0 = block * ROWS + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    const size_t stride = size_t(shape.h) * D, key_stride = size_t(shape.hkv) * D;
    const bf16 *k_rows = k + size_t(row) * shape.s * key_stride + group * D;
    const bf16 *v_rows = v + size_t(row) * shape.s * key_stride + group * D;
    const size_t of_row = (size_t(row) * shape.t * shape.h + head) * D;

    uint32_t left[D / 16][4];
    load_left<D>(left, q + of_row, stride, r0, shape.t);
    const Seen seen0(firsts, shape, row, r0), seen1(firsts, shape, row, r0 + 8);
    float sums[D / 8][4] = {};
    float most0 = -INFINITY, most1 = -INFINITY, sum0 = 0.f, sum1 = 0.f;

    const int end = min(shape.s, shape.s - shape.t + (block + 1) * ROWS);
    const int begin = firsts ? min(firsts[size_t(row) * shape.t + block * ROWS], end) / ROWS * ROWS : 0;
    for (int key0 = begin; key0 < end; key0 += ROWS) {
        __syncthreads();
        load_tile<D, ROWS>(keys, k_rows + key0 * key_stride, key_stride, shape.s - key0);
        load_tile<D, ROWS>(values, v_rows + key0 * key_stride, key_stride, shape.s - key0);
        __syncthreads();
        float weights[ROWS / 8][4];
        against_rows<D, ROWS / 8>(weights, left, keys);
        float new0 = most0, new1 = most1;
        for (int n = 0; n < ROWS / 8; n++)
            for (int e = 0; e < 4; e++) {
                const int key = key0 + n * 8 + c + e % 2;
                const bool has = e < 2 ? seen0.has(key) : seen1.has(key);
                weights[n][e] = has ? weights[n][e] * shape.scale : -INFINITY;
                if (e < 2) new0 = fmaxf(new0, weights[n][e]);
                else new1 = fmaxf(new1, weights[n][e]);
            }
        new0 = row_max(new0);
        new1 = row_max(new1);
        // A row that has seen no key yet keeps its zeros.
        const float base0 = new0 == -INFINITY ? 0.f : new0, base1 = new1 == -INFINITY ? 0.f : new1;
        const float rescale0 = __expf(most0 - base0), rescale1 = __expf(most1 - base1);
        most0 = new0;
        most1 = new1;
        sum0 *= rescale0;
        sum1 *= rescale1;
        for (int n = 0; n < ROWS / 8; n++)
            for (int e = 0; e < 4; e++) {
                weights[n][e] = __expf(weights[n][e] - (e < 2 ? base0 : base1));
                if (e < 2) sum0 += weights[n][e];
                else sum1 += weights[n][e];
            }
        for (int n = 0; n < D / 8; n++)
            for (int e = 0; e < 4; e++) sums[n][e] *= e < 2 ? rescale0 : rescale1;
        add_rows<D, ROWS / 8>(sums, weights, values);
    }
    sum0 = row_sum(sum0);
    sum1 = row_sum(sum1);
    store<D>(o + of_row, stride, r0, shape.t, sums, sum0 > 0.f ? 1.f / sum0 : 0.f, sum1 > 0.f ? 1.f / sum1 : 0.f);
    if (c == 0) {
        float *out = log_sums + (size_t(row) * shape.h + head) * shape.t;
        if (r0 < shape.t) out[r0] = sum0 > 0.f ? most0 + logf(sum0) : INFINITY;
        if (r0 + 8 < shape.t) out[r0 + 8] = sum1 > 0.f ? most1 + logf(sum1) : INFINITY;
    }
}

// along = Σ o∘do for each query and head; one warp each, rows [b, t, h].
template <int D> __device__ void dot_rows(float *along, const bf16 *o, const bf16 *d_o, int t, int h, int rows) {
    const int index = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    float sum = 0.f;
    if (index < rows)
        for (int i = threadIdx.x % 32; i < D; i += 32) sum += wide(o[size_t(index) * D + i]) * wide(d_o[size_t(index) * D + i]);
    sum = warp_sum(sum);
    if (index < rows && threadIdx.x % 32 == 0) {
        const int head = index % h, query = index / h % t, row = index / h / t;
        along[(size_t(row) * h + head) * t + query] = sum;
    }
}

template <int D>
__device__ void query_gradient(bf16 *dq, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o, const float *log_sums,
                               const float *along, const int *firsts, Shape shape) {
    __shared__ __align__(16) bf16 keys[ROWS][D + GAP];
    __shared__ __align__(16) bf16 values[ROWS][D + GAP];
    const int block = gridDim.x - 1 - blockIdx.x, head = blockIdx.y, row = blockIdx.z;
    const int group = head / (shape.h / shape.hkv);
    const int r0 = block * ROWS + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    const size_t stride = size_t(shape.h) * D, key_stride = size_t(shape.hkv) * D;
    const bf16 *k_rows = k + size_t(row) * shape.s * key_stride + group * D;
    const bf16 *v_rows = v + size_t(row) * shape.s * key_stride + group * D;
    const size_t of_row = (size_t(row) * shape.t * shape.h + head) * D;
    const size_t of_head = (size_t(row) * shape.h + head) * shape.t;

    uint32_t left[D / 16][4], d_left[D / 16][4];
    load_left<D>(left, q + of_row, stride, r0, shape.t);
    load_left<D>(d_left, d_o + of_row, stride, r0, shape.t);
    const Seen seen0(firsts, shape, row, r0), seen1(firsts, shape, row, r0 + 8);
    const float log_sum0 = r0 < shape.t ? log_sums[of_head + r0] : INFINITY, along0 = r0 < shape.t ? along[of_head + r0] : 0.f;
    const float log_sum1 = r0 + 8 < shape.t ? log_sums[of_head + r0 + 8] : INFINITY;
    const float along1 = r0 + 8 < shape.t ? along[of_head + r0 + 8] : 0.f;
    float sums[D / 8][4] = {};

    const int end = min(shape.s, shape.s - shape.t + (block + 1) * ROWS);
    const int begin = firsts ? min(firsts[size_t(row) * shape.t + block * ROWS], end) / ROWS * ROWS : 0;
    for (int key0 = begin; key0 < end; key0 += ROWS) {
        __syncthreads();
        load_tile<D, ROWS>(keys, k_rows + key0 * key_stride, key_stride, shape.s - key0);
        load_tile<D, ROWS>(values, v_rows + key0 * key_stride, key_stride, shape.s - key0);
        __syncthreads();
        float weights[ROWS / 8][4], slopes[ROWS / 8][4];
        against_rows<D, ROWS / 8>(weights, left, keys);
        against_rows<D, ROWS / 8>(slopes, d_left, values);
        for (int n = 0; n < ROWS / 8; n++)
            for (int e = 0; e < 4; e++) {
                const int key = key0 + n * 8 + c + e % 2;
                const bool has = e < 2 ? seen0.has(key) : seen1.has(key);
                const float weight = has ? __expf(weights[n][e] * shape.scale - (e < 2 ? log_sum0 : log_sum1)) : 0.f;
                slopes[n][e] = weight * (slopes[n][e] - (e < 2 ? along0 : along1)) * shape.scale;
            }
        add_rows<D, ROWS / 8>(sums, slopes, keys);
    }
    store<D>(dq + of_row, stride, r0, shape.t, sums, 1.f, 1.f);
}

// A block has 64 keys of one key head; the queries of all heads that share it come tile by tile, so the sums need no atomics and repeat bit for bit.
template <int D>
__device__ void key_gradients(bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o,
                              const float *log_sums, const float *along, const int *firsts, Shape shape) {
    // Of a tile. Keys and values of 128 numbers leave registers for the scores of 16 queries; those of 32 would be spilled.
    constexpr int QUERIES = D > 64 ? 16 : 32;
    __shared__ __align__(16) bf16 queries[QUERIES][D + GAP];
    __shared__ __align__(16) bf16 slopes_in[QUERIES][D + GAP];
    __shared__ float log_sum[QUERIES];
    __shared__ float dots[QUERIES];
    const int group = blockIdx.y, row = blockIdx.z, shared = shape.h / shape.hkv;
    const int k0 = blockIdx.x * ROWS + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
    const size_t stride = size_t(shape.h) * D, key_stride = size_t(shape.hkv) * D;
    const size_t of_row = size_t(row) * shape.s * key_stride + group * D;
    uint32_t key_left[D / 16][4], value_left[D / 16][4];
    load_left<D>(key_left, k + of_row, key_stride, k0, shape.s);
    load_left<D>(value_left, v + of_row, key_stride, k0, shape.s);
    float key_sums[D / 8][4] = {}, value_sums[D / 8][4] = {};

    // The first query that sees the block's first key.
    const int begin = max(0, int(blockIdx.x) * ROWS - (shape.s - shape.t)) / QUERIES * QUERIES;
    for (int head = group * shared; head < (group + 1) * shared; head++) {
        const size_t q_at = (size_t(row) * shape.t * shape.h + head) * D, of_head = (size_t(row) * shape.h + head) * shape.t;
        for (int q0 = begin; q0 < shape.t; q0 += QUERIES) {
            __syncthreads();
            load_tile<D, QUERIES>(queries, q + q_at + q0 * stride, stride, shape.t - q0);
            load_tile<D, QUERIES>(slopes_in, d_o + q_at + q0 * stride, stride, shape.t - q0);
            if (threadIdx.x < QUERIES) {
                const int query = q0 + threadIdx.x;
                log_sum[threadIdx.x] = query < shape.t ? log_sums[of_head + query] : INFINITY;
                dots[threadIdx.x] = query < shape.t ? along[of_head + query] : 0.f;
            }
            __syncthreads();
            // Transposed: rows are keys, columns queries.
            float weights[QUERIES / 8][4], slopes[QUERIES / 8][4];
            against_rows<D, QUERIES / 8>(weights, key_left, queries);
            against_rows<D, QUERIES / 8>(slopes, value_left, slopes_in);
            for (int n = 0; n < QUERIES / 8; n++)
                for (int e = 0; e < 4; e++) {
                    const int column = n * 8 + c + e % 2, key = e < 2 ? k0 : k0 + 8;
                    const Seen seen(firsts, shape, row, q0 + column);
                    const bool has = key < shape.s && seen.has(key);
                    weights[n][e] = has ? __expf(weights[n][e] * shape.scale - log_sum[column]) : 0.f;
                    slopes[n][e] = weights[n][e] * (slopes[n][e] - dots[column]) * shape.scale;
                }
            add_rows<D, QUERIES / 8>(value_sums, weights, slopes_in);
            add_rows<D, QUERIES / 8>(key_sums, slopes, queries);
        }
    }
    store<D>(dk + of_row, key_stride, k0, shape.s, key_sums, 1.f, 1.f);
    store<D>(dv + of_row, key_stride, k0, shape.s, value_sums, 1.f, 1.f);
}

#define ATTENTION(D)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, D > 64 ? 2 : 3) attention_##D(bf16 *o, float *log_sums, const bf16 *q, const bf16 *k, \
        const bf16 *v, const int *firsts, int t, int s, int h, int hkv, float scale) {                                    \
        forward<D>(o, log_sums, q, k, v, firsts, {t, s, h, hkv, scale});                                                  \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) attention_dots_##D(float *along, const bf16 *o, const bf16 *d_o, int t, \
        int h, int rows) {                                                                                                \
        dot_rows<D>(along, o, d_o, t, h, rows);                                                                           \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) attention_queries_##D(bf16 *dq, const bf16 *q, const bf16 *k,       \
        const bf16 *v, const bf16 *d_o, const float *log_sums, const float *along, const int *firsts, int t, int s, int h, \
        int hkv, float scale) {                                                                                           \
        query_gradient<D>(dq, q, k, v, d_o, log_sums, along, firsts, {t, s, h, hkv, scale});                              \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) attention_keys_##D(bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, \
        const bf16 *v, const bf16 *d_o, const float *log_sums, const float *along, const int *firsts, int t, int s, int h, \
        int hkv, float scale) {                                                                                           \
        key_gradients<D>(dk, dv, q, k, v, d_o, log_sums, along, firsts, {t, s, h, hkv, scale});                           \
    }
ATTENTION(64)
ATTENTION(128)
