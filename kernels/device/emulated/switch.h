// Fibers' stacks and the switch between them, written by hand: ucontext makes two system calls.

#pragma once

#include <stdint.h>

// Save the registers that a call must keep and the stack pointer into *from; go on at `to`.
extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, . - emu_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch, %function
emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch, . - emu_switch
)");
#else
#error "the emulation knows x86-64 and aarch64"
#endif

namespace {

// Lay out a new stack below `top` so that the first switch to it enters `entry`.
inline void* first_frame(char* top, void (*entry)()) {
  uint64_t* sp = reinterpret_cast<uint64_t*>(uintptr_t(top) & ~uintptr_t(15));
#if defined(__x86_64__)
  constexpr int saved = 6;
  *--sp = 0;  // where entry would return to; it also aligns the stack as a call does
  *--sp = reinterpret_cast<uint64_t>(entry);
#else
  constexpr int saved = 20, link = 11;
#endif
  sp -= saved;
  for (int i = 0; i < saved; ++i) sp[i] = 0;
#if defined(__aarch64__)
  sp[link] = reinterpret_cast<uint64_t>(entry);
#endif
  return sp;
}

}  // namespace
