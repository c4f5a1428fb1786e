// Device primitives on a GPU: the only place with CUDA built-ins and PTX. The emulation in
// ../emulated has the same names. sm_80 and newer; 64-bit Linux; compiled by NVRTC.

#pragma once

#include "gpu_copies.h"
#include "gpu_memory.h"
#include "gpu_tensor.h"
#include "gpu_words.h"

// Give up or claim registers, per warp group of 128 threads; N is a multiple of 8.
template <int N>
GPU_FN void gpu_set_max_registers_dec() {
#if GPU_HAS_SETMAXNREG
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
GPU_FN void gpu_set_max_registers_inc() {
#if GPU_HAS_SETMAXNREG
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// The emulation checks that a task touches only what it declared. Here the thread's number is read
// once for all of the task.
GPU_FN void gpu_task_begin(uint32_t, uint32_t) { asm volatile("" ::"r"(gpu_thread())); }
GPU_FN void gpu_task_end() {}
