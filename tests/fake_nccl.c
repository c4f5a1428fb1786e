/* Stand in for libnccl and libcuda without a GPU: ranks are threads, memory is the host's.
 *
 * Calls happen at once instead of on a stream. What a test asks for (fake_*) fails, hangs or
 * goes wrong later; every call is logged. FAKE_VERSION leaves out what that version lacks. */
#include "fake_nccl_ranks.h"

/* --- NCCL -------------------------------------------------------------------------------- */

EXPORT const char* ncclGetErrorString(int code) {
  return code == CUDA_ERROR ? "cuda error" : "error";
}
EXPORT const char* ncclGetLastError(Comm* comm) { (void)comm; return last_error; }
EXPORT int ncclGetVersion(int* version) { *version = FAKE_VERSION; return SUCCESS; }

EXPORT int ncclGetUniqueId(Id* id) {
  memset(id, 0xA5, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "id %d", ++id_count);
  return enter("ncclGetUniqueId", my_rank, "");
}

EXPORT int ncclCommInitRank(Comm** comm, int size, Id id, int rank) {
  return init("ncclCommInitRank", comm, size, id, rank, 0);
}

EXPORT int ncclCommInitAll(Comm** comms, int count, const int* devices) {
  Id id;
  ncclGetUniqueId(&id);
  for (int i = 0; i < count; ++i) {
    my_device = devices[i];
    init("ncclCommInitAll", &comms[i], count, id, i, 1);
  }
  return SUCCESS;
}

#if FAKE_VERSION >= 21400
EXPORT int ncclCommInitRankConfig(Comm** comm, int size, Id id, int rank,
                                  const unsigned char* config) {
  size_t bytes;
  uint32_t magic;
  int blocking;
  memcpy(&bytes, config, 8), memcpy(&magic, config + 8, 4), memcpy(&blocking, config + 16, 4);
  if (magic != (uint32_t)MAGIC || bytes > CONFIG_BYTES) return INVALID_ARGUMENT;
  memcpy(configs[rank], config, bytes);
  return init("ncclCommInitRankConfig", comm, size, id, rank, blocking == 0);
}

EXPORT int ncclCommFinalize(Comm* comm) {
  int code = enter_comm("ncclCommFinalize", comm, "");
  if (!code) comm->finalized = 1;
  return code ? code : IN_PROGRESS;
}
#endif

EXPORT int ncclCommDestroy(Comm* comm) {
  int code = enter_comm("ncclCommDestroy", comm, "");
  if (comm) comm->dead = 1;
  return code;
}

EXPORT int ncclCommAbort(Comm* comm) {
  int code = enter_comm("ncclCommAbort", comm, "");
  if (!comm) return code;
  pthread_mutex_lock(&mutex);
  comm->dead = 1;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&mutex);
  return code;
}

EXPORT int ncclCommGetAsyncError(Comm* comm, int* state) {
  if (comm->dead) return enter_comm("ncclCommGetAsyncError", comm, "");
  pthread_mutex_lock(&mutex);
  *state = comm->clique->arrived < comm->size || comm->stuck ? IN_PROGRESS : SUCCESS;
  if (async_code && async_rank == comm->rank && comm->calls >= async_after) *state = async_code;
  /* What NCCL fills in later comes with the second look. */
  if (comm->late && *state == SUCCESS) {
    *state = IN_PROGRESS;
    if (comm->polls++) *comm->late = comm->late_value, comm->late = 0, comm->polls = 0;
  }
  pthread_mutex_unlock(&mutex);
  return SUCCESS;
}

EXPORT int ncclCommCount(Comm* comm, int* n) { *n = comm->size; return SUCCESS; }
EXPORT int ncclCommUserRank(Comm* comm, int* n) { *n = comm->rank; return SUCCESS; }
EXPORT int ncclCommCuDevice(Comm* comm, int* n) { *n = comm->device; return SUCCESS; }

EXPORT int ncclAllReduce(const void* s, void* r, size_t n, int t, int op, Comm* comm, void* on) {
  return issue("ncclAllReduce", (Op){comm, ALL_REDUCE, s, r, n, t, op, 0}, on);
}
EXPORT int ncclReduce(const void* s, void* r, size_t n, int t, int op, int root, Comm* comm,
                      void* on) {
  return issue("ncclReduce", (Op){comm, REDUCE, s, r, n, t, op, root}, on);
}
EXPORT int ncclReduceScatter(const void* s, void* r, size_t n, int t, int op, Comm* comm,
                             void* on) {
  return issue("ncclReduceScatter", (Op){comm, REDUCE_SCATTER, s, r, n, t, op, 0}, on);
}
EXPORT int ncclAllGather(const void* s, void* r, size_t n, int t, Comm* comm, void* on) {
  return issue("ncclAllGather", (Op){comm, ALL_GATHER, s, r, n, t, 0, 0}, on);
}
EXPORT int ncclBroadcast(const void* s, void* r, size_t n, int t, int root, Comm* comm,
                         void* on) {
  return issue("ncclBroadcast", (Op){comm, BROADCAST, s, r, n, t, 0, root}, on);
}
EXPORT int ncclSend(const void* s, size_t n, int t, int peer, Comm* comm, void* on) {
  return issue("ncclSend", (Op){comm, SEND, s, 0, n, t, 0, peer}, on);
}
EXPORT int ncclRecv(void* r, size_t n, int t, int peer, Comm* comm, void* on) {
  return issue("ncclRecv", (Op){comm, RECV, 0, r, n, t, 0, peer}, on);
}

EXPORT int ncclGroupStart(void) {
  depth++;
  return enter("ncclGroupStart", my_rank, "");
}

EXPORT int ncclGroupEnd(void) {
  int code = enter("ncclGroupEnd", my_rank, "");
  return --depth || code ? code : run_queue();
}

#if FAKE_VERSION >= 21801
EXPORT int ncclCommSplit(Comm* comm, int color, int key, Comm** out, const unsigned char* config) {
  char details[64];
  int wish[2] = {color, key};
  snprintf(details, sizeof details, " color=%d key=%d", color, key);
  if (config) memcpy(configs[comm->rank], config, *(const size_t*)config);
  int code = enter_comm("ncclCommSplit", comm, details);
  if (code) return code;
  pthread_mutex_lock(&mutex);
  Op op = {comm, SPLIT, wish, 0, 0, 0, 0, 0};
  long turn = comm->turn;
  code = meet(&op);
  Comm* part = calloc(1, sizeof(Comm));
  Id id = {{0}};
  snprintf(id.bytes, sizeof id.bytes, "split %p %ld %d", (void*)comm->clique, turn, color);
  for (int rank = 0; rank < comm->size && !code; ++rank) {
    const int* other = comm->clique->slots[turn % SLOTS].send[rank];
    if (other[0] != color) continue;
    part->size++;
    part->rank += other[1] < key || (other[1] == key && rank < comm->rank);
  }
  part->device = comm->device, part->nonblocking = 1;
  part->clique = join(id, part->size);
  part->clique->arrived++;
  comm->late = (void**)out, comm->late_value = part;
  pthread_cond_broadcast(&changed);
  /* `wish` is read by others: leave together. */
  if (!code) code = meet(&op);
  pthread_mutex_unlock(&mutex);
  return code ? code : IN_PROGRESS;
}
#endif

#if FAKE_VERSION >= 21901
EXPORT int ncclMemAlloc(void** pointer, size_t bytes) {
  *pointer = aligned_alloc(4096, bytes);
  return enter("ncclMemAlloc", my_rank, "");
}
EXPORT int ncclMemFree(void* pointer) {
  free(pointer);
  return enter("ncclMemFree", my_rank, "");
}
EXPORT int ncclCommRegister(Comm* comm, void* data, size_t bytes, void** handle) {
  (void)bytes;
  *handle = data;
  return enter_comm("ncclCommRegister", comm, "");
}
EXPORT int ncclCommDeregister(Comm* comm, void* handle) {
  (void)handle;
  return enter_comm("ncclCommDeregister", comm, "");
}
#endif

#if FAKE_VERSION >= 22703
EXPORT int ncclCommWindowRegister(Comm* comm, void* data, size_t bytes, void** window, int flags) {
  char details[64];
  snprintf(details, sizeof details, " bytes=%zu flags=%d", bytes, flags);
  int code = enter_comm("ncclCommWindowRegister", comm, details);
  *window = 0;
  if (code || no_windows) return code;
  comm->late = window, comm->late_value = data;
  return IN_PROGRESS;
}
EXPORT int ncclCommWindowDeregister(Comm* comm, void* window) {
  (void)window;
  return enter_comm("ncclCommWindowDeregister", comm, "");
}
#endif

/* --- the CUDA driver --------------------------------------------------------------------- */

EXPORT int cuInit(unsigned flags) { return (int)flags + enter("cuInit", -1, ""); }
EXPORT int cuDeviceGetCount(int* count) { *count = device_count; return SUCCESS; }
EXPORT int cuDriverGetVersion(int* version) { *version = 12080; return SUCCESS; }
EXPORT int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return SUCCESS; }
EXPORT int cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  memset(uuid, 0, 16);
  uuid[15] = (unsigned char)device;
  return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(intptr_t)(device + 1);
  return SUCCESS;
}
EXPORT int cuCtxSetCurrent(void* context) {
  char details[32];
  /* Ranks are numbered like their GPUs, for calls that name no communicator. */
  my_rank = my_device = (int)(intptr_t)context - 1;
  snprintf(details, sizeof details, " device=%d", my_device);
  return enter("cuCtxSetCurrent", -1, details);
}
EXPORT int cuGetErrorString(int code, const char** text) {
  *text = code == 100 ? "no CUDA-capable device is detected" : "error";
  return SUCCESS;
}
