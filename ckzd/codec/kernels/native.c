/* The loops that take most of the time, for a machine with a compiler. plain.py has the same in NumPy, and its
 * docstrings say what each is; both give the same bits, which tests/codec/kernels holds. So: integers, or IEEE
 * operations in the order that is written (no fused multiply-add: see pyproject.toml), and sums of whole numbers below
 * 2**53 only. Numbers that an archive claims may be any: nothing here indexes by them unchecked.
 *
 * Each function works on memory that its caller owns, knows nothing of Python, and may run on any number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "export.h"

int EXPORT ckzd_version(void) { return 5; }

/* ---- symbols and their contexts ---- */

enum { ALPHABET = 18, ESCAPE = 17, NEAR = 8, MAGNITUDE_LIMIT = 15, ENERGY_CLASSES = 24, MEAN_SECOND = 12 };

/* pass by pass: (row + column) mod spacing = offset */
static const int64_t SPACING[4] = {8, 8, 4, 2};
static int64_t first_column(int pass, int64_t row) {
    static const int64_t offset[4] = {0, 4, 2, 1};
    int64_t spacing = SPACING[pass], at = (offset[pass] - row) % spacing;
    return at < 0 ? at + spacing : at;
}

static inline uint8_t magnitude(int32_t level) {
    int32_t size = level < 0 ? -level : level;
    return (uint8_t)(size < MAGNITUDE_LIMIT ? size : MAGNITUDE_LIMIT);
}

static inline uint8_t zigzag(int32_t level) {
    int32_t size = level < 0 ? -level : level;
    return (uint8_t)(size > NEAR ? ESCAPE : 2 * size - (level > 0));
}

int64_t EXPORT ckzd_gather(const int16_t *levels, int64_t rows, int64_t columns, int32_t pass, uint8_t *symbols,
                           int64_t *row_sums, int64_t *column_sums) {
    int64_t count = 0, spacing = SPACING[pass];
    for (int64_t i = 0; i < rows; i++) {
        const int16_t *row = levels + i * columns;
        int64_t sum = 0;
        for (int64_t j = first_column(pass, i); j < columns; j += spacing) {
            uint8_t size = magnitude(row[j]);
            symbols[count++] = zigzag(row[j]);
            sum += size;
            column_sums[j] += size;
        }
        row_sums[i] += sum;
    }
    return count;
}

int64_t EXPORT ckzd_scatter(const uint8_t *symbols, int64_t rows, int64_t columns, int32_t pass, const int16_t *escapes,
                            int64_t escape_count, int16_t *levels, int64_t *row_sums, int64_t *column_sums) {
    int64_t used = 0, spacing = SPACING[pass];
    for (int64_t i = 0; i < rows; i++) {
        int16_t *row = levels + i * columns;
        int64_t sum = 0;
        for (int64_t j = first_column(pass, i); j < columns; j += spacing) {
            int32_t symbol = *symbols++;
            int32_t level = symbol & 1 ? (symbol + 1) >> 1 : -(symbol >> 1);
            if (symbol == ESCAPE) {
                if (used == escape_count) return -1;
                level = escapes[used++];
            }
            row[j] = (int16_t)level;
            uint8_t size = magnitude(level);
            sum += size;
            column_sums[j] += size;
        }
        row_sums[i] += sum;
    }
    return used;
}

void EXPORT ckzd_line_sums(const int8_t *levels, int64_t rows, int64_t columns, int64_t *row_sums,
                           int64_t *column_sums) {
    for (int64_t i = 0; i < rows; i++) {
        const int8_t *row = levels + i * columns;
        int64_t sum = 0;
        for (int64_t j = 0; j < columns; j++) {
            uint8_t size = magnitude(row[j]);
            sum += size;
            column_sums[j] += size;
        }
        row_sums[i] += sum;
    }
}

static inline int32_t signed_class(int32_t level) {
    if (level == 0) return 0;
    int32_t far = level > 2 || level < -2;
    return (level > 0 ? 1 : 2) + 2 * far;
}

void EXPORT ckzd_contexts(int64_t rows, int64_t columns, int32_t pass, const int64_t *by_row, const int64_t *by_column,
                          const int16_t *energy_class, int64_t last, const int8_t *guide, const int8_t *second,
                          int32_t second_alone, uint8_t *ids) {
    int64_t spacing = SPACING[pass];
    for (int64_t i = 0; i < rows; i++) {
        int64_t own = by_row[i], start = first_column(pass, i);
        for (int64_t j = start; j < columns; j += spacing) {
            /* a total that no encoder writes may make it any number: it wraps, and is cut off at both ends */
            int64_t relative = (int64_t)((uint64_t)own * (uint64_t)by_column[j]) >> 12;
            int32_t class = energy_class[relative < 0 ? 0 : relative < last ? relative : last];
            if (second) {
                class = second[i * columns + j] + (second_alone ? MEAN_SECOND : class);
                class = class < 0 ? 0 : class > ENERGY_CLASSES - 1 ? ENERGY_CLASSES - 1 : class;
            }
            int32_t side = guide ? signed_class(guide[i * columns + j]) : 0;
            *ids++ = (uint8_t)(ENERGY_CLASSES * side + class);
        }
    }
}

void EXPORT ckzd_count(const uint8_t *ids, const uint8_t *symbols, int64_t count, int64_t *cells) {
    for (int64_t n = 0; n < count; n++) cells[(int64_t)ids[n] * ALPHABET + symbols[n]]++;
}

/* ---- rANS in lanes ---- */

enum { TOTAL_BITS = 15, ROW = 32 }; /* cumulative frequencies of a row: 18, then 2**15 up to 32 numbers */
static const uint32_t LEAST = 1u << 16;

int64_t EXPORT ckzd_rans_encode(const uint8_t *symbols, const uint8_t *ids, const int64_t *passes, int32_t pass_count,
                                const uint16_t *cumulative, int64_t lanes, uint32_t *states, uint16_t *words,
                                int64_t room) {
    int64_t end = 0, at = room;
    for (int32_t p = 0; p < pass_count; p++) end += passes[p];
    for (int64_t lane = 0; lane < lanes; lane++) states[lane] = LEAST;
    for (int32_t p = pass_count - 1; p >= 0; p--) {
        int64_t start = end - passes[p];
        for (int64_t n = end - 1; n >= start; n--) {
            const uint16_t *row = cumulative + (int64_t)ids[n] * ROW;
            uint32_t low = row[symbols[n]], high = row[symbols[n] + 1], frequency = high - low;
            uint32_t *state = states + ((n - start) & (lanes - 1)), x = *state;
            if (x >> (32 - TOTAL_BITS) >= frequency) {
                words[--at] = (uint16_t)x;
                x >>= 16;
            }
            *state = ((x / frequency) << TOTAL_BITS) + x % frequency + low;
        }
        end = start;
    }
    return at;
}

WIDE int64_t EXPORT ckzd_rans_decode(const uint8_t *ids, int64_t count, const uint16_t *cumulative, int64_t lanes,
                                uint32_t *states, const uint16_t *words, int64_t word_count, int64_t at,
                                uint8_t *symbols) {
    for (int64_t n = 0; n < count; n++) {
        const uint16_t *row = cumulative + (int64_t)ids[n] * ROW;
        uint32_t *state = states + (n & (lanes - 1)), x = *state;
        uint32_t slot = x & ((1u << TOTAL_BITS) - 1);
        uint32_t symbol = 0;
        if (slot >= row[1]) {
            uint16_t above = 0;
            for (int s = 1; s < ROW; s++) above = (uint16_t)(above + (slot >= row[s]));
            symbol = above;
        }
        uint32_t low = row[symbol];
        x = (row[symbol + 1] - low) * (x >> TOTAL_BITS) + slot - low;
        if (x < LEAST) {
            if (at == word_count) return -1;
            x = x << 16 | words[at++];
        }
        *state = x;
        symbols[n] = (uint8_t)symbol;
    }
    return at;
}

/* ---- levels ---- */

enum { CHUNK = 1024, CENTRED = 3 };

WIDE void EXPORT ckzd_quantize(const double *values, int64_t count, double step, double up, int16_t *levels,
                               int64_t *sums, int64_t *counts) {
    int32_t inside[CHUNK], sizes[CHUNK];
    for (int64_t start = 0; start < count; start += CHUNK) {
        int64_t length = count - start < CHUNK ? count - start : CHUNK;
        for (int64_t n = 0; n < length; n++) {
            double relative = values[start + n] / step, size = fabs(relative), level = floor(size + up);
            level = level < 32767.0 ? level : 32767.0;
            levels[start + n] = (int16_t)copysign(level, relative);
            sizes[n] = (int32_t)level;
            inside[n] = (int32_t)rint((size < 4.0 ? size : 4.0) * 1048576.0);
        }
        for (int32_t level = 1; level <= CENTRED; level++) {
            int64_t sum = 0, found = 0;
            for (int64_t n = 0; n < length; n++) {
                sum += sizes[n] == level ? inside[n] : 0;
                found += sizes[n] == level;
            }
            sums[level - 1] += sum;
            counts[level - 1] += found;
        }
    }
}

WIDE void EXPORT ckzd_dequantize(const int16_t *levels, int64_t count, const double *restored, double step,
                                 double *values) {
    double first = restored[0], second = restored[1], third = restored[2];
    for (int64_t n = 0; n < count; n++) {
        double level = levels[n], size = fabs(level);
        size = size == 1.0 ? first : size == 2.0 ? second : size == 3.0 ? third : size;
        values[n] = copysign(size, level) * step;
    }
}

enum { NEAREST = 9, CLASSES = 48 };

static inline int32_t near_size(int32_t level) {
    int32_t size = level < 0 ? -level : level;
    return size < NEAREST ? size : NEAREST;
}

void EXPORT ckzd_near_sums(const int16_t *levels, int64_t rows, int64_t columns, int64_t *row_sums,
                           int64_t *column_sums) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t sum = 0;
        for (int64_t j = 0; j < columns; j++) {
            int32_t size = near_size(levels[i * columns + j]);
            sum += size;
            column_sums[j] += size;
        }
        row_sums[i] += sum;
    }
}

WIDE void EXPORT ckzd_class_counts(const int16_t *levels, int64_t rows, int64_t columns, const double *row_logs,
                                   const double *column_logs, int64_t *counts) {
    int32_t cells[CHUNK];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t start = 0; start < columns; start += CHUNK) {
            int64_t length = columns - start < CHUNK ? columns - start : CHUNK;
            for (int64_t j = 0; j < length; j++) {
                double class = floor(4.0 * (row_logs[i] + column_logs[start + j])) + CLASSES / 2;
                class = class < 0.0 ? 0.0 : class > CLASSES - 1 ? CLASSES - 1 : class;
                cells[j] = (int32_t)class * (NEAREST + 1) + near_size(levels[i * columns + start + j]);
            }
            for (int64_t j = 0; j < length; j++) counts[cells[j]]++;
        }
}

/* ---- adaptive bases ---- */

/* Sums of products of whole numbers below 2**53 are exact in any order and with fused multiply-adds: functions that are
 * nothing else may use both. */
#if defined(__GNUC__) && !defined(__clang__)
#define EXACT_SUMS \
    __attribute__((optimize("fp-contract=fast", "associative-math", "no-signed-zeros", "no-trapping-math")))
#else
#define EXACT_SUMS
#endif

enum { PANEL = 16, MOST = 256 };
static const double UP = 262144.0, DOWN = 1.0 / 262144.0; /* 2**18: rows are in 2**-18 */

enum { STRIP = 32 };

/* found (PANEL, width) = panel (PANEL, count) times by (count, width), rows MOST apart; and more, to a whole strip */
WIDE EXACT_SUMS static void multiplied(const double *panel, const double *by, int64_t count, int64_t width,
                                       double *found) {
    for (int64_t start = 0; start < width; start += STRIP)
        for (int64_t p = 0; p < PANEL; p += 4) {
            double sum[4][STRIP] = {{0}};
            for (int64_t b = 0; b < count; b++)
                for (int i = 0; i < 4; i++)
                    for (int n = 0; n < STRIP; n++) sum[i][n] += panel[(p + i) * MOST + b] * by[b * MOST + start + n];
            for (int i = 0; i < 4; i++) memcpy(found + (p + i) * MOST + start, sum[i], sizeof sum[i]);
        }
}

WIDE static void rounded(double *values, int64_t width) {
    for (int64_t p = 0; p < PANEL; p++)
        for (int64_t n = 0; n < width; n++) values[p * MOST + n] = rint(values[p * MOST + n] * DOWN);
}

/* each row times a power of two, so that its largest magnitude is a number of 22 bits */
WIDE static void scaled(double *rows, int64_t count, int64_t length) {
    for (int64_t p = 0; p < count; p++) {
        double *row = rows + p * MOST, most[8] = {0}, largest = 0.0;
        int64_t start = 0;
        int exponent;
        for (; start + 8 <= length; start += 8)
            for (int lane = 0; lane < 8; lane++)
                most[lane] = fabs(row[start + lane]) > most[lane] ? fabs(row[start + lane]) : most[lane];
        for (; start < length; start++) largest = fabs(row[start]) > largest ? fabs(row[start]) : largest;
        for (int lane = 0; lane < 8; lane++) largest = most[lane] > largest ? most[lane] : largest;
        frexp(largest, &exponent);
        double unit = ldexp(1.0, 22 - exponent);
        for (int64_t n = 0; n < length; n++) row[n] = rint(row[n] * unit);
    }
}

WIDE EXACT_SUMS static double product(const double *one, const double *other, int64_t length) {
    double sum[32] = {0}, all = 0.0;
    int64_t n = 0;
    for (; n + 32 <= length; n += 32)
        for (int lane = 0; lane < 32; lane++) sum[lane] += one[n + lane] * other[n + lane];
    for (int lane = 0; lane < 32; lane++) all += sum[lane];
    for (; n < length; n++) all += one[n] * other[n];
    return all;
}

WIDE static void take_away(double *rest, const double *row, double share, int64_t length) {
    for (int64_t n = 0; n < length; n++) rest[n] -= rint(share * row[n]);
}

WIDE static void stretched(double *row, double scale, int64_t length) {
    for (int64_t n = 0; n < length; n++) row[n] = rint(row[n] * scale);
}

static void gram_schmidt(double *rows, int64_t count, int64_t length, int64_t start) {
    for (int64_t k = 0; k < count; k++) {
        double *row = rows + k * MOST, square = product(row, row, length);
        if (square == 0.0) {
            row[start + k] = 1.0;
            square = 1.0;
        }
        stretched(row, UP / sqrt(square), length);
        for (int64_t r = k + 1; r < count; r++) {
            double *rest = rows + r * MOST;
            take_away(rest, row, rint(product(rest, row, length) * DOWN) * DOWN, length);
        }
    }
}

/* rows (length, length) of at most MOST, in place; `done` and `across` have room for MOST * MOST numbers each: what is
 * done, and the same transposed */
void EXPORT ckzd_orthonormal(double *rows, int64_t length, double *across, double *done) {
    double panel[PANEL * MOST] = {0}, shares[PANEL * MOST], along[PANEL * MOST];
    for (int64_t start = 0; start < length; start += PANEL) {
        int64_t count = length - start < PANEL ? length - start : PANEL; /* rows behind the end are projected along */
        for (int64_t p = 0; p < count; p++)
            memcpy(panel + p * MOST, rows + (start + p) * length, (size_t)length * sizeof(double));
        scaled(panel, count, length);
        for (int sweep = 0; sweep < 2; sweep++) {
            multiplied(panel, across, length, start, shares);
            rounded(shares, start);
            multiplied(shares, done, start, length, along);
            rounded(along, length);
            for (int64_t p = 0; p < count; p++)
                for (int64_t n = 0; n < length; n++) panel[p * MOST + n] -= along[p * MOST + n];
            scaled(panel, count, length);
            gram_schmidt(panel, count, length, start);
        }
        for (int64_t p = 0; p < count; p++) {
            memcpy(done + (start + p) * MOST, panel + p * MOST, (size_t)length * sizeof(double));
            memcpy(rows + (start + p) * length, panel + p * MOST, (size_t)length * sizeof(double));
        }
        for (int64_t n = 0; n < length; n++)
            for (int64_t p = 0; p < count; p++) across[n * MOST + start + p] = panel[p * MOST + n];
    }
}
