// Faults: what went wrong, said in words, and the end of the emulation.

#pragma once

#include <stdarg.h>
#include <stdio.h>

#include "state.h"
#include "switch.h"

namespace {

constexpr uint32_t LINE = 600;  // characters of one message

__attribute__((format(printf, 1, 2))) void say(const char* format, ...) {
  char line[LINE];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, LINE, format, arguments);
  va_end(arguments);
  List<char>& text = self->text;
  const uint32_t length = uint32_t(strlen(line));
  text.reserve(text.count + length + 1);
  memcpy(text.data + text.count, line, length + 1);
  text.count += length;
}

// A short text by value.
struct Text {
  char c[240];
};

__attribute__((format(printf, 1, 2))) Text text(const char* format, ...) {
  Text t;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(t.c, sizeof(t.c), format, arguments);
  va_end(arguments);
  return t;
}

Text describe_task(bool in_task, uint32_t method, uint32_t task) {
  return in_task ? text("in task %u of method %u", task, method) : text("outside any task");
}

Text describe(const Fiber& f) {
  return text("CTA %u warp %u lane %u (thread %u) %s", f.cta, f.thread / WARP, f.lane, f.thread,
              describe_task(f.in_task, f.method, f.task).c);
}

Text describe_place(const void* p);  // memory.h

// Note a fault; the scheduler ends at its next look.
#define note_fault(code_, ...)                                              \
  do {                                                                      \
    if (self->code >= 0) {                                                  \
      self->code = code_;                                                   \
      self->text.count = 0;                                                 \
      say(__VA_ARGS__);                                                     \
      say("\n  seed %llu, step %llu", (unsigned long long)self->seed,       \
          (unsigned long long)self->steps);                                 \
    }                                                                       \
  } while (0)

[[noreturn]] void leave_for_good() {
  void* dead;
  Fiber* f = self->current;
  emu_switch(f ? &f->sp : &dead, self->scheduler);
  __builtin_unreachable();
}

// A fault of the running fiber: it never goes on.
#define fault(code_, ...)              \
  do {                                 \
    note_fault(code_, __VA_ARGS__);    \
    leave_for_good();                  \
  } while (0)

}  // namespace
