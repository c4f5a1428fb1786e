// The emulation of a GPU: all CTAs of a kernel as fibers on one OS thread. This is the whole
// runtime; it is compiled apart from the program, without its hooks. Below is its C API.

#include <signal.h>

#include "world.h"

#define EMU_API __attribute__((visibility("default"), used))

namespace {

constexpr uint64_t STEP_LIMIT_DEFAULT = 20000000;
constexpr uint32_t SIGNALS = 4;
constexpr int CAUGHT[SIGNALS] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// A crash of a fiber is its fault, not the end of the process.
void on_signal(int number, siginfo_t* info, void*) {
  if (self == nullptr || self->current == nullptr) {
    signal(number, SIG_DFL);
    return;
  }
  const Fiber& f = *self->current;
  const uint64_t in_stack = uint64_t(static_cast<char*>(info->si_addr) - f.stack);
  if (number == SIGSEGV && in_stack < GUARD_BYTES)
    fault(CRASH, "stack overflow: %s uses more than %llu bytes of local memory", describe(f).c,
          (unsigned long long)(STACK_BYTES - GUARD_BYTES));
  fault(CRASH, "crash: signal %d at %s by %s", number, describe_place(info->si_addr).c,
        describe(f).c);
}

// Signals lead to on_signal, on a stack of its own, while this lives.
struct CaughtSignals {
  static constexpr uint64_t bytes = 64 << 10;
  stack_t old_stack;
  struct sigaction old[SIGNALS];
  char* block;

  CaughtSignals() : block(map_memory(bytes)) {
    stack_t stack = {};
    stack.ss_sp = block;
    stack.ss_size = bytes;
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (uint32_t i = 0; i < SIGNALS; ++i) sigaction(CAUGHT[i], &action, &old[i]);
  }
  ~CaughtSignals() {
    for (uint32_t i = 0; i < SIGNALS; ++i) sigaction(CAUGHT[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
    munmap(block, bytes);
  }
};

// `self` is this emulation while this lives.
struct Current {
  emu* before;
  explicit Current(emu* e) : before(self) { self = e; }
  ~Current() { self = before; }
};

}  // namespace

extern "C" {

// `threads` is a multiple of 32. Flags: 1 waits with a limit end when nothing else can happen.
EMU_API emu* emu_create(void (*kernel)(), uint32_t ctas, uint32_t threads, uint64_t smem_bytes,
                        uint64_t seed, uint32_t flags) {
  if (ctas == 0 || threads == 0 || threads % WARP != 0) return nullptr;
  emu* e = zeroed<emu>(1);
  const Current current(e);
  e->kernel = kernel;
  e->ctas = ctas;
  e->threads = threads;
  e->smem_bytes = smem_bytes;
  e->seed = e->random = seed;
  e->flags = flags;
  e->step_limit = STEP_LIMIT_DEFAULT;
  make_world();
  find_module(reinterpret_cast<const void*>(kernel));
  return e;
}

// How many times fibers may run in one emu_resume.
EMU_API void emu_set_step_limit(emu* e, uint64_t steps) { e->step_limit = steps; }

// Name global memory; nothing else may be touched.
EMU_API void emu_buffer(emu* e, const char* name, uint64_t address, uint64_t bytes,
                        uint32_t is_writable) {
  Buffer b = {};
  snprintf(b.name, sizeof(b.name), "%s", name);
  b.address = reinterpret_cast<char*>(address);
  b.bytes = bytes;
  b.is_writable = is_writable != 0;
  e->buffers.push(b);
  e->is_sorted = false;
}

// Declare a box that a task reads or writes; strides in elements. A buffer in which any task has
// a box may be touched only inside boxes.
EMU_API void emu_box(emu* e, uint32_t method, uint32_t task, uint32_t is_write, uint64_t address,
                     uint32_t itemsize, uint32_t dims, const int64_t* extents,
                     const int64_t* strides) {
  const Current current(e);
  const Boxes* boxes = find_boxes(method, task, true);
  const char* at = reinterpret_cast<const char*>(address);
  add_box(is_write ? *boxes->writes : *boxes->reads, at, itemsize, dims, extents, strides);
  for (Buffer& b : e->buffers)
    if (at >= b.address && at < b.address + b.bytes) b.itemsize = itemsize;
  e->is_sorted = false;
}

// Run until all wait for the host (0), all have exited (1), or a fault (below 0).
EMU_API int emu_resume(emu* e) {
  if (e->code != IDLE) return e->code;
  const Current current(e);
  settle_declarations();
  learn(e->from_host, e->to_host);
  const CaughtSignals caught;
  return e->code < 0 ? e->code : run();
}

// Write the fault, or what all wait for, as zero-terminated text; returns its whole length.
EMU_API uint64_t emu_report(emu* e, char* text, uint64_t size) {
  const Current current(e);
  if (e->code >= 0) {
    e->text.count = 0;
    say("%u of %u threads run", e->live, fiber_count());
    say_waits();
  }
  if (size != 0) snprintf(text, size, "%s", e->text.data);
  return e->text.count;
}

// Steps so far, and a number that stands for their order.
EMU_API uint64_t emu_steps(const emu* e) { return e->steps; }
EMU_API uint64_t emu_digest(const emu* e) { return e->digest; }

EMU_API void emu_destroy(emu* e) {
  {
    const Current current(e);
    free_world();
  }
  free(e);
}

// --- what a program asks about the running thread -----------------------------------------------

uint32_t emu_thread() { return self->current->thread; }
uint32_t emu_block() { return self->current->cta; }
uint32_t emu_grid() { return self->ctas; }
char* emu_smem() { return cta_of(*self->current).smem; }

void emu_task_begin(uint32_t method, uint32_t task) {
  Fiber& f = *self->current;
  if (f.in_task)
    fault(UNDECLARED, "gpu_task_begin(%u, %u) by %s, which is still in that task", method, task,
          describe(f).c);
  const Boxes* boxes = find_boxes(method, task, false);
  f.in_task = true;
  f.method = method;
  f.task = task;
  f.reads = boxes != nullptr ? boxes->reads : nullptr;
  f.writes = boxes != nullptr ? boxes->writes : nullptr;
  if (RACE) f.notes.push({f.time, method, task});
}

void emu_task_end() {
  Fiber& f = *self->current;
  if (!f.in_task) fault(UNDECLARED, "gpu_task_end by %s", describe(f).c);
  f.in_task = false;
  f.reads = f.writes = nullptr;
  if (RACE) f.notes.push({f.time, 0, NONE});
}

}  // extern "C"
