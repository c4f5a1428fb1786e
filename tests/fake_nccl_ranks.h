/* How the ranks of the fake libnccl meet, move data, and fail where a test wants it. */
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef FAKE_VERSION
#define FAKE_VERSION 23203
#endif
#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE,
       REMOTE_ERROR, IN_PROGRESS };
enum { MAX_RANKS = 8, MAX_CLIQUES = 64, MAX_FAULTS = 16, SLOTS = 64, QUEUE = 64, MAX_MAIL = 64,
       LOG_BYTES = 1 << 16, CONFIG_BYTES = 256, WAIT_S = 20, MAGIC = 0xcafebeef };
static const int ITEM_BYTES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};

typedef struct { char bytes[128]; } Id;

/* Where the ranks meet for their n-th collective call. */
typedef struct { long turn; int posted, done, kind[MAX_RANKS]; const void* send[MAX_RANKS];
                 void* recv[MAX_RANKS]; size_t count; int dtype, op, root, mismatch; } Slot;
typedef struct { int src, dst, dtype; size_t count; void* data; } Mail;
typedef struct { Id id; int size, arrived, mail_count; Slot slots[SLOTS];
                 Mail mail[MAX_MAIL]; } Clique;
typedef struct { Clique* clique; int rank, size, device, nonblocking, dead, stuck, calls, polls,
                 finalized; long turn; void** late; void* late_value; } Comm;
typedef struct { char call[64]; int rank, code, after; } Fault;
typedef struct { Comm* comm; int kind; const void* send; void* recv; size_t count; int dtype, op,
                 root; } Op;
enum { ALL_REDUCE = 1, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, SEND, RECV, SPLIT };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Clique* cliques[MAX_CLIQUES];
static int clique_count, id_count, fault_count, device_count = MAX_RANKS, async_rank, async_code,
    async_after, no_windows, sleep_ms, sleep_rank;
static Fault faults[MAX_FAULTS];
static char log_text[LOG_BYTES], sleep_call[64];
static unsigned char configs[MAX_RANKS][CONFIG_BYTES];
static __thread int my_rank = -1, my_device, depth, queued;
static __thread Op queue[QUEUE];
static __thread char last_error[256];

/* --- what tests use ---------------------------------------------------------------------- */

EXPORT void fake_reset(void) {
  pthread_mutex_lock(&mutex);
  clique_count = fault_count = async_code = no_windows = 0;
  device_count = MAX_RANKS;
  log_text[0] = sleep_call[0] = 0;
  memset(configs, 0, sizeof configs);
  pthread_mutex_unlock(&mutex);
}

/* Let a call of a rank (-1: all) fail with a code after `after` good ones; 7 never ends. */
EXPORT void fake_fail(const char* call, int rank, int code, int after) {
  Fault* fault = &faults[fault_count++];
  snprintf(fault->call, sizeof fault->call, "%s", call);
  fault->rank = rank, fault->code = code, fault->after = after;
}

/* Let a rank's state become a code after so many collective calls. */
EXPORT void fake_async(int rank, int code, int after) {
  async_rank = rank, async_code = code, async_after = after;
}

EXPORT void fake_sleep(const char* call, int rank, int ms) {
  snprintf(sleep_call, sizeof sleep_call, "%s", call);
  sleep_rank = rank, sleep_ms = ms;
}

EXPORT void fake_no_windows(void) { no_windows = 1; }
EXPORT void fake_devices(int count) { device_count = count; }
EXPORT const char* fake_log(void) { return log_text; }
EXPORT const unsigned char* fake_config(int rank) { return configs[rank]; }

EXPORT void fake_note(int rank, const char* format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  pthread_mutex_lock(&mutex);
  size_t used = strlen(log_text);
  snprintf(log_text + used, LOG_BYTES - used, "%d %s\n", rank, line);
  pthread_mutex_unlock(&mutex);
}

/* --- inside ------------------------------------------------------------------------------ */

/* Log a call and find the code that a test wants of it. */
static int enter(const char* call, int rank, const char* details) {
  fake_note(rank, "%s%s", call, details);
  if (!strcmp(call, sleep_call) && (sleep_rank < 0 || sleep_rank == rank)) usleep(sleep_ms * 1000);
  for (int i = 0; i < fault_count; ++i) {
    if (strcmp(faults[i].call, call) || (faults[i].rank >= 0 && faults[i].rank != rank)) continue;
    if (faults[i].after-- > 0) continue;
    snprintf(last_error, sizeof last_error, "fake: %s of rank %d", call, rank);
    return faults[i].code;
  }
  return SUCCESS;
}

static int enter_comm(const char* call, Comm* comm, const char* details) {
  if (!comm || comm->dead) {
    fake_note(comm ? comm->rank : -1, "%s USED A DEAD COMMUNICATOR", call);
    return INVALID_ARGUMENT;
  }
  int code = enter(call, comm->rank, details);
  if (code == IN_PROGRESS) comm->stuck = 1;
  return code;
}

static double at(const void* data, int dtype, size_t i) {
  uint32_t bits;
  float value;
  switch (dtype) {
    case 2: return ((const int32_t*)data)[i];
    case 4: return (double)((const int64_t*)data)[i];
    case 7: return ((const float*)data)[i];
    case 8: return ((const double*)data)[i];
    case 9:
      bits = (uint32_t)((const uint16_t*)data)[i] << 16;
      memcpy(&value, &bits, 4);
      return value;
    default: return ((const uint8_t*)data)[i];
  }
}

static void put(void* data, int dtype, size_t i, double value) {
  uint32_t bits;
  float narrow = (float)value;
  switch (dtype) {
    case 2: ((int32_t*)data)[i] = (int32_t)value; return;
    case 4: ((int64_t*)data)[i] = (int64_t)value; return;
    case 7: ((float*)data)[i] = narrow; return;
    case 8: ((double*)data)[i] = value; return;
    case 9:
      memcpy(&bits, &narrow, 4);
      ((uint16_t*)data)[i] = (uint16_t)(bits >> 16);
      return;
    default: ((uint8_t*)data)[i] = (uint8_t)value;
  }
}

static double reduced(Slot* slot, int size, size_t i) {
  double value = at(slot->send[0], slot->dtype, i);
  for (int rank = 1; rank < size; ++rank) {
    double next = at(slot->send[rank], slot->dtype, i);
    if (slot->op == 1) value *= next;
    else if (slot->op == 2) value = value > next ? value : next;
    else if (slot->op == 3) value = value < next ? value : next;
    else value += next;
  }
  return slot->op == 4 ? value / size : value;
}

static void compute(Slot* slot, int size, int kind) {
  size_t count = slot->count, bytes = count * ITEM_BYTES[slot->dtype];
  if (kind == ALL_GATHER || kind == BROADCAST) {
    size_t parts = kind == ALL_GATHER ? size : 1;
    char* all = malloc(parts * bytes + 1);
    for (size_t p = 0; p < parts; ++p)
      memcpy(all + p * bytes, slot->send[kind == ALL_GATHER ? (int)p : slot->root], bytes);
    for (int rank = 0; rank < size; ++rank) memcpy(slot->recv[rank], all, parts * bytes);
    free(all);
  } else if (kind != SPLIT) {
    size_t total = kind == REDUCE_SCATTER ? count * size : count;
    char* all = malloc(total * ITEM_BYTES[slot->dtype] + 1);
    for (size_t i = 0; i < total; ++i) put(all, slot->dtype, i, reduced(slot, size, i));
    for (int rank = 0; rank < size; ++rank) {
      if (kind == REDUCE && rank != slot->root) continue;
      memcpy(slot->recv[rank], all + (kind == REDUCE_SCATTER ? rank * bytes : 0), bytes);
    }
    free(all);
  }
}

static int wait_for_change(Comm* comm, struct timespec* limit) {
  if (comm->dead) return SYSTEM_ERROR;
  return pthread_cond_timedwait(&changed, &mutex, limit) ? SYSTEM_ERROR : SUCCESS;
}

static struct timespec deadline(void) {
  struct timespec limit;
  clock_gettime(CLOCK_REALTIME, &limit);
  limit.tv_sec += WAIT_S;
  return limit;
}

/* Meet the other ranks for a collective call; the last one computes. The mutex is held. */
static int meet(Op* op) {
  Comm* comm = op->comm;
  struct timespec limit = deadline();
  Slot* slot = &comm->clique->slots[comm->turn % SLOTS];
  if (slot->turn != comm->turn + 1) memset(slot, 0, sizeof *slot), slot->turn = comm->turn + 1;
  comm->turn++;
  slot->kind[comm->rank] = op->kind;
  slot->send[comm->rank] = op->send, slot->recv[comm->rank] = op->recv;
  if (slot->posted && (slot->count != op->count || slot->dtype != op->dtype)) slot->mismatch = 1;
  slot->count = op->count, slot->dtype = op->dtype, slot->op = op->op, slot->root = op->root;
  if (++slot->posted == comm->size) {
    if (!slot->mismatch) compute(slot, comm->size, op->kind);
    slot->done = 1;
    pthread_cond_broadcast(&changed);
  }
  while (!slot->done)
    if (wait_for_change(comm, &limit)) return SYSTEM_ERROR;
  return slot->mismatch ? INVALID_USAGE : SUCCESS;
}

static void mail_send(Op* op) {
  size_t bytes = op->count * ITEM_BYTES[op->dtype];
  Clique* clique = op->comm->clique;
  Mail mail = {op->comm->rank, op->root, op->dtype, op->count, malloc(bytes + 1)};
  memcpy(mail.data, op->send, bytes);
  clique->mail[clique->mail_count++] = mail;
  pthread_cond_broadcast(&changed);
}

static int mail_recv(Op* op) {
  Clique* clique = op->comm->clique;
  struct timespec limit = deadline();
  for (;;) {
    for (int i = 0; i < clique->mail_count; ++i) {
      Mail mail = clique->mail[i];
      if (mail.src != op->root || mail.dst != op->comm->rank) continue;
      memmove(&clique->mail[i], &clique->mail[i + 1], (--clique->mail_count - i) * sizeof mail);
      int fits = mail.count == op->count && mail.dtype == op->dtype;
      if (fits) memcpy(op->recv, mail.data, mail.count * ITEM_BYTES[mail.dtype]);
      free(mail.data);
      return fits ? SUCCESS : INVALID_USAGE;
    }
    if (wait_for_change(op->comm, &limit)) return SYSTEM_ERROR;
  }
}

static int run_queue(void) {
  int code = SUCCESS;
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < queued; ++i)
    if (queue[i].kind == SEND) mail_send(&queue[i]);
  for (int i = 0; i < queued && !code; ++i) {
    if (queue[i].kind == RECV) code = mail_recv(&queue[i]);
    else if (queue[i].kind != SEND) code = meet(&queue[i]);
  }
  queued = 0;
  pthread_mutex_unlock(&mutex);
  return code;
}

static int issue(const char* call, Op op, void* stream) {
  char details[128];
  snprintf(details, sizeof details, " count=%zu dtype=%d op=%d root=%d stream=%ld depth=%d",
           op.count, op.dtype, op.op, op.root, (long)stream, depth);
  int code = enter_comm(call, op.comm, details);
  if (code) return code;
  op.comm->calls++;
  queue[queued++] = op;
  return depth ? SUCCESS : run_queue();
}

static Clique* join(Id id, int size) {
  for (int i = 0; i < clique_count; ++i)
    if (!memcmp(&cliques[i]->id, &id, sizeof id)) return cliques[i];
  Clique* clique = cliques[clique_count++] = calloc(1, sizeof(Clique));
  clique->id = id, clique->size = size;
  return clique;
}

static int init(const char* call, Comm** out, int size, Id id, int rank, int nonblocking) {
  my_rank = rank;
  int code = enter(call, rank, "");
  if (code && code != IN_PROGRESS) return code;
  Comm* comm = *out = calloc(1, sizeof(Comm));
  pthread_mutex_lock(&mutex);
  comm->clique = join(id, size);
  comm->rank = rank, comm->size = size, comm->device = my_device;
  comm->nonblocking = nonblocking, comm->stuck = code == IN_PROGRESS;
  comm->clique->arrived += code == SUCCESS;
  pthread_cond_broadcast(&changed);
  struct timespec limit = deadline();
  while (!nonblocking && comm->clique->arrived < size && !code)
    code = wait_for_change(comm, &limit);
  pthread_mutex_unlock(&mutex);
  return nonblocking ? IN_PROGRESS : code;
}
