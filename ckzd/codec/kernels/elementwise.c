/* Passes over a weight and its moments, fused: what NumPy does in many passes, each as slow as the memory. See
 * plain_elementwise.py for what each of them is; the rules are those of native.c.
 *
 * A matrix is given in float32 or float64. Sums are of each row: lane n of 8 adds elements n, n + 8, ... in their
 * order, and the lanes are added in theirs. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "export.h"

enum { PIECE = 512, LANES = 8 };
static const double LARGEST_SINGLE = 3.4028234663852886e38;

/* a matrix, or none */
typedef struct {
    const void *data;
    int32_t is_single;
} Matrix;

typedef struct {
    double lane[LANES];
} Sum;

/* numbers of a piece as float64: `room` if they had to be widened */
static inline const double *wide(Matrix matrix, int64_t start, int64_t count, double *room) {
    if (!matrix.is_single) return (const double *)matrix.data + start;
    const float *single = (const float *)matrix.data + start;
    for (int64_t n = 0; n < count; n++) room[n] = single[n];
    return room;
}

static inline void add(Sum *sum, const double *terms, int64_t count) {
    int64_t n = 0;
    for (; n + LANES <= count; n += LANES)
        for (int lane = 0; lane < LANES; lane++) sum->lane[lane] += terms[n + lane];
    for (int lane = 0; n + lane < count; lane++) sum->lane[lane] += terms[n + lane];
}

static inline double total(const Sum *sum) {
    double all = 0.0;
    for (int lane = 0; lane < LANES; lane++) all += sum->lane[lane];
    return all;
}

static inline double largest(const double *terms, int64_t count, double so_far) {
    double most[LANES] = {0};
    int64_t n = 0;
    for (; n + LANES <= count; n += LANES)
        for (int lane = 0; lane < LANES; lane++) most[lane] = terms[n + lane] > most[lane] ? terms[n + lane] : most[lane];
    for (; n < count; n++) so_far = terms[n] > so_far ? terms[n] : so_far;
    for (int lane = 0; lane < LANES; lane++) so_far = most[lane] > so_far ? most[lane] : so_far;
    return so_far;
}

/* `count` numbers rounded to float32, saturating, or as they are */
static inline void narrow(const double *values, int64_t start, int64_t count, void *out, int32_t is_single) {
    if (!is_single) {
        memcpy((double *)out + start, values, (size_t)count * sizeof(double));
        return;
    }
    float *single = (float *)out + start;
    for (int64_t n = 0; n < count; n++) {
        double value = values[n] < -LARGEST_SINGLE ? -LARGEST_SINGLE : values[n];
        single[n] = (float)(value > LARGEST_SINGLE ? LARGEST_SINGLE : value);
    }
}

static inline int64_t piece(int64_t columns, int64_t start) { return columns - start < PIECE ? columns - start : PIECE; }

/* ---- what a checkpoint holds ---- */

WIDE void EXPORT ckzd_moment_sums(Matrix first, Matrix second, int64_t rows, int64_t columns, double *row_sums,
                                  double *column_sums, int64_t *row_counts, int64_t *column_counts) {
    double room[2][PIECE];
    for (int64_t i = 0; i < rows; i++) {
        Sum sum = {{0}};
        int64_t used = 0;
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *f = wide(first, at, count, room[0]), *s = wide(second, at, count, room[1]);
            add(&sum, s, count);
            for (int64_t n = 0; n < count; n++) {
                int64_t is_used = (s[n] != 0.0) | (f[n] != 0.0);
                column_sums[start + n] += s[n];
                column_counts[start + n] += is_used;
                used += is_used;
            }
        }
        row_sums[i] = total(&sum);
        row_counts[i] = used;
    }
}

enum { WEIGHT, TRAINED, RESIDUAL, UPDATE, UNWEIGHED, ENERGIES };

WIDE void EXPORT ckzd_energies(Matrix weight, Matrix before, Matrix first, Matrix second, int64_t rows, int64_t columns,
                               const double *by_row, const double *by_column, const double *under_row,
                               const double *under_column, const double *used_row, const double *used_column,
                               double *sums, int64_t *counts) {
    double room[4][PIECE], terms[ENERGIES][PIECE];
    for (int64_t i = 0; i < rows; i++) {
        Sum sum[ENERGIES] = {{{0}}};
        int64_t positive = 0;
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *w = wide(weight, at, count, room[0]), *f = wide(first, at, count, room[1]);
            const double *s = wide(second, at, count, room[2]), *used = used_column + start;
            for (int64_t n = 0; n < count; n++) {
                double weighed = w[n] * by_row[i] * by_column[start + n], square = weighed * weighed;
                double plain = f[n] * under_row[i] * under_column[start + n];
                int32_t is_positive = s[n] > 0.0;
                terms[WEIGHT][n] = square;
                terms[TRAINED][n] = square * (used_row[i] * used[n]);
                terms[UPDATE][n] = is_positive ? f[n] * f[n] / s[n] : 0.0;
                terms[UNWEIGHED][n] = plain * plain;
                positive += is_positive;
            }
            if (before.data) {
                const double *b = wide(before, at, count, room[3]);
                for (int64_t n = 0; n < count; n++) {
                    double weighed = (w[n] - b[n]) * by_row[i] * by_column[start + n];
                    terms[RESIDUAL][n] = weighed * weighed * (used_row[i] * used[n]);
                }
                add(&sum[RESIDUAL], terms[RESIDUAL], count);
            }
            add(&sum[WEIGHT], terms[WEIGHT], count);
            add(&sum[TRAINED], terms[TRAINED], count);
            add(&sum[UPDATE], terms[UPDATE], count);
            add(&sum[UNWEIGHED], terms[UNWEIGHED], count);
        }
        for (int k = 0; k < ENERGIES; k++) sums[k * rows + i] = total(&sum[k]);
        counts[i] = positive;
    }
}

/* ---- weights ---- */

WIDE void EXPORT ckzd_weighed(Matrix weight, Matrix before, int64_t rows, int64_t columns, const double *by_row,
                              const double *by_column, double *out) {
    double room[2][PIECE];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *w = wide(weight, at, count, room[0]), *b = before.data ? wide(before, at, count, room[1]) : 0;
            for (int64_t n = 0; n < count; n++) {
                double residual = b && w[n] != 0.0 ? w[n] - b[n] : b ? 0.0 : w[n];
                out[at + n] = residual * by_row[i] * by_column[start + n];
            }
        }
}

WIDE void EXPORT ckzd_restored(Matrix before, const double *residual, double step, int64_t rows, int64_t columns,
                               const double *by_row, const double *by_column, void *out, int32_t is_single) {
    double room[PIECE], values[PIECE];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *x = residual + at;
            for (int64_t n = 0; n < count; n++) values[n] = x[n] * step / by_row[i] / by_column[start + n];
            if (before.data) {
                const double *b = wide(before, at, count, room);
                for (int64_t n = 0; n < count; n++) values[n] = (isfinite(b[n]) ? b[n] : 0.0) + values[n];
            }
            narrow(values, at, count, out, is_single);
        }
}

WIDE void EXPORT ckzd_trend(const double *residual, int64_t count, int8_t *trend) {
    for (int64_t n = 0; n < count; n++) {
        double units = rint(residual[n] * 32.0);
        units = units < -127.0 ? -127.0 : units;
        trend[n] = (int8_t)(units > 127.0 ? 127.0 : units);
    }
}

enum { ERROR, OWN, FIRST_ORDER, PROGRESS, PLAIN_ERROR, PLAIN_OWN, LOSSES };

WIDE void EXPORT ckzd_losses(Matrix weight, Matrix restored, Matrix before, Matrix first, int64_t rows, int64_t columns,
                             const double *by_row, const double *by_column, double *sums) {
    double room[4][PIECE], terms[LOSSES][PIECE];
    for (int64_t i = 0; i < rows; i++) {
        Sum sum[LOSSES] = {{{0}}};
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *w = wide(weight, at, count, room[0]), *f = wide(first, at, count, room[1]);
            const double *r = wide(restored, at, count, room[2]), *b = wide(before, at, count, room[3]);
            for (int64_t n = 0; n < count; n++) {
                double error = r[n] - w[n], lost = error * by_row[i] * by_column[start + n];
                double own = w[n] * by_row[i] * by_column[start + n];
                terms[ERROR][n] = lost * lost;
                terms[OWN][n] = own * own;
                terms[FIRST_ORDER][n] = f[n] * error;
                terms[PROGRESS][n] = f[n] * (w[n] - b[n]);
                terms[PLAIN_ERROR][n] = error * error;
                terms[PLAIN_OWN][n] = w[n] * w[n];
            }
            for (int k = 0; k < LOSSES; k++) add(&sum[k], terms[k], count);
        }
        for (int k = 0; k < LOSSES; k++) sums[k * rows + i] = total(&sum[k]);
    }
}

/* ---- moments ---- */

WIDE void EXPORT ckzd_fill(const double *by_row, const double *by_column, double least, int64_t rows, int64_t columns,
                           void *out, int32_t is_single) {
    double values[PIECE];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t count = piece(columns, start);
            for (int64_t n = 0; n < count; n++) {
                double product = by_row[i] * by_column[start + n];
                values[n] = product > 0.0 ? (product > least ? product : least) : 0.0;
            }
            narrow(values, i * columns + start, count, out, is_single);
        }
}

enum { SECOND, LENGTH, LONGEST };

WIDE void EXPORT ckzd_updates(Matrix first, Matrix second, double eps, int64_t rows, int64_t columns, double *sums,
                              int64_t *zeros) {
    double room[2][PIECE], terms[2][PIECE];
    for (int64_t i = 0; i < rows; i++) {
        Sum sum[LONGEST] = {{{0}}};
        double longest = 0.0;
        int64_t found = 0;
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *f = wide(first, at, count, room[0]), *s = wide(second, at, count, room[1]);
            for (int64_t n = 0; n < count; n++) {
                double update = f[n] / (sqrt(s[n]) + eps);
                terms[0][n] = fabs(update);
                terms[1][n] = update * update;
                found += s[n] == 0.0;
            }
            longest = largest(terms[0], count, longest);
            add(&sum[SECOND], s, count);
            add(&sum[LENGTH], terms[1], count);
        }
        for (int k = 0; k < LONGEST; k++) sums[k * rows + i] = total(&sum[k]);
        sums[LONGEST * rows + i] = longest;
        zeros[i] = found;
    }
}

enum { AGREEMENT, FALL, OF_UPDATE, OF_TREND, TRENDS };

WIDE void EXPORT ckzd_along_trend(Matrix first, Matrix second, const int8_t *trend, int64_t rows, int64_t columns,
                                  const double *by_row, const double *by_column, double *sums) {
    double room[2][PIECE], terms[TRENDS][PIECE];
    for (int64_t i = 0; i < rows; i++) {
        Sum sum[TRENDS] = {{{0}}};
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            const double *f = wide(first, at, count, room[0]), *s = wide(second, at, count, room[1]);
            for (int64_t n = 0; n < count; n++) {
                double root = sqrt(s[n]), against = trend[at + n] * by_row[i] * by_column[start + n];
                double update = root > 0.0 ? f[n] / root : 0.0, moving = root > 0.0 ? -against / root : 0.0;
                terms[AGREEMENT][n] = update * moving;
                terms[FALL][n] = f[n] * moving;
                terms[OF_UPDATE][n] = update * update;
                terms[OF_TREND][n] = moving * moving;
            }
            for (int k = 0; k < TRENDS; k++) add(&sum[k], terms[k], count);
        }
        for (int k = 0; k < TRENDS; k++) sums[k * rows + i] = total(&sum[k]);
    }
}

WIDE void EXPORT ckzd_against_trend(const int8_t *trend, double times, int64_t rows, int64_t columns,
                                    const double *by_row, const double *by_column, const uint8_t *used_row,
                                    const uint8_t *used_column, void *out, int32_t is_single) {
    double values[PIECE];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t start = 0; start < columns; start += PIECE) {
            int64_t at = i * columns + start, count = piece(columns, start);
            for (int64_t n = 0; n < count; n++) {
                double against = times * (trend[at + n] * by_row[i] * by_column[start + n]);
                values[n] = used_row[i] & used_column[start + n] ? 0.0 - against : 0.0;
            }
            narrow(values, at, count, out, is_single);
        }
}

WIDE void EXPORT ckzd_quantize_update(Matrix first, Matrix second, double step, double up, int64_t count,
                                      int16_t *levels) {
    double room[2][PIECE];
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t length = piece(count, at);
        const double *f = wide(first, at, length, room[0]), *s = wide(second, at, length, room[1]);
        for (int64_t n = 0; n < length; n++) {
            double unit = sqrt(s[n]) * step, relative = unit > 0.0 ? f[n] / unit : 0.0;
            double level = floor(fabs(relative) + up);
            levels[at + n] = (int16_t)copysign(level < 32767.0 ? level : 32767.0, relative);
        }
    }
}

WIDE void EXPORT ckzd_restored_update(const int16_t *levels, Matrix second, double step, int64_t count, void *out,
                                      int32_t is_single) {
    double room[PIECE], values[PIECE];
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t length = piece(count, at);
        const double *s = wide(second, at, length, room);
        for (int64_t n = 0; n < length; n++) values[n] = levels[at + n] * (sqrt(s[n]) * step);
        narrow(values, at, length, out, is_single);
    }
}
