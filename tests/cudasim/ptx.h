/* ptx.h: the names of kernels/cuda/ptx.cuh on the simulated device, written from the PTX ISA's text
 * (sections named beside each) and not from that file.  Relies on shim.h.
 *
 * Addresses of shared memory are whole pointers here.  What must be aligned or shared, and is not,
 * ends the launch.
 */
typedef unsigned long shared_t;

static inline shared_t shared_address(const void *p) {
    return (shared_t)p;
}

static inline unsigned made_anew(unsigned x) {
    return x;
}

static inline unsigned short ptx_bf16(float x) { /* round to nearest even */
    const unsigned u = __float_as_uint(x);
    return x != x ? 0x7fff : (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
/* Half i (0: the lower) of a register of two bf16. */
static inline float ptx_half(unsigned pair, int i) {
    return __uint_as_float(i ? pair & 0xffff0000u : pair << 16);
}

static inline float exp2_fast(float x) { /* ex2.approx.ftz: subnormal results become 0 */
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
/* cvt.rn.bf16x2.f32 d, a, b: a goes to the upper half, b to the lower. */
static inline unsigned pack_bf16(float low, float high) {
    return (unsigned)ptx_bf16(high) << 16 | ptx_bf16(low);
}

/* ---- Matrix Fragments for mma.m16n8k16 with floating point type ------------------------------ */

struct PtxMma {
    float *c;
    const unsigned *a;
    unsigned b[2];
};

/* groupID = laneid >> 2, threadID_in_group = laneid % 4;
 *     a_i  row = groupID for 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise
 *          col = threadID_in_group * 2 + (i & 1), + 8 for i >= 4
 *     b_i  row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2;  col = groupID
 *     c_i  row = groupID for i < 2, groupID + 8 otherwise
 *          col = threadID_in_group * 2 + (i & 1)
 * Registers hold the elements from low to high. */
static void ptx_mma(void *const *lane, unsigned mask) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][16], c[16][8], b[16][8];
    if (mask != 0xffffffffu) cudasim_fault(719, "mma.sync.aligned without the whole warp");
    for (int l = 0; l < 32; l++) {
        const PtxMma *m = (const PtxMma *)lane[l];
        const int group = l >> 2, in_group = l % 4;
        for (int i = 0; i < 8; i++)
            a[(i < 2 || (4 <= i && i < 6)) ? group : group + 8]
             [in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)] = ptx_half(m->a[i / 2], i % 2);
        for (int i = 0; i < 4; i++) {
            b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = ptx_half(m->b[i / 2], i % 2);
            c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = m->c[i];
        }
    }
    for (int row = 0; row < 16; row++) {
        Row sum, x;
        memcpy(&sum, c[row], sizeof sum);
        for (int k = 0; k < 16; k++) {
            memcpy(&x, b[k], sizeof x);
            sum += a[row][k] * x;
        }
        memcpy(c[row], &sum, sizeof sum);
    }
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            ((const PtxMma *)lane[l])->c[i] = c[i < 2 ? l >> 2 : (l >> 2) + 8][l % 4 * 2 + (i & 1)];
}

static inline void mma_bf16(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    PtxMma mine = {c, a, {b0, b1}};
    cudasim_warp(0xffffffffu, ptx_mma, &mine);
}

/* ---- Warp-level matrix load instruction: ldmatrix -------------------------------------------- */

struct PtxMatrix {
    unsigned *r;
    shared_t row;
    bool trans;
};

/* .x4: threads 0-7 give the addresses of the rows of the first matrix, 8-15 of the second, 16-23,
 * 24-31.  Thread t receives, of each matrix, row t / 4, elements 2 (t % 4) and 2 (t % 4) + 1; with
 * .trans each matrix is loaded in column-major format. */
static void ptx_ldmatrix(void *const *lane, unsigned mask) {
    if (mask != 0xffffffffu) cudasim_fault(719, "ldmatrix.sync.aligned without the whole warp");
    for (int matrix = 0; matrix < 4; matrix++) {
        unsigned short x[8][8];
        for (int row = 0; row < 8; row++) {
            const shared_t at = ((const PtxMatrix *)lane[8 * matrix + row])->row;
            if (at % 16) cudasim_fault(716, "ldmatrix: a row is not aligned to 16 bytes");
            if (!cudasim_is_shared((const void *)at, 16))
                cudasim_fault(700, "ldmatrix: a row lies outside shared memory");
            memcpy(x[row], (const void *)at, 16);
        }
        for (int l = 0; l < 32; l++) {
            const PtxMatrix *m = (const PtxMatrix *)lane[l];
            const int i = l / 4, j = l % 4 * 2;
            m->r[matrix] = m->trans ? x[j][i] | (unsigned)x[j + 1][i] << 16
                                    : x[i][j] | (unsigned)x[i][j + 1] << 16;
        }
    }
}

static inline void ldmatrix_x4(unsigned r[4], shared_t row) {
    PtxMatrix mine = {r, row, false};
    cudasim_warp(0xffffffffu, ptx_ldmatrix, &mine);
}
static inline void ldmatrix_x4_trans(unsigned r[4], shared_t row) {
    PtxMatrix mine = {r, row, true};
    cudasim_warp(0xffffffffu, ptx_ldmatrix, &mine);
}

/* ---- Data movement and conversion instructions: asynchronous copy ---------------------------- */

/* cp.async with src-size: 0 bytes are read and the rest is zeros. */
static inline void cp_async_16(shared_t to, const void *from, bool wanted) {
    cudasim_copy_later((void *)to, from, wanted ? 16 : 0, 16);
}
static inline void cp_async_4(shared_t to, const void *from, bool wanted) {
    cudasim_copy_later((void *)to, from, wanted ? 4 : 0, 4);
}
static inline void cp_async_commit() {
    cudasim_copy_commit();
}
static inline void cp_async_wait(int groups) {
    cudasim_copy_wait(groups);
}
