// What the threads of a CTA share: the leader's words for the others, and the layout of the
// CTA's memory: [ark_shared][slots of the weight ring][scratch].

// Threads that compute; one more warp produces the weight stream.
constexpr uint32_t ARK_CONSUMERS = 256;
constexpr uint32_t ARK_WARPS = ARK_CONSUMERS / GPU_WARP;
constexpr uint32_t ARK_THREADS = ARK_CONSUMERS + GPU_WARP;
// Where groups of 4 warps can pass registers on, the producer is one of 4 that give theirs away.
constexpr uint32_t ARK_LAUNCHED = GPU_HAS_SETMAXNREG ? ARK_CONSUMERS + 4 * GPU_WARP : ARK_THREADS;
constexpr int ARK_PRODUCER_REGISTERS = 40, ARK_CONSUMER_REGISTERS = 232;
static_assert(4 * GPU_WARP * ARK_PRODUCER_REGISTERS + ARK_CONSUMERS * ARK_CONSUMER_REGISTERS <= 65536,
              "what a multiprocessor has");
// Barriers: of the consumers, of these and the producer, and of all that are launched.
constexpr int ARK_COMPUTE_BARRIER = 1;
constexpr int ARK_COMMAND_BARRIER = 2;
constexpr int ARK_START_BARRIER = 3;
// At most this many methods in one program; `emit` checks it.
constexpr uint32_t ARK_MAX_METHODS = 64;
constexpr int64_t ARK_NEVER = int64_t(1) << 62;
constexpr uint32_t ARK_NONE = 0xffffffff;

// Thread 0 leads: it alone writes these words, between barriers that others read them after.
struct ark_worker {
  const ark_command* command;
  uint64_t sequence;  // of the last command, counted from 1
  int64_t turn;
  int64_t first_turn;
  int64_t end_turn;
  uint32_t method;
  uint32_t index;
  uint32_t gate;    // of a turn: ARK_GO, ARK_OVER or ARK_QUIT
  uint32_t action;  // of a task: ARK_GO, ARK_SKIP, ARK_OVER at the queue's end, or ARK_QUIT
  uint32_t next;    // rows of the task table that are left of the turn
  uint32_t end;
  uint32_t slot;  // number of the next slot of the weight stream
  uint32_t is_exit;
  uint32_t has_stop, depth;       // of the method
  uint32_t first_row, row_count;  // of the method's queue
  uint32_t ahead;                 // the row that was last asked for
  uint32_t has_failed;            // a task met data that it can't work on
  uint64_t came;   // of a task that is traced: clock when the worker came to it,
  uint64_t began;  // and when its waits held
};
constexpr uint32_t ARK_GO = 0, ARK_SKIP = 1, ARK_OVER = 2, ARK_QUIT = 3;

// What a task is called with; addresses and integers only where ARK_PACKET_PARAMS is not 0.
constexpr uint32_t ARK_PACKET_OPERANDS = 16;
struct alignas(16) ark_packet {
  ark_task row;
  uint64_t operands[ARK_PACKET_OPERANDS];
  int64_t params[ARK_PACKET_PARAMS > 0 ? ARK_PACKET_PARAMS : 1];
};

struct ark_shared {
  ark_worker worker;
  ark_packet packet;
  alignas(16) ark_task ahead;  // the next one's row, on its way
  int64_t turns[ARK_MAX_METHODS];  // each method's next turn
  alignas(16) uint64_t exchange[2 * ARK_WARPS];  // of collectives
  ark_ring ring;
};
constexpr uint32_t ARK_SHARED_BYTES = 2048;
static_assert(sizeof(ark_shared) <= ARK_SHARED_BYTES, "layout");

GPU_FN ark_shared& ark_here() { return *reinterpret_cast<ark_shared*>(gpu_smem()); }
GPU_FN char* ark_ring_slots() { return gpu_smem() + ARK_SHARED_BYTES; }
GPU_FN char* ark_shared_scratch() {
  return gpu_smem() + ARK_SHARED_BYTES + ARK_RING_SLOTS * ARK_SLOT_BYTES;
}
