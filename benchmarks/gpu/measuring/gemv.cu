// GEMV in CUDA C++: the reference for the bandwidth of chatterbox_opt/kernels/cuda/gemv.py.
//
// Not used by the engine: benchmarks/gpu/measuring/cuda_gemv.py compiles it at run time (NVRTC) and
// times it.
// Constants are defined before this text:
//   WARPS  warps of a block, independent of each other: no barrier, no shared memory
//   ROWS   rows of the weight per warp; must divide n
//   LOADS  16-byte loads of each row in flight; 32 * 8 * LOADS must divide k

// Peak bandwidth of 16-byte loads, eight in flight per thread; count is of uint4.
// A comparison that is never true keeps the compiler from removing the sum.
extern "C" __global__ void __launch_bounds__(256) read_all(const uint4* w, float* out, int count) {
    long long i = (long long)blockIdx.x * 256 + threadIdx.x, step = (long long)gridDim.x * 256;
    unsigned s = 0;
    for (; i + 7 * step < count; i += 8 * step) {
        uint4 v[8];
        #pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(w + i + j * step);
        #pragma unroll
        for (int j = 0; j < 8; j++) s += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (s == 0x12345678u) out[0] = s;
}

// The two bfloat16 values of a 32-bit word.
__device__ __forceinline__ float lo(unsigned u) { return __uint_as_float(u << 16); }
__device__ __forceinline__ float hi(unsigned u) { return __uint_as_float(u & 0xffff0000u); }

// out[2, n] = x[2, k] times w[n, k] transposed: bfloat16 in, float32 out; k8 is k / 8.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
gemv(const uint4* __restrict__ w, const uint4* __restrict__ x, float* out, int n, int k8) {
    int lane = threadIdx.x & 31, row = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROWS;
    if (row >= n) return;
    float a[ROWS][2];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) a[r][0] = a[r][1] = 0.f;
    for (int i = lane; i < k8; i += 32 * LOADS) {
        uint4 v[LOADS][ROWS];
        #pragma unroll
        for (int j = 0; j < LOADS; j++)
            #pragma unroll
            for (int r = 0; r < ROWS; r++)
                v[j][r] = __ldcs(w + (long long)(row + r) * k8 + i + 32 * j);
        #pragma unroll
        for (int j = 0; j < LOADS; j++) {
            uint4 p = x[i + 32 * j], q = x[k8 + i + 32 * j];
            unsigned ps[4] = {p.x, p.y, p.z, p.w}, qs[4] = {q.x, q.y, q.z, q.w};
            #pragma unroll
            for (int r = 0; r < ROWS; r++) {
                unsigned vs[4] = {v[j][r].x, v[j][r].y, v[j][r].z, v[j][r].w};
                #pragma unroll
                for (int c = 0; c < 4; c++) {
                    a[r][0] += lo(vs[c]) * lo(ps[c]) + hi(vs[c]) * hi(ps[c]);
                    a[r][1] += lo(vs[c]) * lo(qs[c]) + hi(vs[c]) * hi(qs[c]);
                }
            }
        }
    }
    #pragma unroll
    for (int r = 0; r < ROWS; r++)
        #pragma unroll
        for (int b = 0; b < 2; b++) {
            float s = a[r][b];
            for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
            if (!lane) out[b * n + row + r] = s;
        }
}
