/* The head of each row of probabilities: its border, and the gaps between two rows on it. Called by losses/head_border.py.

   A row of 50,257 floats stays in a core's second-level cache, so a pass over it takes 2 to 4 microseconds. The border
   is found by a search over the bit patterns of floats, which ends at the exact entry; once few entries are left between
   the bounds they are copied out, and the rest of the search looks at those alone.

   Sums run in fixed lanes, so that they are the same on every processor and for any number of threads. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 64, STRIP = 64 * LANES, FEW = 128 };

typedef struct {
    double mass;
    ptrdiff_t count;
} Above;

static float from_bits(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int32_t to_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Mass and number of the entries greater than a threshold. */
static Above above(const float *p, ptrdiff_t n, float threshold) {
    Above sum = {0.0, 0};
    for (ptrdiff_t start = 0; start < n; start += STRIP) {
        const ptrdiff_t end = start + STRIP < n ? start + STRIP : n;
        float mass[LANES] = {0};
        int32_t count[LANES] = {0};
        ptrdiff_t i = start;
        for (; i + LANES <= end; i += LANES)
            for (int lane = 0; lane < LANES; lane++) {
                const float x = p[i + lane];
                mass[lane] += x > threshold ? x : 0.0f;
                count[lane] += x > threshold;
            }
        for (int lane = 0; i < end; i++, lane++) {
            mass[lane] += p[i] > threshold ? p[i] : 0.0f;
            count[lane] += p[i] > threshold;
        }
        for (int lane = 0; lane < LANES; lane++) {
            sum.mass += mass[lane];
            sum.count += count[lane];
        }
    }
    return sum;
}

static float greatest(const float *p, ptrdiff_t n) {
    float lanes[LANES];
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = p[0];
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] = p[i + lane] > lanes[lane] ? p[i + lane] : lanes[lane];
    for (; i < n; i++) lanes[0] = p[i] > lanes[0] ? p[i] : lanes[0];
    float top = lanes[0];
    for (int lane = 1; lane < LANES; lane++) top = lanes[lane] > top ? lanes[lane] : top;
    return top;
}

/* Copies the entries in (from, to] and returns their number, which is at most FEW. */
static ptrdiff_t copy_between(const float *p, ptrdiff_t n, float from, float to, float *few) {
    ptrdiff_t found = 0;
    for (ptrdiff_t start = 0; start < n; start += LANES) {
        const ptrdiff_t end = start + LANES < n ? start + LANES : n;
        int32_t any = 0; /* a strip without such an entry, as most are, is passed over without a branch an entry */
        if (end - start == LANES)
            for (int lane = 0; lane < LANES; lane++) any |= (p[start + lane] > from) & (p[start + lane] <= to);
        else
            any = 1;
        if (any)
            for (ptrdiff_t i = start; i < end; i++)
                if (p[i] > from && p[i] <= to) few[found++] = p[i];
    }
    return found;
}

/* Bounds of the crossing entry, as bit patterns: above(low) > mu >= above(high). */
typedef struct {
    int32_t low, high;
    Above at_low, at_high;
} Bounds;

/* Where to look next: where the mass would be mu if it were linear in between (bits grow like logarithms), a few entries
   to the side of the farther bound, so that both close in; in the middle, when that did not halve the gap last time. */
static int32_t next_threshold(const Bounds *at, double mu, int halve) {
    const int32_t width = at->high - at->low, middle = at->low + width / 2;
    if (halve || at->low < 0) return middle;
    const double margin = 0.25 * FEW * from_bits(at->low);
    const double goal = at->at_low.mass - mu > mu - at->at_high.mass ? mu + margin : mu - margin;
    const double share = (at->at_low.mass - goal) / (at->at_low.mass - at->at_high.mass);
    if (!(share > 0 && share < 1)) return middle;
    const int32_t guess = at->low + (int32_t)(share * width);
    return guess <= at->low ? at->low + 1 : guess >= at->high ? at->high - 1 : guess;
}

/* Head is what is greater than *border, and *share in [0, 1) of each entry equal to it. */
static void row_border(const float *p, ptrdiff_t n, double mu, int reaches, float *border, float *share) {
    const Above all = above(p, n, -1.0f), none = {0.0, 0};
    *border = -1.0f;
    *share = 0.0f;
    if (reaches ? all.mass < mu : all.mass <= mu) return; /* impossible entries were dropped: the whole row is head */

    /* Entries up to the first low bound weigh at most half of total - mu. */
    const float least = (float)(0.5 * (all.mass - mu) / (double)n);
    Bounds at = {least > 0 ? to_bits(least) : -1, to_bits(greatest(p, n)), all, none};
    float few[FEW];
    const float *left = p; /* what the search still looks at; `beyond` is what is greater than all of it */
    ptrdiff_t num_left = n;
    Above beyond = none;
    int32_t width_before = at.high - at.low;
    for (int pass = 0; at.high - at.low > 1; pass++) {
        if (left == p && at.at_low.count - at.at_high.count <= FEW) {
            num_left = copy_between(p, n, at.low < 0 ? -1.0f : from_bits(at.low), from_bits(at.high), few);
            left = few;
            beyond = at.at_high;
        }
        const int32_t width = at.high - at.low;
        const int32_t threshold = next_threshold(&at, mu, left == few || (pass % 2 == 0 && width > width_before / 2));
        if (pass % 2 == 0) width_before = width;
        Above here = above(left, num_left, from_bits(threshold));
        here.mass += beyond.mass;
        here.count += beyond.count;
        if (reaches ? here.mass < mu : here.mass <= mu) {
            at.high = threshold;
            at.at_high = here;
        } else {
            at.low = threshold;
            at.at_low = here;
        }
    }

    const float crossing = from_bits(at.high);
    ptrdiff_t tied = 0;
    for (ptrdiff_t i = 0; i < num_left; i++) tied += left[i] == crossing;
    const double room = (mu - at.at_high.mass) / (double)crossing;
    double places = reaches ? ceil(room) : floor(room);
    if (places < 1 && (reaches || at.at_high.count == 0)) places = 1; /* the top entry is always head */
    const double part = tied > 0 ? places / (double)tied : 1.0;
    *border = part >= 1 ? nextafterf(crossing, -1.0f) : crossing;
    *share = part >= 1 || part <= 0 ? 0.0f : (float)part;
}

/* border[rows], share[rows] of p[rows][n], non-negative; mu in (0, 1). */
void head_borders(const float *p, ptrdiff_t rows, ptrdiff_t n, double mu, int reaches, float *border, float *share,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 1)
    for (ptrdiff_t row = 0; row < rows; row++)
        row_border(p + row * n, n, mu, reaches, border + row, share + row);
    (void)threads;
}

/* head[rows] and total[rows]: sums of |p - q| over the head and over everything. */
void head_gaps(const float *p, const float *q, ptrdiff_t rows, ptrdiff_t n, const float *border, const float *share,
               float *head, float *total, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 1)
    for (ptrdiff_t row = 0; row < rows; row++) {
        const float *pr = p + row * n, *qr = q + row * n, edge = border[row], part = share[row];
        double head_sum = 0.0, total_sum = 0.0;
        for (ptrdiff_t start = 0; start < n; start += STRIP) {
            const ptrdiff_t end = start + STRIP < n ? start + STRIP : n;
            float on_head[LANES] = {0}, on_all[LANES] = {0};
            ptrdiff_t i = start;
            for (; i + LANES <= end; i += LANES)
                for (int lane = 0; lane < LANES; lane++) {
                    const float x = pr[i + lane], gap = fabsf(x - qr[i + lane]);
                    const float weight = x > edge ? 1.0f : x == edge ? part : 0.0f;
                    on_all[lane] += gap;
                    on_head[lane] += weight * gap;
                }
            for (int lane = 0; i < end; i++, lane++) {
                const float x = pr[i], gap = fabsf(x - qr[i]);
                on_all[lane] += gap;
                on_head[lane] += (x > edge ? 1.0f : x == edge ? part : 0.0f) * gap;
            }
            for (int lane = 0; lane < LANES; lane++) {
                head_sum += on_head[lane];
                total_sum += on_all[lane];
            }
        }
        head[row] = (float)head_sum;
        total[row] = (float)total_sum;
    }
    (void)threads;
}
