// A growing array of plain data: the runtime uses no C++ standard library.

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

template <class T>
struct List {
  T* data = nullptr;
  uint32_t count = 0, capacity = 0;

  T& operator[](uint32_t i) { return data[i]; }
  const T& operator[](uint32_t i) const { return data[i]; }
  T* begin() { return data; }
  T* end() { return data + count; }
  T& last() { return data[count - 1]; }

  void reserve(uint32_t wanted) {
    if (wanted <= capacity) return;
    capacity = wanted < 2 * capacity ? 2 * capacity : wanted;
    data = static_cast<T*>(realloc(static_cast<void*>(data), capacity * sizeof(T)));
    if (data == nullptr) abort();
  }
  T& push(const T& value) {
    const T copy = value;  // it may lie in this very list
    reserve(count + 1 < 4 ? 4 : count + 1);
    data[count] = copy;
    return data[count++];
  }
  void insert(uint32_t at, const T& value) {
    push(value);
    const T moved = data[count - 1];
    memmove(static_cast<void*>(data + at + 1), data + at, (count - 1 - at) * sizeof(T));
    data[at] = moved;
  }
  // The order of the others changes.
  void remove(uint32_t at) { data[at] = data[--count]; }
  void remove_in_order(uint32_t at) {
    --count;
    memmove(static_cast<void*>(data + at), data + at + 1, (count - at) * sizeof(T));
  }
  void release() {
    free(static_cast<void*>(data));
    data = nullptr;
    count = capacity = 0;
  }
};

// Zeroed memory for `count` elements.
template <class T>
T* zeroed(uint64_t count) {
  T* block = static_cast<T*>(calloc(count ? count : 1, sizeof(T)));
  if (block == nullptr) abort();
  return block;
}

}  // namespace
