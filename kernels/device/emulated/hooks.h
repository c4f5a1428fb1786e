// What compilers call: every access of a program built for race mode, and misaligned ones of any.

#pragma once

#include "schedule.h"

namespace {

// The prefix of clang's and gcc's record about a misaligned access.
struct MisalignedData {
  const char* file;
  uint32_t line, column;
  const struct {
    uint16_t kind, info;
    char name[1];
  } * type;
  uint8_t log_alignment, access;
};

void report_misaligned(const MisalignedData* data, uintptr_t address) {
  if (self == nullptr || self->current == nullptr) return;
  const void* p = reinterpret_cast<const void*>(address);
  constexpr const char* accesses[] = {"load", "store", "reference", "member access"};
  constexpr uint32_t known = sizeof(accesses) / sizeof(accesses[0]);
  fault(MISALIGNED, "misaligned: a %s of type %s at %s, which is no multiple of %u bytes, by %s\n"
        "  at line %u of the program",
        data->access < known ? accesses[data->access] : "use", data->type->name,
        describe_place(p).c, 1u << data->log_alignment, describe(*self->current).c, data->line);
}

inline void on_access(const void* address, uint64_t bytes, bool is_write) {
  if (self == nullptr || self->current == nullptr) return;
  const Fiber& f = *self->current;
  if (uint64_t(static_cast<const char*>(address) - f.stack) < self->stack_bytes) return;
  const char* what = is_write ? "writes" : "reads";
  const Place place = check_access(address, bytes, is_write, PLAIN, what);
  note_access(place, address, bytes, is_write, false, what);
}

inline void on_aligned(const void* address, uint64_t bytes, bool is_write) {
  if (self == nullptr || self->current == nullptr) return;
  check_alignment(address, bytes, is_write ? "writes" : "reads");
  on_access(address, bytes, is_write);
}

}  // namespace

#define EMU_HOOK __attribute__((visibility("hidden"), used)) void

extern "C" {

EMU_HOOK __ubsan_handle_type_mismatch_v1(const MisalignedData* data, uintptr_t address) {
  report_misaligned(data, address);
}
EMU_HOOK __ubsan_handle_type_mismatch_v1_abort(const MisalignedData* data, uintptr_t address) {
  report_misaligned(data, address);
}

#if EMU_RACE
// GPUs have no unaligned accesses: what a compiler calls unaligned is the same to us.
#define EMU_HOOKS(bytes)                                                                       \
  EMU_HOOK __tsan_read##bytes(const void* p) { on_aligned(p, bytes, false); }                  \
  EMU_HOOK __tsan_write##bytes(const void* p) { on_aligned(p, bytes, true); }                  \
  EMU_HOOK __tsan_volatile_read##bytes(const void* p) { on_aligned(p, bytes, false); }         \
  EMU_HOOK __tsan_volatile_write##bytes(const void* p) { on_aligned(p, bytes, true); }         \
  EMU_HOOK __tsan_unaligned_read##bytes(const void* p) { on_aligned(p, bytes, false); }        \
  EMU_HOOK __tsan_unaligned_write##bytes(const void* p) { on_aligned(p, bytes, true); }        \
  EMU_HOOK __tsan_read_write##bytes(const void* p) {                                           \
    on_aligned(p, bytes, false);                                                               \
    on_aligned(p, bytes, true);                                                                \
  }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
EMU_HOOK __tsan_read_range(const void* p, uint64_t bytes) { on_access(p, bytes, false); }
EMU_HOOK __tsan_write_range(const void* p, uint64_t bytes) { on_access(p, bytes, true); }
EMU_HOOK __tsan_init() {}
EMU_HOOK __tsan_func_entry(void*) {}
EMU_HOOK __tsan_func_exit() {}
EMU_HOOK* __tsan_memcpy(void* to, const void* from, uint64_t bytes) {
  on_access(from, bytes, false);
  on_access(to, bytes, true);
  return memcpy(to, from, bytes);
}
EMU_HOOK* __tsan_memmove(void* to, const void* from, uint64_t bytes) {
  on_access(from, bytes, false);
  on_access(to, bytes, true);
  return memmove(to, from, bytes);
}
EMU_HOOK* __tsan_memset(void* to, int value, uint64_t bytes) {
  on_access(to, bytes, true);
  return memset(to, value, bytes);
}
#endif

}  // extern "C"
