// The kernels as functions of a shared library for the tests, see shim.h. Grids and block sizes are those of launch.rs.
#define TUNEBOOK_CPU
#include "attention.cu"
#include "elements.cu"
#include "rows.cu"

static dim3 grid(unsigned x, unsigned y = 1, unsigned z = 1) { return {x, y, z}; }

extern "C" {
void cpu_rms_norm(int wide_type, void *y, const void *x, const void *w, int rows, int n, float eps, unsigned threads) {
    shim::launch(grid(rows), threads, [=] {
        if (wide_type) rms_norm_f32((float *)y, (const float *)x, (const float *)w, n, eps);
        else rms_norm_bf16((bf16 *)y, (const bf16 *)x, (const bf16 *)w, n, eps);
    });
}
void cpu_cross_entropy(int wide_type, void *logits, float *losses, const uint32_t *labels, int rows, int vocabulary,
                       unsigned threads) {
    shim::launch(grid(rows), threads, [=] {
        if (wide_type) cross_entropy_f32((float *)logits, losses, labels, vocabulary);
        else cross_entropy_bf16((bf16 *)logits, losses, labels, vocabulary);
    });
}
}

// A kernel over rows that reads `w` and one operand more, in both types.
#define NORM(KERNEL)                                                                                                  \
    extern "C" void cpu_##KERNEL(int wide_type, void *out, const void *x, const void *w, const void *third, int rows, \
                                 int n, float eps, unsigned threads) {                                                \
        shim::launch(grid(rows), threads, [=] {                                                                       \
            if (wide_type)                                                                                            \
                KERNEL##_f32((float *)out, (const float *)x, (const float *)w, (const float *)third, n, eps);         \
            else KERNEL##_bf16((bf16 *)out, (const bf16 *)x, (const bf16 *)w, (const bf16 *)third, n, eps);           \
        });                                                                                                           \
    }
NORM(rms_norm_backward)
NORM(layer_norm)
NORM(layer_norm_backward)

// Both passes of a gated activation, in both types.
#define GATED(KERNEL)                                                                                                 \
    extern "C" void cpu_##KERNEL(int wide_type, void *y, const void *gate, const void *up, int64_t n, unsigned blocks, \
                                 unsigned threads) {                                                                  \
        shim::launch(grid(blocks), threads, [=] {                                                                     \
            if (wide_type) KERNEL##_f32((float *)y, (const float *)gate, (const float *)up, n);                       \
            else KERNEL##_bf16((bf16 *)y, (const bf16 *)gate, (const bf16 *)up, n);                                   \
        });                                                                                                           \
    }                                                                                                                 \
    extern "C" void cpu_##KERNEL##_backward(int wide_type, void *dgate, void *dup, const void *gate, const void *up,  \
                                            const void *dy, int64_t n, unsigned blocks, unsigned threads) {           \
        shim::launch(grid(blocks), threads, [=] {                                                                     \
            if (wide_type)                                                                                            \
                KERNEL##_backward_f32((float *)dgate, (float *)dup, (const float *)gate, (const float *)up,           \
                                      (const float *)dy, n);                                                          \
            else                                                                                                      \
                KERNEL##_backward_bf16((bf16 *)dgate, (bf16 *)dup, (const bf16 *)gate, (const bf16 *)up,              \
                                       (const bf16 *)dy, n);                                                          \
        });                                                                                                           \
    }
GATED(silu)
GATED(gelu)
GATED(gelu_tanh)

extern "C" {
void cpu_rope(int wide_type, void *y, const void *x, const float *cosines, const float *sines, const uint32_t *positions,
              int heads, int half, int64_t pairs, float direction, unsigned blocks, unsigned threads) {
    shim::launch(grid(blocks), threads, [=] {
        if (wide_type) rope_f32((float *)y, (const float *)x, cosines, sines, positions, heads, half, pairs, direction);
        else rope_bf16((bf16 *)y, (const bf16 *)x, cosines, sines, positions, heads, half, pairs, direction);
    });
}
void cpu_attention(int d, bf16 *o, float *log_sums, const bf16 *q, const bf16 *k, const bf16 *v, const int *firsts, int b, int t,
                   int s, int h, int hkv, float scale, unsigned blocks, unsigned threads) {
    shim::launch(grid(blocks, h, b), threads, [=] {
        (d == 64 ? attention_64 : attention_128)(o, log_sums, q, k, v, firsts, t, s, h, hkv, scale);
    });
}
void cpu_attention_dots(int d, float *along, const bf16 *o, const bf16 *d_o, int t, int h, int rows, unsigned blocks,
                        unsigned threads) {
    shim::launch(grid(blocks), threads, [=] {
        (d == 64 ? attention_dots_64 : attention_dots_128)(along, o, d_o, t, h, rows);
    });
}
void cpu_attention_queries(int d, bf16 *dq, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o, const float *log_sums,
                           const float *along, const int *firsts, int b, int t, int s, int h, int hkv, float scale,
                           unsigned blocks, unsigned threads) {
    shim::launch(grid(blocks, h, b), threads, [=] {
        (d == 64 ? attention_queries_64 : attention_queries_128)(dq, q, k, v, d_o, log_sums, along, firsts, t, s, h, hkv, scale);
    });
}
void cpu_attention_keys(int d, bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o,
                        const float *log_sums, const float *along, const int *firsts, int b, int t, int s, int h, int hkv,
                        float scale, unsigned blocks, unsigned threads) {
    shim::launch(grid(blocks, hkv, b), threads, [=] {
        (d == 64 ? attention_keys_64 : attention_keys_128)(dk, dv, q, k, v, d_o, log_sums, along, firsts, t, s, h, hkv, scale);
    });
}
}
