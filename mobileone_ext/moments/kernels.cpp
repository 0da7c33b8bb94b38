// Sums over the 3x3 patches of a map, and their adjoints, in one pass over it; kernels.py builds and calls them.
//
// A task is an image, or some with small planes, and as many channels as a vector has lanes: rows are copied to buffers
// of such vectors, whatever the map's layout, with zeros on both sides, so that no tap needs to know of the border. Sums
// run in the map's type over a few hundred products, then go to float64 totals. Every thread has totals of its own, which are added up in
// order: the same number of threads gives the same bits.
//
// Legend: N images, H x W plane, C channels, L lanes, taps i, j = 0 .. 8 of a patch in row-major order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif

// How many products are added up in the map's type before they go to the totals.
constexpr int64_t FLUSH = 224;

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(BYTES)));
};
template <typename T>
using V = typename Vector<T>::type;
template <typename T>
constexpr int LANES = BYTES / sizeof(T);

// Rows of vectors, zero at first.
template <typename T>
class Rows {
 public:
  Rows(int64_t rows, int64_t size) : size_(size) {
    const size_t bytes = sizeof(V<T>) * rows * size;
    memory_ = static_cast<V<T>*>(::operator new(bytes, std::align_val_t(BYTES)));
    std::memset(static_cast<void*>(memory_), 0, bytes);
  }
  ~Rows() { ::operator delete(memory_, std::align_val_t(BYTES)); }
  Rows(const Rows&) = delete;
  V<T>* operator[](int64_t row) { return memory_ + row * size_; }

 private:
  V<T>* memory_;
  int64_t size_;
};

template <typename T>
inline V<T> load(const T* from, int lanes) {
  V<T> v = {};
  if (lanes == LANES<T>)
    std::memcpy(&v, from, sizeof(v));
  else
    std::memcpy(&v, from, sizeof(T) * lanes);
  return v;
}

template <typename T>
inline void store(T* to, V<T> v, int lanes) {
  std::memcpy(to, &v, lanes == LANES<T> ? sizeof(v) : sizeof(T) * lanes);
}

// How many values lie between neighbors of a map x[n][c][y][w].
struct Steps {
  int64_t image, channel, row, pixel;
};

// Row y of an image into buffer, zeros if there is none.
template <typename T>
inline void fetch(V<T>* buffer, const T* image, int64_t y, int64_t H, int64_t W, const Steps& steps, int lanes) {
  const T* row = image + y * steps.row;
  if (y < 0 || y >= H) {
    std::memset(static_cast<void*>(buffer), 0, sizeof(V<T>) * W);
  } else if (steps.channel != 1) {
    T* to = reinterpret_cast<T*>(buffer);
    for (int l = 0; l < lanes; l++)
      for (int64_t w = 0; w < W; w++) to[w * LANES<T> + l] = row[l * steps.channel + w * steps.pixel];
  } else if (lanes == LANES<T>) {
    for (int64_t w = 0; w < W; w++) buffer[w] = load(row + w * steps.pixel, LANES<T>);
  } else {
    for (int64_t w = 0; w < W; w++) buffer[w] = load(row + w * steps.pixel, lanes);
  }
}

// Adds buffer to row y of an image, if there is such a row.
template <typename T>
inline void add_row(T* image, int64_t y, int64_t H, int64_t W, const Steps& steps, const V<T>* buffer, int lanes) {
  if (y < 0 || y >= H) return;
  T* row = image + y * steps.row;
  if (steps.channel != 1) {
    const T* from = reinterpret_cast<const T*>(buffer);
    for (int l = 0; l < lanes; l++)
      for (int64_t w = 0; w < W; w++) row[l * steps.channel + w * steps.pixel] += from[w * LANES<T> + l];
  } else if (lanes == LANES<T>) {
    for (int64_t w = 0; w < W; w++) {
      T* to = row + w * steps.pixel;
      store(to, load(to, LANES<T>) + buffer[w], LANES<T>);
    }
  } else {
    for (int64_t w = 0; w < W; w++) {
      T* to = row + w * steps.pixel;
      store(to, load(to, lanes) + buffer[w], lanes);
    }
  }
}

// work(first, last, thread) for a share of the tasks in each of some threads, this one among them.
template <typename Work>
void share(int64_t tasks, int64_t threads, const Work& work) {
  threads = std::max<int64_t>(1, std::min(threads, tasks));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t t = 0; t < threads; t++) work(t * tasks / threads, (t + 1) * tasks / threads, t);
}

// As share(), each thread with `size` totals of its own, then summed up into out.
template <typename Work>
void share_totals(int64_t tasks, int64_t threads, int64_t size, double* out, const Work& work) {
  threads = std::max<int64_t>(1, std::min(threads, tasks));
  std::vector<std::vector<double>> totals(threads, std::vector<double>(size, 0.0));
  share(tasks, threads, [&](int64_t first, int64_t last, int64_t t) { work(first, last, totals[t].data()); });
  std::fill(out, out + size, 0.0);
  for (const auto& part : totals)
    for (int64_t i = 0; i < size; i++) out[i] += part[i];
}

// As many channels as a vector has lanes, of images from .. to - 1: several where their planes are small.
struct Tasks {
  int64_t N, C, lanes, group;
  Tasks(int64_t N, int64_t C, int64_t lanes, int64_t pixels)
      : N(N), C(C), lanes(lanes), group(std::max<int64_t>(1, FLUSH / pixels)) {}
  int64_t blocks() const { return (C + lanes - 1) / lanes; }
  int64_t count() const { return blocks() * ((N + group - 1) / group); }
  int64_t channel(int64_t task) const { return task % blocks() * lanes; }
  int used(int64_t task) const { return std::min(lanes, C - channel(task)); }
  int64_t from(int64_t task) const { return task / blocks() * group; }
  int64_t to(int64_t task) const { return std::min(N, from(task) + group); }
};

// Moves sums (SIZE) of some channels to their totals (channels, SIZE); how many pixels wait since: none.
template <typename T, int SIZE>
inline int64_t flush(V<T>* sums, double* totals, int lanes) {
  for (int i = 0; i < SIZE; i++) {
    for (int l = 0; l < lanes; l++) totals[l * SIZE + i] += static_cast<double>(sums[i][l]);
    sums[i] = V<T>{};
  }
  return 0;
}

// Stride 1. out (C, 42): autocorrelations of the plane at lags (0..2, -2..2), of the top and bottom row at lags 0..2,
// of the left and right column, the four squared corners; sums of the plane, two rows, two columns, four corners; sum
// and sum of squares of x - shift.
constexpr int PLANE_SUMS = 42;

template <typename T>
void plane_sums(const T* x, const Steps& steps, int64_t N, int64_t C, int64_t H, int64_t W, const T* shift, double* out,
                int64_t threads) {
  const Tasks tasks(N, C, LANES<T>, H * W);
  share_totals(tasks.count(), threads, C * PLANE_SUMS, out, [&](int64_t first, int64_t last, double* totals) {
    Rows<T> memory(3, W + 4);
    for (int64_t task = first; task < last; task++) {
      const int64_t channel = tasks.channel(task);
      const int lanes = tasks.used(task);
      const V<T> center = load(shift + channel, lanes);
      V<T> sums[PLANE_SUMS] = {};
      int64_t pending = 0;
      for (int64_t index = tasks.from(task); index < tasks.to(task); index++) {
        const T* image = x + index * steps.image + channel * steps.channel;
        V<T>* rows[3] = {memory[0] + 2, memory[1] + 2, memory[2] + 2};
        fetch(rows[0], image, 0, H, W, steps, lanes);
        fetch(rows[1], image, 1, H, W, steps, lanes);
        for (int64_t y = 0; y < H; y++) {
          fetch(rows[2], image, y + 2, H, W, steps, lanes);
          const V<T>*r0 = rows[0], *r1 = rows[1], *r2 = rows[2];
          V<T> a[13];
          for (int i = 0; i < 13; i++) a[i] = sums[2 + i];
          for (int64_t w = 0; w < W; w++) {
            const V<T> v = r0[w];
            a[0] += v * v, a[1] += v * r0[w + 1], a[2] += v * r0[w + 2];
            a[3] += v * r1[w - 2], a[4] += v * r1[w - 1], a[5] += v * r1[w], a[6] += v * r1[w + 1], a[7] += v * r1[w + 2];
            a[8] += v * r2[w - 2], a[9] += v * r2[w - 1], a[10] += v * r2[w], a[11] += v * r2[w + 1];
            a[12] += v * r2[w + 2];
          }
          for (int i = 0; i < 13; i++) sums[2 + i] = a[i];
          V<T> s = {}, d = {}, q = {};
          for (int64_t w = 0; w < W; w++) {
            const V<T> v = r0[w] - center;
            s += r0[w], d += v, q += v * v;
          }
          sums[31] += s, sums[40] += d, sums[41] += q;
          for (int side = 0; side < 2; side++) {
            const int64_t w = side ? W - 1 : 0;
            V<T>* column = sums + 21 + 3 * side;
            column[0] += r0[w] * r0[w], column[1] += r0[w] * r1[w], column[2] += r0[w] * r2[w];
            sums[34 + side] += r0[w];
            if (y != (side ? H - 1 : 0)) continue;
            V<T>* row = sums + 15 + 3 * side;
            for (int64_t i = 0; i < W; i++)
              row[0] += r0[i] * r0[i], row[1] += r0[i] * r0[i + 1], row[2] += r0[i] * r0[i + 2];
            sums[32 + side] += s;
            for (int corner = 0; corner < 2; corner++) {
              const V<T> v = r0[corner ? W - 1 : 0];
              sums[27 + 2 * side + corner] += v * v;
              sums[36 + 2 * side + corner] += v;
            }
          }
          pending += W;
          if (pending >= FLUSH) pending = flush<T, PLANE_SUMS>(sums, totals + channel * PLANE_SUMS, lanes);
          std::swap(rows[0], rows[1]);
          std::swap(rows[1], rows[2]);
        }
      }
      flush<T, PLANE_SUMS>(sums, totals + channel * PLANE_SUMS, lanes);
    }
  });
}

// Adds to dx the adjoint of plane_sums. kernel (25 + 6 + 6 + 4 + 9, C): weights of the 5x5 around a pixel; of lags 0..2
// along the top and bottom row, the left and right column; of the four corners; and what is added to all pixels, to
// those of two rows, two columns, four corners.
template <typename T>
void plane_grad(const T* x, const Steps& steps, T* dx, const Steps& dx_steps, int64_t N, int64_t C, int64_t H, int64_t W,
                const T* kernel, int64_t threads) {
  const Tasks tasks(N, C, LANES<T>, H * W);
  share(tasks.count(), threads, [&](int64_t first, int64_t last, int64_t) {
    Rows<T> memory(5, W + 8), outputs(1, W + 4);
    V<T>* out = outputs[0];
    for (int64_t task = first; task < last; task++) {
      const int64_t channel = tasks.channel(task);
      const int lanes = tasks.used(task);
      V<T> k[50];
      for (int i = 0; i < 50; i++) k[i] = load(kernel + i * C + channel, lanes);
      const V<T>*row_lags = k + 25, *column_lags = k + 31, *corners = k + 37, *sums = k + 41;
      for (int64_t index = tasks.from(task); index < tasks.to(task); index++) {
        const T* image = x + index * steps.image + channel * steps.channel;
        T* image_grad = dx + index * dx_steps.image + channel * dx_steps.channel;
        V<T>* rows[5];
        for (int i = 0; i < 5; i++) rows[i] = memory[i] + 2;
        fetch(rows[0], image, -1, H, W, steps, lanes);
        fetch(rows[1], image, -1, H, W, steps, lanes);
        fetch(rows[2], image, 0, H, W, steps, lanes);
        fetch(rows[3], image, 1, H, W, steps, lanes);
        for (int64_t y = 0; y < H; y++) {
          fetch(rows[4], image, y + 2, H, W, steps, lanes);
          for (int64_t w = 0; w < W; w += 4) {  // up to three pixels too many, of zeros
            V<T> s0 = sums[0], s1 = sums[0], s2 = sums[0], s3 = sums[0];
            for (int i = 0; i < 5; i++) {
              const V<T>*r = rows[i] + w - 2, *weights = k + 5 * i;
#pragma GCC unroll 5
              for (int j = 0; j < 5; j++) {
                const V<T> weight = weights[j];
                s0 += weight * r[j], s1 += weight * r[j + 1], s2 += weight * r[j + 2], s3 += weight * r[j + 3];
              }
            }
            out[w] = s0, out[w + 1] = s1, out[w + 2] = s2, out[w + 3] = s3;
          }
          const V<T>* r = rows[2];
          for (int side = 0; side < 2; side++) {
            const int64_t w = side ? W - 1 : 0;
            const V<T>* column = column_lags + 3 * side;
            out[w] += sums[3 + side] + 2 * column[0] * r[w] + column[1] * (rows[1][w] + rows[3][w]) +
                      column[2] * (rows[0][w] + rows[4][w]);
            if (y != (side ? H - 1 : 0)) continue;
            const V<T>* row = row_lags + 3 * side;
            for (int64_t i = 0; i < W; i++)
              out[i] += sums[1 + side] + 2 * row[0] * r[i] + row[1] * (r[i - 1] + r[i + 1]) +
                        row[2] * (r[i - 2] + r[i + 2]);
            for (int corner = 0; corner < 2; corner++) {
              const int64_t i = corner ? W - 1 : 0;
              out[i] += sums[5 + 2 * side + corner] + 2 * corners[2 * side + corner] * r[i];
            }
          }
          add_row(image_grad, y, H, W, dx_steps, out, lanes);
          std::rotate(rows, rows + 1, rows + 5);
        }
      }
    }
  });
}

// The pairs i <= j of taps, row by row.
struct Pairs {
  int first[45] = {}, second[45] = {};
  constexpr Pairs() {
    int k = 0;
    for (int i = 0; i < 9; i++)
      for (int j = i; j < 9; j++, k++) first[k] = i, second[k] = j;
  }
};
constexpr Pairs PAIRS;

// Adds to sums the products of pairs A .. Z - 1 of taps over a row of patches.
template <typename T, int A, int Z>
inline void pair_products(V<T>* const* rows, int64_t patches, V<T>* sums) {
  V<T> a[Z - A];
  for (int k = 0; k < Z - A; k++) a[k] = sums[A + k];
  for (int64_t q = 0; q < patches; q++) {
    V<T> p[9];
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) p[i] = rows[i / 3][2 * q + i % 3 - 1];
#pragma GCC unroll 45
    for (int k = A; k < Z; k++) a[k - A] += p[PAIRS.first[k]] * p[PAIRS.second[k]];
  }
  for (int k = 0; k < Z - A; k++) sums[A + k] = a[k];
}

// Stride 2. out (C, 56): sums of the products of taps i <= j, of the 9 taps; sum and sum of squares of the center tap
// less shift.
constexpr int STRIDED_SUMS = 56;

template <typename T>
void strided_sums(const T* x, const Steps& steps, int64_t N, int64_t C, int64_t H, int64_t W, const T* shift, double* out,
                  int64_t threads) {
  const int64_t rows_out = (H + 1) / 2, patches = (W + 1) / 2;
  const Tasks tasks(N, C, LANES<T>, rows_out * patches);
  share_totals(tasks.count(), threads, C * STRIDED_SUMS, out, [&](int64_t first, int64_t last, double* totals) {
    Rows<T> memory(3, W + 3);
    for (int64_t task = first; task < last; task++) {
      const int64_t channel = tasks.channel(task);
      const int lanes = tasks.used(task);
      const V<T> center = load(shift + channel, lanes);
      V<T> sums[STRIDED_SUMS] = {};
      int64_t pending = 0;
      for (int64_t index = tasks.from(task); index < tasks.to(task); index++) {
        const T* image = x + index * steps.image + channel * steps.channel;
        V<T>* rows[3] = {memory[0] + 1, memory[1] + 1, memory[2] + 1};
        fetch(rows[2], image, -1, H, W, steps, lanes);
        for (int64_t y = 0; y < rows_out; y++) {
          std::swap(rows[0], rows[2]);
          fetch(rows[1], image, 2 * y, H, W, steps, lanes);
          fetch(rows[2], image, 2 * y + 1, H, W, steps, lanes);
#if defined(__AVX512F__)
          pair_products<T, 0, 23>(rows, patches, sums);
          pair_products<T, 23, 45>(rows, patches, sums);
#else
          pair_products<T, 0, 12>(rows, patches, sums);
          pair_products<T, 12, 23>(rows, patches, sums);
          pair_products<T, 23, 34>(rows, patches, sums);
          pair_products<T, 34, 45>(rows, patches, sums);
#endif
          V<T> s[9] = {}, d = {}, q = {};
          for (int64_t w = 0; w < patches; w++) {
#pragma GCC unroll 9
            for (int i = 0; i < 9; i++) s[i] += rows[i / 3][2 * w + i % 3 - 1];
            const V<T> v = rows[1][2 * w] - center;
            d += v, q += v * v;
          }
          for (int i = 0; i < 9; i++) sums[45 + i] += s[i];
          sums[54] += d, sums[55] += q;
          pending += patches;
          if (pending >= FLUSH) pending = flush<T, STRIDED_SUMS>(sums, totals + channel * STRIDED_SUMS, lanes);
        }
      }
      flush<T, STRIDED_SUMS>(sums, totals + channel * STRIDED_SUMS, lanes);
    }
  });
}

// Adds slope @ patch + offset to dx where the patch lies, stride 2. slope (9, 9, C), offset (9, C).
template <typename T>
void strided_grad(const T* x, const Steps& steps, T* dx, const Steps& dx_steps, int64_t N, int64_t C, int64_t H,
                  int64_t W, const T* slope, const T* offset, int64_t threads) {
  const int64_t rows_out = (H + 1) / 2, patches = (W + 1) / 2;
  const Tasks tasks(N, C, LANES<T>, rows_out * patches);
  share(tasks.count(), threads, [&](int64_t first, int64_t last, int64_t) {
    // Room for one patch more, which makes their number even.
    const int64_t size = 2 * patches + 4;
    Rows<T> memory(6, size);
    for (int64_t task = first; task < last; task++) {
      const int64_t channel = tasks.channel(task);
      const int lanes = tasks.used(task);
      V<T> k[81], bias[9];
      for (int i = 0; i < 81; i++) k[i] = load(slope + i * C + channel, lanes);
      for (int i = 0; i < 9; i++) bias[i] = load(offset + i * C + channel, lanes);
      for (int64_t index = tasks.from(task); index < tasks.to(task); index++) {
        const T* image = x + index * steps.image + channel * steps.channel;
        T* image_grad = dx + index * dx_steps.image + channel * dx_steps.channel;
        V<T>*rows[3], *grads[3];
        for (int i = 0; i < 3; i++) rows[i] = memory[i] + 1, grads[i] = memory[3 + i] + 1;
        fetch(rows[2], image, -1, H, W, steps, lanes);
        std::memset(static_cast<void*>(grads[2] - 1), 0, sizeof(V<T>) * size);
        for (int64_t y = 0; y < rows_out; y++) {
          std::swap(rows[0], rows[2]);
          std::swap(grads[0], grads[2]);
          fetch(rows[1], image, 2 * y, H, W, steps, lanes);
          fetch(rows[2], image, 2 * y + 1, H, W, steps, lanes);
          for (int i = 1; i < 3; i++) std::memset(static_cast<void*>(grads[i] - 1), 0, sizeof(V<T>) * size);
          int64_t q = 0;
          for (; q + 1 < patches; q += 2) {
            V<T> p[3][5];
#pragma GCC unroll 3
            for (int i = 0; i < 3; i++)
#pragma GCC unroll 5
              for (int j = 0; j < 5; j++) p[i][j] = rows[i][2 * q + j - 1];
            for (int i = 0; i < 9; i++) {
              V<T> one = bias[i], other = bias[i];
#pragma GCC unroll 9
              for (int j = 0; j < 9; j++) {
                const V<T> weight = k[9 * i + j];
                one += weight * p[j / 3][j % 3], other += weight * p[j / 3][j % 3 + 2];
              }
              V<T>* to = grads[i / 3] + 2 * q + i % 3 - 1;
              to[0] += one, to[2] += other;
            }
          }
          for (; q < patches; q++)
            for (int i = 0; i < 9; i++) {
              V<T> one = bias[i];
              for (int j = 0; j < 9; j++) one += k[9 * i + j] * rows[j / 3][2 * q + j % 3 - 1];
              grads[i / 3][2 * q + i % 3 - 1] += one;
            }
          add_row(image_grad, 2 * y - 1, H, W, dx_steps, grads[0], lanes);
          add_row(image_grad, 2 * y, H, W, dx_steps, grads[1], lanes);
        }
        add_row(image_grad, 2 * rows_out - 1, H, W, dx_steps, grads[2], lanes);
      }
    }
  });
}

// Dense 3x3 patches at stride 2 of images of up to three channels. out (32, 32), whose
// lower triangle is not complete: sums of products of the taps [c][i] less shift[c], and of one more, which is 1.
constexpr int STEM_TAPS = 32;

template <typename T, int A, int Z, int FROM>
inline void outer_products(const T* taps, int64_t patches, T* sums) {
  constexpr int COUNT = STEM_TAPS / LANES<T>, LEFT = COUNT - FROM;
  V<T> a[Z - A][LEFT];
  for (int i = 0; i < Z - A; i++)
    for (int j = 0; j < LEFT; j++) a[i][j] = load(sums + (A + i) * STEM_TAPS + (FROM + j) * LANES<T>, LANES<T>);
  for (int64_t q = 0; q < patches; q++) {
    const T* p = taps + q * STEM_TAPS;
    V<T> v[LEFT];
#pragma GCC unroll 8
    for (int j = 0; j < LEFT; j++) v[j] = load(p + (FROM + j) * LANES<T>, LANES<T>);
#pragma GCC unroll 8
    for (int i = 0; i < Z - A; i++)
#pragma GCC unroll 8
      for (int j = 0; j < LEFT; j++) a[i][j] += v[j] * p[A + i];
  }
  for (int i = 0; i < Z - A; i++)
    for (int j = 0; j < LEFT; j++) store(sums + (A + i) * STEM_TAPS + (FROM + j) * LANES<T>, a[i][j], LANES<T>);
}

template <typename T, int A>
inline void all_outer_products(const T* taps, int64_t patches, int64_t used, T* sums) {
  if constexpr (A < STEM_TAPS) {
    if (A < used) outer_products<T, A, A + 4, A / LANES<T>>(taps, patches, sums);
    all_outer_products<T, A + 4>(taps, patches, used, sums);
  }
}

template <typename T>
void stem_sums(const T* x, const Steps& steps, int64_t N, int64_t C, int64_t H, int64_t W, const T* shift, double* out,
               int64_t threads) {
  const int64_t rows_out = (H + 1) / 2, patches = (W + 1) / 2;
  constexpr int SIZE = STEM_TAPS * STEM_TAPS;
  share_totals(N, threads, SIZE, out, [&](int64_t first, int64_t last, double* totals) {
    Rows<T> memory(1, (patches * STEM_TAPS + SIZE + 2 * patches + 1) / LANES<T> + 1);
    T* taps = reinterpret_cast<T*>(memory[0]);
    T* sums = taps + patches * STEM_TAPS;
    T* row = sums + SIZE;  // pixels -1 .. 2 * patches - 1, less shift
    for (int64_t q = 0; q < patches; q++) taps[q * STEM_TAPS + 9 * C] = 1;
    for (int64_t task = first; task < last; task++)
      for (int64_t y = 0; y < rows_out; y++) {
        for (int64_t c = 0; c < C; c++)
          for (int i = 0; i < 3; i++) {
            const int64_t from = 2 * y + i - 1;
            const T* pixels = x + task * steps.image + c * steps.channel + from * steps.row;
            std::fill(row, row + 2 * patches + 1, -shift[c]);
            if (from >= 0 && from < H)
              for (int64_t w = 0; w < W; w++) row[w + 1] = pixels[w * steps.pixel] - shift[c];
            T* to = taps + 9 * c + 3 * i;
            for (int64_t q = 0; q < patches; q++)
              for (int j = 0; j < 3; j++) to[q * STEM_TAPS + j] = row[2 * q + j];
          }
        std::fill(sums, sums + SIZE, T(0));
        all_outer_products<T, 0>(taps, patches, 9 * C + 1, sums);
        for (int i = 0; i < SIZE; i++) totals[i] += static_cast<double>(sums[i]);
      }
  });
}

// -- The algebra of a block, in float64: from moments to its one kernel, and back. fold.py says the same with torch. ---

// Where the sums of plane_sums belong among the 9 taps of a patch and their pairs.
struct Places {
  int lag[81], row[81], column[81], corner[81], row_sum[9], column_sum[9], corner_sum[9];
  constexpr Places() : lag(), row(), column(), corner(), row_sum(), column_sum(), corner_sum() {
    // Which border a tap never reaches: 0 top or left, 1 bottom or right.
    constexpr int missed[3] = {1, -1, 0};
    for (int i = 0; i < 9; i++) {
      const int y = i / 3 - 1, x = i % 3 - 1;
      row_sum[i] = y ? 1 + missed[y + 1] : -1;
      column_sum[i] = x ? 3 + missed[x + 1] : -1;
      corner_sum[i] = y && x ? 5 + 2 * missed[y + 1] + missed[x + 1] : -1;
      for (int j = 0; j < 9; j++) {
        const int down = j / 3 - 1 - y, right = j % 3 - 1 - x, k = 9 * i + j;
        const int sign = down < 0 || (down == 0 && right < 0) ? -1 : 1;
        lag[k] = 5 * sign * down + sign * right + 2;
        row[k] = y && down == 0 ? 15 + 3 * missed[y + 1] + (right < 0 ? -right : right) : -1;
        column[k] = x && right == 0 ? 21 + 3 * missed[x + 1] + (down < 0 ? -down : down) : -1;
        corner[k] = i == j && y && x ? 27 + 2 * missed[y + 1] + missed[x + 1] : -1;
      }
    }
  }
};
constexpr Places PLACES;

// m (9) and the covariance (81) of a channel's patches, from what plane_sums or strided_sums found of it.
inline void depthwise_covariance(const double* total, int64_t stride, double count, double* m, double* cov) {
  const double* sums = total + (stride == 1 ? 31 : 45);
  for (int i = 0; i < 9; i++) {
    m[i] = sums[stride == 1 ? 0 : i];
    if (stride == 1) {
      if (PLACES.row_sum[i] >= 0) m[i] -= sums[PLACES.row_sum[i]];
      if (PLACES.column_sum[i] >= 0) m[i] -= sums[PLACES.column_sum[i]];
      if (PLACES.corner_sum[i] >= 0) m[i] += sums[PLACES.corner_sum[i]];
    }
    m[i] /= count;
  }
  for (int i = 0, pair = 0; i < 9; i++)
    for (int j = i; j < 9; j++, pair++) {
      const int k = 9 * i + j;
      double sum = total[stride == 1 ? PLACES.lag[k] : pair];
      if (stride == 1) {
        if (PLACES.row[k] >= 0) sum -= total[PLACES.row[k]];
        if (PLACES.column[k] >= 0) sum -= total[PLACES.column[k]];
        if (PLACES.corner[k] >= 0) sum += total[PLACES.corner[k]];
      }
      cov[k] = cov[9 * j + i] = sum / count - m[i] * m[j];
    }
  // All that a skip and a 1x1 branch see: without that cancellation.
  const double shifted = sums[9] / count;
  cov[40] = sums[10] / count - shifted * shifted;
}

// What a block is made of: B kernels (O, taps) in G groups, P weights (O) of the pixel under the center, and a norm for each,
// with gamma and beta (O), eps and, of its running statistics, momentum (below 0: a cumulative average). `tensors` are the
// kernels, the pixels (none: ones), the gammas and the betas, then running means, variances and counts of batches. `area` taps a
// channel; `count` patches are averaged over.
template <typename T>
struct Block {
  int64_t B, P, O, G, taps, area, count;
  T* const* tensors;
  const double *eps, *momenta;

  Block(const int64_t* sizes, int64_t count, T* const* tensors, const double* numbers)
      : B(sizes[0]), P(sizes[1]), O(sizes[2]), G(sizes[3]), taps(sizes[4]), area(sizes[5]), count(count),
        tensors(tensors), eps(numbers), momenta(numbers + B + P) {}
  int64_t norms() const { return B + P; }
  int64_t group(int64_t o) const { return o * G / O; }
  int64_t center(int64_t o) const { return (G == 1 ? o * area : 0) + area / 2; }
  const T* kernel(int64_t b, int64_t o) const { return tensors[b] + o * taps; }
  double pixel(int64_t b, int64_t o) const { return tensors[b] ? tensors[b][o] : 1; }  // b from B on
  double gamma(int64_t b, int64_t o) const { return tensors[B + P + b][o]; }
  double beta(int64_t b, int64_t o) const { return tensors[2 * (B + P) + b][o]; }
};

// -> m (C, 9), q = W C (B, C, 9), variance of the center tap (C), W q (B, C).
template <typename T>
void depthwise_products(const double* totals, int64_t stride, const Block<T>& k, T* m, T* q, T* pixel_var, T* var) {
  for (int64_t c = 0; c < k.O; c++) {
    double mean[9], cov[81];
    depthwise_covariance(totals + c * (stride == 1 ? PLANE_SUMS : STRIDED_SUMS), stride, k.count, mean, cov);
    for (int i = 0; i < 9; i++) m[9 * c + i] = mean[i];
    pixel_var[c] = cov[40];
    for (int64_t b = 0; b < k.B; b++) {
      const T* w = k.kernel(b, c);
      double total = 0;
      for (int i = 0; i < 9; i++) {
        double sum = 0;
        for (int j = 0; j < 9; j++) sum += cov[9 * i + j] * w[j];
        q[9 * (b * k.O + c) + i] = sum;
        total += sum * w[i];
      }
      var[b * k.O + c] = total;
    }
  }
}

template <typename T>
inline double dot(const T* a, const T* b, int64_t size) {
  double sum = 0;
  int64_t i = 0;
  for (; i + LANES<T> <= size;) {  // in the type of the values over a few vectors
    const int64_t last = std::min(size, i + 16 * LANES<T>);
    V<T> part = {};
    for (; i + LANES<T> <= last; i += LANES<T>) part += load(a + i, LANES<T>) * load(b + i, LANES<T>);
    for (int l = 0; l < LANES<T>; l++) sum += part[l];
  }
  for (; i < size; i++) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// Running statistics follow mean and biased variance (2, B + P, O) of a batch.
template <typename T>
void follow(const Block<T>& k, const T* batch) {
  const double unbiased = static_cast<double>(k.count) / (k.count - 1);
  const int64_t norms = k.norms();
  T* const* buffers = k.tensors + norms * 3;
  for (int64_t n = 0; n < norms; n++) {
    T *mean = buffers[n], *var = buffers[norms + n];
    const int64_t tracked = ++*reinterpret_cast<int64_t*>(buffers[2 * norms + n]);
    const double momentum = k.momenta[n] < 0 ? 1.0 / tracked : k.momenta[n];
    for (int64_t o = 0; o < k.O; o++) {
      mean[o] += momentum * (batch[n * k.O + o] - mean[o]);
      var[o] += momentum * (unbiased * batch[(norms + n) * k.O + o] - var[o]);
    }
  }
}

// m (G, taps), q (B, O, taps), pixel_var (O), W q (B, O) if it is known with more digits -> the kernel (O, taps) and its
// bias (O), mean and variance (B + P, O), which running statistics follow.
template <typename T>
void fold(const Block<T>& k, const T* m, const T* q, const T* pixel_var, const T* kernel_var, T* kernel, T* bias, T* mean,
          int64_t threads) {
  T* var = mean + k.norms() * k.O;
  share(k.O, k.norms() * k.O * k.taps < 100000 ? 1 : threads, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t o = first; o < last; o++) {
      T* out = kernel + o * k.taps;
      std::fill(out, out + k.taps, T(0));
      const T* patch = m + k.group(o) * k.taps;
      const int64_t center = k.center(o);
      double shift = 0;
      for (int64_t b = 0; b < k.norms(); b++) {
        const int64_t row = b * k.O + o;
        const T* w = k.kernel(b, o);
        const double pixel = b < k.B ? 0 : k.pixel(b, o);
        mean[row] = b < k.B ? dot(w, patch, k.taps) : pixel * patch[center];
        var[row] = std::max(b >= k.B        ? pixel * pixel * pixel_var[o]
                            : kernel_var ? static_cast<double>(kernel_var[row])
                                         : dot(w, q + row * k.taps, k.taps),
                            0.0);
        const double scale = k.gamma(b, o) / std::sqrt(var[row] + k.eps[b]);
        shift += k.beta(b, o) - scale * mean[row];
        if (b < k.B) {
          const T factor = scale;
          for (int64_t i = 0; i < k.taps; i++) out[i] += factor * w[i];
        } else {
          out[center] += scale * pixel;
        }
      }
      bias[o] = shift;
    }
  });
  follow(k, mean);
}

// The adjoint. dk (O, taps), db (O) are the gradients of the kernel and its bias -> those of weights, pixels and affine.
// slopes (B, O, taps): kernels times 2 / count times the gradient of their variance; offset (G, taps): the gradient of
// m over count; pixel_slope (O), of the variance of pixels likewise; these for the map that moments were taken from.
template <typename T>
void fold_grad(const Block<T>& k, const T* m, const T* q, const T* pixel_var, const T* mean, const T* dk, const T* db,
               T* dweights, T* dvectors, T* slopes, T* offset, T* pixel_slope, int64_t threads) {
  const int64_t rows = k.norms() * k.O, size = k.G * k.taps;
  const T* var = mean + rows;
  T *dpixels = dvectors, *daffine = dvectors + k.P * k.O;
  std::vector<double> offsets(size);
  threads = rows * k.taps < 100000 ? 1 : threads;
  share_totals(k.O, threads, size, offsets.data(), [&](int64_t first, int64_t last, double* totals) {
    for (int64_t o = first; o < last; o++) {
      const T *patch = m + k.group(o) * k.taps, *dout = dk + o * k.taps;
      double* to_patch = totals + k.group(o) * k.taps;
      const int64_t center = k.center(o);
      double pixel_sum = 0;
      for (int64_t b = 0; b < k.norms(); b++) {
        const int64_t row = b * k.O + o;
        const T* w = k.kernel(b, o);
        const double pixel = b < k.B ? 0 : k.pixel(b, o);
        const double rstd = 1 / std::sqrt(var[row] + k.eps[b]), scale = k.gamma(b, o) * rstd;
        const double dscale = (b < k.B ? dot(dout, w, k.taps) : dout[center] * pixel) - static_cast<double>(db[o]) * mean[row];
        const double dmean = -scale * db[o], dvar = -0.5 * dscale * scale * rstd * rstd;
        daffine[row] = dscale * rstd;
        daffine[rows + row] = db[o];
        if (b < k.B) {
          const T by_kernel = scale, by_mean = dmean, by_var = 2 * dvar, slope = 2 * dvar / k.count;
          const T* products = q + row * k.taps;
          T *dw = dweights + row * k.taps, *to_slopes = slopes + row * k.taps;
          for (int64_t i = 0; i < k.taps; i++) {
            dw[i] = by_kernel * dout[i] + by_mean * patch[i] + by_var * products[i];
            to_slopes[i] = slope * w[i];
          }
          for (int64_t i = 0; i < k.taps; i++) to_patch[i] += dmean / k.count * w[i];
        } else {
          dpixels[row - k.B * k.O] = scale * dout[center] + dmean * patch[center] + 2 * dvar * pixel * pixel_var[o];
          to_patch[center] += dmean / k.count * pixel;
          pixel_sum += 2 * dvar / k.count * pixel * pixel;
        }
      }
      pixel_slope[o] = pixel_sum;
    }
  });
  for (int64_t i = 0; i < size; i++) offset[i] = offsets[i];
}

// From the results of fold_grad to what plane_grad (50, C) or strided_grad (81 + 9, C) add to the map.
template <typename T>
void depthwise_adjoint(const Block<T>& k, const T* slopes, const T* offset, const T* pixel_slope, const T* m, int64_t stride,
                       T* out) {
  for (int64_t c = 0, C = k.O; c < C; c++) {
    double slope[81] = {}, shift[9], to[50] = {};
    for (int64_t b = 0; b < k.B; b++)
      for (int i = 0; i < 9; i++)
        for (int j = 0; j < 9; j++)
          slope[9 * i + j] += static_cast<double>(slopes[9 * (b * C + c) + i]) * k.kernel(b, c)[j];
    slope[40] += pixel_slope[c];
    for (int i = 0; i < 9; i++) {
      shift[i] = offset[9 * c + i];
      for (int j = 0; j < 9; j++) shift[i] -= slope[9 * i + j] * m[9 * c + j];
    }
    if (stride == 2) {
      for (int i = 0; i < 81; i++) out[i * C + c] = slope[i];
      for (int i = 0; i < 9; i++) out[(81 + i) * C + c] = shift[i];
      continue;
    }
    for (int i = 0; i < 9; i++) {
      for (int j = 0; j < 9; j++) {
        const int pair = 9 * i + j;
        to[5 * (j / 3 - i / 3 + 2) + j % 3 - i % 3 + 2] += slope[pair];
        if (PLACES.row[pair] >= 0) to[10 + PLACES.row[pair]] -= slope[pair] / 2;
        if (PLACES.column[pair] >= 0) to[10 + PLACES.column[pair]] -= slope[pair] / 2;
        if (PLACES.corner[pair] >= 0) to[10 + PLACES.corner[pair]] += slope[pair] / 2;
      }
      to[41] += shift[i];
      if (PLACES.row_sum[i] >= 0) to[41 + PLACES.row_sum[i]] -= shift[i];
      if (PLACES.column_sum[i] >= 0) to[41 + PLACES.column_sum[i]] -= shift[i];
      if (PLACES.corner_sum[i] >= 0) to[41 + PLACES.corner_sum[i]] += shift[i];
    }
    for (int i = 0; i < 50; i++) out[i * C + c] = to[i];
  }
}

// A map and how it lies in memory, from eight numbers.
struct Map {
  int64_t N, C, H, W;
  Steps steps;
};

// (C): about the mean of every channel, of a few images, as patches.py has it.
template <typename T>
void near_mean(const T* x, const Map& map, T* out) {
  const int64_t step = map.N >= 8 ? map.N / 4 : 1, C = map.C;
  std::vector<double> totals(C);
  std::vector<T> row(C);
  int64_t count = 0;
  for (int64_t n = 0; n < map.N; n += step, count += map.H * map.W)
    for (int64_t y = 0; y < map.H; y++) {
      const T* from = x + n * map.steps.image + y * map.steps.row;
      std::fill(row.begin(), row.end(), T(0));
      if (map.steps.channel == 1)
        for (int64_t w = 0; w < map.W; w++)
          for (int64_t c = 0; c < C; c++) row[c] += from[w * map.steps.pixel + c];
      else
        for (int64_t c = 0; c < C; c++)
          for (int64_t w = 0; w < map.W; w++) row[c] += from[c * map.steps.channel + w * map.steps.pixel];
      for (int64_t c = 0; c < C; c++) totals[c] += row[c];
    }
  for (int64_t c = 0; c < C; c++) out[c] = totals[c] / count;
}

// More threads than one take longer to begin than a small map takes.
inline int64_t threads_for(const Map& map, int64_t threads) { return map.N * map.C * map.H * map.W < 20000 ? 1 : threads; }

// A depthwise block as a whole. saved: m (C, 9), q (B, C, 9), variance of the center tap (C), W q (B, C), mean and
// variance of all norms (2, B + P, C).
template <typename T>
struct Saved {
  T *m, *q, *pixel_var, *var, *statistics;
  Saved(T* memory, const Block<T>& k)
      : m(memory), q(m + 9 * k.O), pixel_var(q + 9 * k.B * k.O), var(pixel_var + k.O), statistics(var + k.B * k.O) {}
};

template <typename T>
void depthwise_forward(const Block<T>& k, const Map& map, int64_t stride, const T* x, T* memory, T* kernel, T* bias,
                       int64_t threads) {
  const Saved<T> saved(memory, k);
  std::vector<T> shift(map.C);
  std::vector<double> totals(map.C * (stride == 1 ? PLANE_SUMS : STRIDED_SUMS));
  const auto sums = stride == 1 ? plane_sums<T> : strided_sums<T>;
  near_mean(x, map, shift.data());
  sums(x, map.steps, map.N, map.C, map.H, map.W, shift.data(), totals.data(), threads_for(map, threads));
  depthwise_products(totals.data(), stride, k, saved.m, saved.q, saved.pixel_var, saved.var);
  fold(k, saved.m, saved.q, saved.pixel_var, saved.var, kernel, bias, saved.statistics, threads);
}

// dx may be missing.
template <typename T>
void depthwise_backward(const Block<T>& k, const Map& map, int64_t stride, const T* x, T* dx, const Steps& dx_steps,
                        T* memory, const T* dk, const T* db, T* dweights, T* dvectors, int64_t threads) {
  const Saved<T> saved(memory, k);
  std::vector<T> slopes(k.B * k.O * 9), offset(k.O * 9), pixel_slope(k.O), onto(k.O * 90);
  fold_grad(k, saved.m, saved.q, saved.pixel_var, saved.statistics, dk, db, dweights, dvectors, slopes.data(),
            offset.data(), pixel_slope.data(), threads);
  if (!dx) return;
  depthwise_adjoint(k, slopes.data(), offset.data(), pixel_slope.data(), saved.m, stride, onto.data());
  threads = threads_for(map, threads);
  if (stride == 1)
    plane_grad(x, map.steps, dx, dx_steps, map.N, map.C, map.H, map.W, onto.data(), threads);
  else
    strided_grad(x, map.steps, dx, dx_steps, map.N, map.C, map.H, map.W, onto.data(), onto.data() + 81 * k.O, threads);
}

// What a dense block's map receives, once its slope W^T slopes (taps, taps) is there: pixels add to its diagonal, and the
// mean of a patch is taken off.
template <typename T>
void dense_adjoint(const Block<T>& k, const T* pixel_slope, const T* m, T* slope, T* offset) {
  for (int64_t o = 0; k.P && o < k.O; o++) slope[k.center(o) * (k.taps + 1)] += pixel_slope[o];
  for (int64_t i = 0; i < k.taps; i++) offset[i] -= dot(slope + i * k.taps, m, k.taps);
}

#define EXPORT(T, name)                                                                                               \
  extern "C" void plane_sums_##name(const T* x, const Steps* steps, int64_t N, int64_t C, int64_t H, int64_t W,        \
                                    const T* shift, double* out, int64_t threads) {                                    \
    plane_sums<T>(x, *steps, N, C, H, W, shift, out, threads);                                                         \
  }                                                                                                                    \
  extern "C" void plane_grad_##name(const T* x, const Steps* steps, T* dx, const Steps* dx_steps, int64_t N,           \
                                    int64_t C, int64_t H, int64_t W, const T* kernel, int64_t threads) {               \
    plane_grad<T>(x, *steps, dx, *dx_steps, N, C, H, W, kernel, threads);                                              \
  }                                                                                                                    \
  extern "C" void strided_sums_##name(const T* x, const Steps* steps, int64_t N, int64_t C, int64_t H, int64_t W,      \
                                      const T* shift, double* out, int64_t threads) {                                  \
    strided_sums<T>(x, *steps, N, C, H, W, shift, out, threads);                                                       \
  }                                                                                                                    \
  extern "C" void strided_grad_##name(const T* x, const Steps* steps, T* dx, const Steps* dx_steps, int64_t N,         \
                                      int64_t C, int64_t H, int64_t W, const T* slope, const T* offset,                \
                                      int64_t threads) {                                                               \
    strided_grad<T>(x, *steps, dx, *dx_steps, N, C, H, W, slope, offset, threads);                                     \
  }                                                                                                                    \
  extern "C" void stem_sums_##name(const T* x, const Steps* steps, int64_t N, int64_t C, int64_t H, int64_t W,         \
                                   const T* shift, double* out, int64_t threads) {                                     \
    stem_sums<T>(x, *steps, N, C, H, W, shift, out, threads);                                                          \
  }                                                                                                                    \
  extern "C" void fold_##name(const int64_t* sizes, int64_t count, T* const* tensors, const double* numbers, const T* m, const T* q, \
                              const T* pixel_var, const T* kernel_var, T* kernel, T* bias, T* statistics,              \
                              int64_t threads) {                                                                       \
    fold<T>(Block<T>(sizes, count, tensors, numbers), m, q, pixel_var, kernel_var, kernel, bias, statistics, threads); \
  }                                                                                                                    \
  extern "C" void fold_grad_##name(const int64_t* sizes, int64_t count, T* const* tensors, const double* numbers, const T* m, \
                                   const T* q, const T* pixel_var, const T* statistics, const T* dk, const T* db,      \
                                   T* dweights, T* dvectors, T* slopes, T* offset, T* pixel_slope, int64_t threads) {  \
    fold_grad<T>(Block<T>(sizes, count, tensors, numbers), m, q, pixel_var, statistics, dk, db, dweights, dvectors, slopes, \
                 offset, pixel_slope, threads);                                                                        \
  }                                                                                                                    \
  extern "C" void depthwise_forward_##name(const int64_t* sizes, int64_t count, T* const* tensors, const double* numbers, \
                                           const Map* map, int64_t stride, const T* x, T* saved, T* kernel, T* bias,   \
                                           int64_t threads) {                                                          \
    depthwise_forward<T>(Block<T>(sizes, count, tensors, numbers), *map, stride, x, saved, kernel, bias, threads);     \
  }                                                                                                                    \
  extern "C" void depthwise_backward_##name(const int64_t* sizes, int64_t count, T* const* tensors, const double* numbers, \
                                            const Map* map, int64_t stride, const T* x, T* dx, const Steps* dx_steps,  \
                                            T* saved, const T* dk, const T* db, T* dweights, T* dvectors,              \
                                            int64_t threads) {                                                         \
    depthwise_backward<T>(Block<T>(sizes, count, tensors, numbers), *map, stride, x, dx, *dx_steps, saved, dk, db, dweights, \
                          dvectors, threads);                                                                          \
  }                                                                                                                    \
  extern "C" void dense_adjoint_##name(const int64_t* sizes, int64_t count, T* const* tensors, const double* numbers,  \
                                       const T* pixel_slope, const T* m, T* slope, T* offset) {                        \
    dense_adjoint<T>(Block<T>(sizes, count, tensors, numbers), pixel_slope, m, slope, offset);                         \
  }

EXPORT(float, float32)
EXPORT(double, float64)
