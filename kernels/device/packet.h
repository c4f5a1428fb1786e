// A task begins with what it was called with near by: while the first warp waits for what the task
// comes after, it has brought the task's row, addresses and integers into the CTA's memory.

// Parts that a row is copied in, by a lane each.
constexpr uint32_t ARK_ROW_PARTS = sizeof(ark_task) / 16;
static_assert(sizeof(ark_task) % 16 == 0, "rows are aligned");

// Start to bring a row of the task table, by the first warp; no other is on its way.
GPU_FN void ark_begin_row(ark_shared& shared, uint32_t row) {
  if (gpu_lane() >= ARK_ROW_PARTS) return;
  const ark_task* task = ark_table<const ark_task>(ark_kernel_launch.tasks) + row;
  const uint32_t offset = 16 * gpu_lane();
  gpu_copy16(reinterpret_cast<char*>(&shared.ahead) + offset,
             reinterpret_cast<const char*>(task) + offset, true);
  gpu_copy_commit();
}

// Bring `count` words of a table, 32 at a time; MOST is a multiple of that.
template <uint32_t MOST, class T>
GPU_FN void ark_bring(T* to, uint64_t table, uint32_t first, uint32_t count) {
  const T* from = ark_table<const T>(table) + first;
#pragma unroll
  for (uint32_t i = gpu_lane(); i < MOST; i += GPU_WARP)
    if (i < count) to[i] = gpu_load_readonly(from + i);
}

// Wait for a row, and bring what it names; by the first warp, while no other is in a task.
GPU_FN void ark_fetch(ark_shared& shared, uint32_t row) {
  gpu_copy_wait<0>();
  if (shared.worker.ahead != row) {
    ark_begin_row(shared, row);
    gpu_copy_wait<0>();
  }
  gpu_sync_warp();
  const ark_task task = shared.ahead;
  if constexpr (ARK_PACKET_PARAMS > 0) {
    ark_bring<ARK_PACKET_PARAMS>(shared.packet.params, ark_kernel_launch.params, task.params,
                                 task.param_count);
    ark_bring<GPU_WARP>(shared.packet.operands, ark_kernel_launch.operands, task.operands,
                        task.operand_count);
  }
  if (gpu_lane() == 0) shared.packet.row = task;
  gpu_sync_warp();
}

// How a task is called, for all consumers.
GPU_FN ark_call ark_call_of(ark_shared& shared) {
  const ark_packet* const packet = gpu_anew(&shared.packet);
  const ark_task* const row = &packet->row;
  ark_worker* const worker = &shared.worker;
  if constexpr (ARK_PACKET_PARAMS > 0)
    return {packet->params, reinterpret_cast<void* const*>(packet->operands), nullptr, worker, row,
            worker->slot};
  else
    return {ark_table<const int64_t>(ark_kernel_launch.params) + row->params,
            ark_table<void* const>(ark_kernel_launch.operands) + row->operands,
            nullptr,
            worker,
            row,
            worker->slot};
}
