/* libnvidia-ml.so.1 for a machine without a GPU. Every call answers from two places, read anew each time:
 *
 *   $FAKE_NVML       (else /etc/fake-nvml)       a text file, which a test may edit while programs run
 *   $FAKE_NVML_HELD  (else /etc/fake-nvml-held)  a folder: one file for each engine that holds GPU memory
 *
 * The text file holds one record a line, its fields parted by ';':
 *   system; driver=580.95.05; cuda=13000
 *   gpu; name=..; uuid=GPU-..; bus=00000000:01:00.0; total=24564; reserved=458; used=812; cc=8.9; mig=off; ..
 *   mig; gpu=0; uuid=MIG-..; name=..; total=19968; used=25; gi=1; ci=0
 *   proc; gpu=0; pid=4242; used=612         (graphics; likewise)
 *   error; call=nvmlDeviceGetMemoryInfo; code=15; gpu=1   (no gpu: on all of them; call=nvmlInit: the start)
 * Memory in MiB, power in mW. A reading that a record leaves out is "Not Supported".
 *
 * A held file has lines "gpu=UUID bytes=N". It counts while a process has a POSIX lock on it: the kernel
 * drops the lock however that process dies, and F_GETLK tells its pid as seen from here, also when it lives in
 * a container.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MIB (1024ULL * 1024ULL)
typedef int R;
typedef void *D;
typedef unsigned U;
typedef unsigned long long U64;
enum {
  OK = 0,
  UNINIT = 1,
  INVALID = 2,
  UNSUPPORTED = 3,
  NOTFOUND = 6,
  SMALL = 7,
  NODRIVER = 9,
  BADVERSION = 25
};
enum { MAXREC = 256, MIGBASE = 1000 };

static __thread char text[65536], *rec[MAXREC];
static __thread int nrec;
static int inited;

static const char *path_of(const char *var, const char *fallback) {
  const char *p = getenv(var);
  return p && *p ? p : fallback;
}

static void load(void) {
  FILE *f = fopen(path_of("FAKE_NVML", "/etc/fake-nvml"), "r");
  size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
  char *save = 0;
  if (f) fclose(f);
  text[n] = 0;
  nrec = 0;
  for (char *l = strtok_r(text, "\n", &save); l && nrec < MAXREC; l = strtok_r(0, "\n", &save)) {
    l += strspn(l, " \t");
    if (*l && *l != '#') rec[nrec++] = l;
  }
}
static int is(int i, const char *kind) {
  size_t n = strlen(kind);
  return !strncmp(rec[i], kind, n) && (!rec[i][n] || strchr("; ", rec[i][n]));
}
static int field(int i, const char *key, char *out, size_t size) {
  size_t n = strlen(key);
  for (char *p = rec[i]; (p = strchr(p, ';'));) {
    p += 1 + strspn(p + 1, " ");
    if (strncmp(p, key, n) || p[n] != '=') continue;
    size_t m = strcspn(p + n + 1, ";");
    while (m && p[n + m] == ' ') m--;
    snprintf(out, size, "%.*s", (int)m, p + n + 1);
    return 1;
  }
  return 0;
}
static long num(int i, const char *key, long fallback) {
  char b[64];
  return field(i, key, b, sizeof b) ? strtol(b, 0, 0) : fallback;
}
static int nth(const char *kind, int gpu, int n) { /* the n-th record of a kind, of one GPU where gpu >= 0 */
  for (int i = 0; i < nrec; i++)
    if (is(i, kind) && (gpu < 0 || num(i, "gpu", 0) == gpu) && n-- == 0) return i;
  return -1;
}
static R asked(const char *call, int gpu) {
  char b[96];
  for (int i = 0; i < nrec; i++)
    if (is(i, "error") && field(i, "call", b, sizeof b) && !strcmp(b, call) &&
        (gpu < 0 || num(i, "gpu", gpu) == gpu))
      return (R)num(i, "code", 999);
  return OK;
}

/* A handle is a position, not a record number: it outlives edits of the file. */
static D handle(int mig, int n) { return (D)(size_t)(n + 1 + (mig ? MIGBASE : 0)); }
static int record(D d) {
  size_t n = (size_t)d;
  return !n ? -1 : n > MIGBASE ? nth("mig", -1, (int)(n - MIGBASE - 1)) : nth("gpu", -1, (int)(n - 1));
}
static int position(int r) {
  int n = -1;
  for (int i = 0; i <= r; i++) n += is(i, is(r, "mig") ? "mig" : "gpu");
  return n;
}
static int card(int r) { return is(r, "mig") ? (int)num(r, "gpu", 0) : position(r); }
static void uuid_of(int r, char *out, size_t size) {
  if (!field(r, "uuid", out, size)) snprintf(out, size, "GPU-00000000-0000-0000-0000-%012d", position(r));
}

static R enter(const char *call, D d, int *r) {
  if (!inited) return UNINIT;
  load();
  *r = record(d);
  return *r < 0 ? INVALID : asked(call, card(*r));
}
#define ENTER(d) int r; R e_ = enter(__func__, d, &r); if (e_) return e_
#define SYSTEM()                                                                                             \
  do {                                                                                                       \
    if (!inited) return UNINIT;                                                                              \
    load();                                                                                                  \
    R e_ = asked(__func__, -1);                                                                              \
    if (e_) return e_;                                                                                       \
  } while (0)

static R put(char *out, U size, const char *value) {
  if (strlen(value) >= size) return SMALL;
  strcpy(out, value);
  return OK;
}
static R str(int r, const char *key, char *out, U size, const char *fallback) {
  char b[256];
  return put(out, size, r >= 0 && field(r, key, b, sizeof b) ? b : fallback);
}
static R reading(int r, const char *key, U *out) {
  char b[64];
  if (!field(r, key, b, sizeof b)) return UNSUPPORTED;
  *out = (U)strtoul(b, 0, 0);
  return OK;
}

/* ---- what engines hold ---- */
typedef struct { U pid; U64 used; U gi, ci; } Proc;
/* Live holders of the device of record r, or of a slice of it. */
static int held(int r, Proc *out, int room) {
  const char *dir = path_of("FAKE_NVML_HELD", "/etc/fake-nvml-held");
  char mine[64], line[256], uuid[96], slice[96];
  DIR *d = opendir(dir);
  int n = 0;
  uuid_of(r, mine, sizeof mine);
  for (struct dirent *e; d && (e = readdir(d));) {
    if (e->d_name[0] == '.') continue;
    int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    FILE *f = fd < 0 || fcntl(fd, F_GETLK, &l) || l.l_type == F_UNLCK ? 0 : fdopen(fd, "r");
    if (!f) { if (fd >= 0) close(fd); continue; }
    while (fgets(line, sizeof line, f)) {
      U64 bytes = 0;
      int hit = -1;
      if (sscanf(line, "gpu=%95s bytes=%llu", uuid, &bytes) != 2) continue;
      if (!strcmp(uuid, mine)) hit = r;
      for (int i = 0, m; hit < 0 && is(r, "gpu") && (m = nth("mig", position(r), i)) >= 0; i++)
        if (field(m, "uuid", slice, sizeof slice) && !strcmp(slice, uuid)) hit = m;
      if (hit < 0) continue;
      if (n < room)
        out[n] = (Proc){l.l_pid > 0 ? (U)l.l_pid : 0, bytes, (U)num(hit, "gi", -1), (U)num(hit, "ci", -1)};
      n++;
    }
    fclose(f);
  }
  if (d) closedir(d);
  return n;
}

/* ---- system ---- */
API R nvmlInitWithFlags(U flags) {
  (void)flags;
  load();
  R e = asked("nvmlInit", -1);
  if (e) return e;
  if (!nrec) return NODRIVER;
  inited++;
  return OK;
}
API R nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API R nvmlInit(void) { return nvmlInitWithFlags(0); }
API R nvmlShutdown(void) { if (!inited) return UNINIT; inited--; return OK; }
API const char *nvmlErrorString(R e) {
  static const struct {
    R code;
    const char *text;
  } t[] = {{0, "The operation was successful"},
           {1, "Uninitialized"},
           {2, "Invalid Argument"},
           {3, "Not Supported"},
           {4, "Insufficient Permissions"},
           {6, "Not Found"},
           {7, "Insufficient Size"},
           {9, "Driver Not Loaded"},
           {10, "Timeout"},
           {12, "NVML Shared Library Not Found"},
           {13, "Function Not Found"},
           {15, "GPU is lost"},
           {16, "GPU requires restart"},
           {18, "Driver/library version mismatch"},
           {19, "In use by another client"},
           {20, "Insufficient Memory"},
           {25, "Argument version mismatch"}};
  for (size_t i = 0; i < sizeof t / sizeof *t; i++) if (t[i].code == e) return t[i].text;
  return "Unknown Error";
}
API R nvmlSystemGetDriverVersion(char *v, U n) {
  SYSTEM();
  return str(nth("system", -1, 0), "driver", v, n, "580.95.05");
}
API R nvmlSystemGetNVMLVersion(char *v, U n) {
  char d[64], b[80];
  SYSTEM();
  R e = str(nth("system", -1, 0), "driver", d, sizeof d, "580.95.05");
  snprintf(b, sizeof b, "13.%s", d);
  return e ? e : put(v, n, b);
}
API R nvmlSystemGetCudaDriverVersion_v2(int *v) {
  SYSTEM();
  int s = nth("system", -1, 0);
  *v = s < 0 ? 13000 : (int)num(s, "cuda", 13000);
  return OK;
}
API R nvmlSystemGetCudaDriverVersion(int *v) { return nvmlSystemGetCudaDriverVersion_v2(v); }
API R nvmlSystemGetProcessName(U pid, char *v, U n) {
  SYSTEM();
  char p[64];
  snprintf(p, sizeof p, "/proc/%u/cmdline", pid);
  FILE *f = fopen(p, "r");
  if (!f) return NOTFOUND;
  if (!fgets(v, (int)n, f)) *v = 0;
  fclose(f);
  return OK;
}

/* ---- devices ---- */
API R nvmlDeviceGetCount_v2(U *n) { SYSTEM(); for (*n = 0; nth("gpu", -1, (int)*n) >= 0;) ++*n; return OK; }
API R nvmlDeviceGetHandleByIndex_v2(U i, D *d) {
  if (!inited) return UNINIT;
  load();
  if (nth("gpu", -1, (int)i) < 0) return INVALID;
  *d = handle(0, (int)i);
  return asked(__func__, (int)i);
}
static R find(const char *key, const char *want, D *d) {
  char b[96];
  for (int i = 0; i < nrec; i++) {
    if (!is(i, "gpu") && !is(i, "mig")) continue;
    if (!strcmp(key, "uuid")) uuid_of(i, b, sizeof b); else if (!field(i, key, b, sizeof b)) continue;
    if (!strcasecmp(b, want)) { *d = handle(is(i, "mig"), position(i)); return OK; }
  }
  return NOTFOUND;
}
API R nvmlDeviceGetHandleByUUID(const char *u, D *d) { SYSTEM(); return find("uuid", u, d); }
API R nvmlDeviceGetHandleByPciBusId_v2(const char *u, D *d) { SYSTEM(); return find("bus", u, d); }
API R nvmlDeviceGetName(D d, char *v, U n) { ENTER(d); return str(r, "name", v, n, "NVIDIA GPU"); }
API R nvmlDeviceGetUUID(D d, char *v, U n) {
  ENTER(d);
  char u[96];
  uuid_of(r, u, sizeof u);
  return put(v, n, u);
}
API R nvmlDeviceGetSerial(D d, char *v, U n) {
  ENTER(d);
  char b[64];
  return field(r, "serial", b, sizeof b) ? put(v, n, b) : UNSUPPORTED;
}
API R nvmlDeviceGetIndex(D d, U *v) { ENTER(d); *v = (U)position(r); return OK; }
API R nvmlDeviceGetMinorNumber(D d, U *v) { ENTER(d); *v = (U)position(r); return OK; }
API R nvmlDeviceGetCudaComputeCapability(D d, int *a, int *b) {
  ENTER(d);
  char c[16];
  if (!field(r, "cc", c, sizeof c)) return UNSUPPORTED;
  return sscanf(c, "%d.%d", a, b) == 2 ? OK : 999;
}
typedef struct { char legacy[16]; U domain, bus, device, id, sub; char bus_id[32]; } Pci;
API R nvmlDeviceGetPciInfo_v3(D d, Pci *p) {
  ENTER(d);
  char b[32];
  memset(p, 0, sizeof *p);
  str(r, "bus", b, sizeof b, "00000000:01:00.0");
  sscanf(b, "%x:%x:%x", &p->domain, &p->bus, &p->device);
  snprintf(p->legacy, sizeof p->legacy, "%04X:%02X:%02X.0", p->domain & 0xffff, p->bus & 0xff,
           p->device & 0xff);
  snprintf(p->bus_id, sizeof p->bus_id, "%s", b);
  p->id = (U)num(r, "pciid", 0x268410de);
  return OK;
}

/* ---- readings ---- */
#define READING(name, key) API R name(D d, U *v) { ENTER(d); return reading(r, key, v); }
#define SETTING(name, key, fallback)                                                                         \
  API R name(D d, U *v) {                                                                                    \
    ENTER(d);                                                                                                \
    *v = (U)num(r, key, fallback);                                                                           \
    return OK;                                                                                               \
  }
READING(nvmlDeviceGetArchitecture, "arch")
READING(nvmlDeviceGetFanSpeed, "fan")
READING(nvmlDeviceGetPowerUsage, "power")
READING(nvmlDeviceGetEnforcedPowerLimit, "limit")
READING(nvmlDeviceGetPowerManagementLimit, "limit")
READING(nvmlDeviceGetMemoryBusWidth, "buswidth")
READING(nvmlDeviceGetCurrPcieLinkGeneration, "pciegen")
READING(nvmlDeviceGetCurrPcieLinkWidth, "pciewidth")
READING(nvmlDeviceGetMaxPcieLinkGeneration, "pciegen")
READING(nvmlDeviceGetMaxPcieLinkWidth, "pciewidth")
READING(nvmlDeviceGetGpuInstanceId, "gi")
READING(nvmlDeviceGetComputeInstanceId, "ci")
SETTING(nvmlDeviceGetBrand, "brand", 5)
SETTING(nvmlDeviceGetComputeMode, "mode", 0)
SETTING(nvmlDeviceGetPersistenceMode, "persistence", 0)
SETTING(nvmlDeviceGetDisplayActive, "display", 0)
SETTING(nvmlDeviceGetDisplayMode, "display", 0)
API R nvmlDeviceGetMaxClockInfo(D d, U kind, U *v) {
  ENTER(d);
  return kind == 2 ? reading(r, "memclock", v) : reading(r, "smclock", v);
}
API R nvmlDeviceGetTemperature(D d, U sensor, U *v) { ENTER(d); (void)sensor; return reading(r, "temp", v); }
typedef struct { U version, sensor; int temp; } Temp;
API R nvmlDeviceGetTemperatureV(D d, Temp *t) { ENTER(d); return reading(r, "temp", (U *)&t->temp); }
typedef struct { U gpu, memory; } Util;
API R nvmlDeviceGetUtilizationRates(D d, Util *u) {
  ENTER(d);
  if (is(r, "mig")) return UNSUPPORTED;
  u->memory = (U)num(r, "memutil", 0);
  return reading(r, "util", &u->gpu);
}
typedef struct { U version, value; } Mode;
API R nvmlDeviceGetAddressingMode(D d, Mode *m) { ENTER(d); return reading(r, "addressing", &m->value); }
API R nvmlDeviceGetNvLinkState(D d, U link, U *v) {
  ENTER(d);
  if ((long)link >= num(r, "nvlinks", 0)) return UNSUPPORTED;
  *v = 1;
  return OK;
}
typedef struct { U64 total, free, used; } Mem;
typedef struct { U version; U64 total, reserved, free, used; } Mem2;
static R memory(int r, Mem2 *m) {
  char b[32];
  Proc p[128];
  if (!field(r, "total", b, sizeof b)) return UNSUPPORTED;
  m->total = (U64)num(r, "total", 0) * MIB;
  m->reserved = (U64)num(r, "reserved", 0) * MIB;
  m->used = (U64)num(r, "used", 0) * MIB;
  int n = held(r, p, 128);
  for (int i = 0; i < n && i < 128; i++) m->used += p[i].used;
  m->free = m->total > m->used + m->reserved ? m->total - m->used - m->reserved : 0;
  return OK;
}
/* The first version has no `reserved`: there that part counts as used. */
API R nvmlDeviceGetMemoryInfo(D d, Mem *m) {
  ENTER(d);
  Mem2 x;
  R e = memory(r, &x);
  if (e) return e;
  *m = (Mem){x.total, x.free, x.total - x.free};
  return OK;
}
API R nvmlDeviceGetMemoryInfo_v2(D d, Mem2 *m) {
  ENTER(d);
  return m->version != 0x02000028 ? BADVERSION : memory(r, m);
}

/* ---- processes ---- */
static R processes(int r, const char *kind, U *n, Proc *out) {
  Proc live[128];
  int mine = 0, have = strcmp(kind, "proc") ? 0 : held(r, live, 128);
  if (have > 128) have = 128;
  while (is(r, "gpu") && nth(kind, card(r), mine) >= 0) mine++;
  U room = *n;
  *n = (U)(mine + have);
  if (*n > room) return SMALL;
  for (int i = 0; out && i < mine; i++) {
    int q = nth(kind, card(r), i);
    long used = num(q, "used", -1);
    out[i] = (Proc){(U)num(q, "pid", 1), used < 0 ? ~0ULL : (U64)used * MIB, (U)num(q, "gi", -1),
                    (U)num(q, "ci", -1)};
  }
  if (out) memcpy(out + mine, live, sizeof *live * (size_t)have);
  return OK;
}
API R nvmlDeviceGetComputeRunningProcesses_v3(D d, U *n, Proc *p) {
  ENTER(d);
  return processes(r, "proc", n, p);
}
API R nvmlDeviceGetGraphicsRunningProcesses_v3(D d, U *n, Proc *p) {
  ENTER(d);
  return processes(r, "graphics", n, p);
}

/* ---- MIG ---- */
API R nvmlDeviceGetMigMode(D d, U *now, U *next) {
  ENTER(d);
  char b[8];
  if (!field(r, "mig", b, sizeof b)) return UNSUPPORTED;
  *now = *next = !strcmp(b, "on");
  return OK;
}
API R nvmlDeviceGetMaxMigDeviceCount(D d, U *n) {
  ENTER(d);
  char b[8];
  *n = field(r, "mig", b, sizeof b) ? 7 : 0;
  return OK;
}
API R nvmlDeviceGetMigDeviceHandleByIndex(D d, U i, D *out) {
  ENTER(d);
  int m = nth("mig", position(r), (int)i);
  if (m < 0) return NOTFOUND;
  *out = handle(1, position(m));
  return OK;
}
API R nvmlDeviceIsMigDeviceHandle(D d, U *v) { ENTER(d); *v = (U)is(r, "mig"); return OK; }
API R nvmlDeviceGetDeviceHandleFromMigDeviceHandle(D d, D *out) {
  ENTER(d);
  if (!is(r, "mig")) return INVALID;
  *out = handle(0, card(r));
  return OK;
}
