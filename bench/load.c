/*
 * load: the client in front of the proxy under test, and its clock.
 *
 *     load --target HOST:PORT --hellos FILE --count N --expect BYTES [--concurrency C | --rate R]
 *          [--upload BYTES] [--pings K] [--ping-bytes P] [--hold [--words W --word-rate V --speakers U]] [--refused]
 *          [--sources S] [--seed N] [--tell] [--timeout SECONDS]
 *
 * One epoll loop, no TLS. A connection connects, sends one of the canned hellos (and --upload bytes after it),
 * reads exactly --expect bytes, and then
 *
 *     waits for the proxy's FIN and closes     (the default: the origin ends the connection first), or
 *     makes K round trips of P bytes, closes   (--pings: the samples are round trips, not connections), or
 *     stays open until standard input ends     (--hold: prints "held N" once all are open).
 *
 * While connections are held, each line on standard input lets U of them, evenly picked, speak: W round trips of P
 * bytes in all, V a second, one after another; then it prints "spoke N". The samples are those of the last time.
 *
 * With --refused a connection is ok only if the proxy ends it, by FIN or by RST, and sends nothing but at most a TLS
 * alert.
 *
 * With --concurrency the loop is closed: a new connection starts when one ends. With --rate it is open:
 * connections are due R a second, at random (exponential gaps, from the seed), whether or not earlier ones
 * have ended, and the latency of each counts from the moment it was due. A proxy that stalls is so charged for
 * every connection that should have been made meanwhile (no coordinated omission), and a slow one for the
 * queue that a burst leaves before it.
 *
 * Connections go out from S source addresses, 127.1.0.1 and up, in turn: no run is short of ports.
 *
 * Hellos: the file is a sequence of (32-bit little-endian length, bytes), used in turn.
 *
 * The result is one JSON object on standard output. A connection is "ok" only when every byte came, the
 * bytes were right, and the end was orderly; any other is an error, counted by kind. Answers longer than the
 * buffer are counted but not looked at (MSG_TRUNC), so that a client that reads gigabytes costs next to nothing.
 * With --tell every latency is in it, sorted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { EVENTS = 256, BUFFER = 256 * 1024, MAX_HELLOS = 64, OPEN_LOOP_SLOTS = 4096 };
enum { ALERT = 0x15, ALERT_BYTES = 7, WORD_TIMEOUT_MS = 5000 };

enum error { E_CONNECT, E_SEND, E_RESET, E_SHORT, E_LONG, E_WRONG, E_TIMEOUT, E_KINDS };
static const char *const error_names[E_KINDS] = {
    "connect", "send", "reset", "cut_short", "too_long", "wrong_bytes", "timeout",
};

struct connection {
    int fd; /* -1: the slot is free */
    uint32_t interest;
    const struct hello *hello;
    size_t hello_sent;
    uint64_t upload_left;
    uint64_t received;
    uint64_t pings_left;
    uint64_t ping_received;
    uint64_t since; /* when the connection was due, or when the ping left */
};

struct hello {
    uint32_t length;
    char *bytes;
};

static struct {
    struct sockaddr_in target;
    uint64_t count, concurrency, expect, upload, pings, ping_bytes, words, speakers, sources, seed, timeout;
    double rate, word_rate;
    int hold, refused, tell;
} want = {.concurrency = 1, .ping_bytes = 256, .speakers = 1, .sources = 1, .seed = 1, .timeout = 60, .word_rate = 1};

static struct hello hellos[MAX_HELLOS];
static size_t hello_count;
static struct connection *slots;
static struct connection **free_slots;
static size_t free_count, slot_count;
static int epoll_fd;
static char pattern[BUFFER], scratch[BUFFER];
static uint64_t started, finished, ok, held, bytes, errors[E_KINDS];
static uint64_t *samples;
static size_t sample_count;

/* ---------------------------------------------------------------- small tools */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void watch(struct connection *c, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.ptr = c};
    if (c->interest == interest)
        return;
    if (epoll_ctl(epoll_fd, c->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
    c->interest = interest;
}

/* ---------------------------------------------------------------- the life of a connection */

static void release(struct connection *c)
{
    if (want.hold && c->received == want.expect)
        held--;
    close(c->fd);
    c->fd = -1;
    free_slots[free_count++] = c;
    finished++;
}

static void fail(struct connection *c, enum error kind)
{
    errors[kind]++;
    release(c);
}

static void succeed(struct connection *c)
{
    if (want.pings == 0 && !want.hold)
        samples[sample_count++] = now_ns() - c->since;
    ok++;
    release(c);
}

/* The proxy ended the connection without an orderly end. */
static void broke(struct connection *c, enum error kind)
{
    if (want.refused && (errno == ECONNRESET || errno == EPIPE))
        succeed(c);
    else
        fail(c, errno == ECONNREFUSED ? E_CONNECT : kind);
}

/* Sends what is left of the hello, or a buffer of what is left of the upload: reading has its turn between two of them.
 * Returns 0 when the connection is over. */
static int flush(struct connection *c)
{
    int in_hello = c->hello_sent < c->hello->length;
    const char *from = in_hello ? c->hello->bytes + c->hello_sent : pattern;
    size_t size = in_hello ? c->hello->length - c->hello_sent : (c->upload_left < BUFFER ? c->upload_left : BUFFER);
    ssize_t n = size > 0 ? send(c->fd, from, size, MSG_NOSIGNAL) : 0;

    if (n < 0 && errno != EAGAIN) {
        broke(c, E_SEND);
        return 0;
    }
    if (n > 0 && in_hello)
        c->hello_sent += (size_t)n;
    else if (n > 0)
        c->upload_left -= (uint64_t)n;
    watch(c, c->hello_sent < c->hello->length || c->upload_left > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return 1;
}

/* The next round trip, or the end of them. */
static void ping(struct connection *c)
{
    if (c->pings_left == 0) {
        succeed(c);
        return;
    }
    c->pings_left--;
    c->ping_received = 0;
    c->since = now_ns();
    if (send(c->fd, pattern, want.ping_bytes, MSG_NOSIGNAL) != (ssize_t)want.ping_bytes)
        fail(c, E_SEND);
}

static void pong(struct connection *c, uint64_t n)
{
    c->ping_received += n;
    if (c->ping_received > want.ping_bytes) {
        fail(c, E_LONG);
    } else if (c->ping_received == want.ping_bytes) {
        samples[sample_count++] = now_ns() - c->since;
        ping(c);
    }
}

static void ended(struct connection *c)
{
    if (c->received == want.expect && c->upload_left == 0 && !want.hold && want.pings == 0)
        succeed(c);
    else
        fail(c, E_SHORT);
}

/* n bytes of the answer came. */
static void took(struct connection *c, uint64_t n)
{
    int looked_at = want.expect <= BUFFER;
    if (c->received + n > want.expect) {
        fail(c, E_LONG);
        return;
    }
    if (looked_at && memcmp(scratch, pattern + c->received, n) != 0) {
        fail(c, E_WRONG);
        return;
    }
    c->received += n;
    bytes += n;
    if (c->received < want.expect)
        return;
    if (want.hold)
        held++;
    if (want.pings > 0)
        ping(c);
}

/* Bytes that are no answer, where a refusal is expected. */
static void took_alert(struct connection *c, ssize_t n)
{
    if (n > ALERT_BYTES || scratch[0] != ALERT)
        fail(c, E_WRONG);
}

/* One read an event: what is left in the socket brings the next event, and most often nothing is. */
static void readable(struct connection *c)
{
    int in_answer = c->received < want.expect;
    int flags = in_answer && want.expect > BUFFER ? MSG_TRUNC : 0;
    ssize_t n = recv(c->fd, scratch, BUFFER, flags);

    if (n == 0)
        ended(c);
    else if (n < 0 && errno != EAGAIN)
        broke(c, E_RESET);
    else if (n > 0 && want.refused)
        took_alert(c, n);
    else if (n > 0 && want.pings > 0 && !in_answer)
        pong(c, (uint64_t)n);
    else if (n > 0)
        took(c, (uint64_t)n);
}

static void start(uint64_t due)
{
    int one = 1;
    struct connection *c = free_slots[--free_count];
    struct sockaddr_in source = {.sin_family = AF_INET};

    source.sin_addr.s_addr = htonl(0x7f010001u + (uint32_t)(started % want.sources));
    *c = (struct connection){
        .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0),
        .hello = &hellos[started % hello_count],
        .upload_left = want.upload,
        .pings_left = want.pings,
        .since = due,
    };
    started++;
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (want.pings > 0)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0)
        die("bind");
    if (connect(c->fd, (struct sockaddr *)&want.target, sizeof want.target) < 0 && errno != EINPROGRESS) {
        fail(c, E_CONNECT);
        return;
    }
    /* On loopback the handshake is over by now, and this saves a turn of the loop; elsewhere it is EAGAIN. */
    flush(c);
}

static void advance(struct connection *c, uint32_t events)
{
    if ((events & EPOLLOUT) && !(events & EPOLLERR) && !flush(c))
        return;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        readable(c);
}

/* ---------------------------------------------------------------- the two loops */

static uint64_t next_due;

/* Chance from the seed (splitmix64): every proxy meets the same arrivals. */
static double chance(void)
{
    uint64_t z = want.seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0; /* 53 bits, in [0, 1) */
}

static uint64_t gap(void)
{
    return (uint64_t)(-log(1 - chance()) * 1e9 / want.rate);
}

static void start_what_is_due(int timer_fd)
{
    if (want.rate == 0) {
        while (started < want.count && started - finished - held < want.concurrency)
            start(now_ns());
        return;
    }
    for (; started < want.count && free_count > 0 && next_due <= now_ns(); next_due += gap())
        start(next_due);
    if (started < want.count) {
        struct itimerspec when = {.it_value = {(time_t)(next_due / 1000000000u), (long)(next_due % 1000000000u)}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
    }
}

static void turn(int timer_fd)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(epoll_fd, events, EVENTS, 200);
    if (n < 0 && errno != EINTR)
        die("epoll_wait");
    for (int i = 0; i < n; i++) {
        uint64_t ticks;
        if (events[i].data.ptr)
            advance(events[i].data.ptr, events[i].events);
        else if (read(timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
            die("timerfd");
    }
}

static int complete(void)
{
    return held + finished >= want.count;
}

/* Returns the seconds that the work took. */
static double run(void)
{
    int timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event tick = {.events = EPOLLIN, .data.ptr = NULL};
    uint64_t begin = now_ns(), deadline = begin + want.timeout * 1000000000u;

    if (timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &tick) < 0)
        die("timerfd");
    next_due = begin;
    while (!complete() && now_ns() < deadline) {
        start_what_is_due(timer_fd);
        turn(timer_fd);
    }
    return (double)(now_ns() - begin) / 1e9;
}

/* One round trip on a connection that is held. Returns whether all of it came. */
static int word(struct connection *c)
{
    uint64_t since = now_ns(), came = 0;
    if (c->fd < 0 || send(c->fd, pattern, want.ping_bytes, MSG_NOSIGNAL) != (ssize_t)want.ping_bytes)
        return 0;
    while (came < want.ping_bytes) {
        struct pollfd readable = {.fd = c->fd, .events = POLLIN};
        ssize_t n = poll(&readable, 1, WORD_TIMEOUT_MS) == 1 ? recv(c->fd, scratch, want.ping_bytes - came, 0) : 0;
        if (n <= 0)
            return 0;
        came += (uint64_t)n;
    }
    samples[sample_count++] = now_ns() - since;
    return 1;
}

static void speak(void)
{
    uint64_t begin = now_ns(), spoke = 0;
    sample_count = 0;
    for (uint64_t i = 0; i < want.words; i++) {
        uint64_t due = begin + (uint64_t)((double)i * 1e9 / want.word_rate);
        struct timespec when = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
        spoke += (uint64_t)word(&slots[i % want.speakers * (slot_count / want.speakers)]);
    }
    printf("spoke %" PRIu64 "\n", spoke);
    fflush(stdout);
}

/* Keeps the connections until standard input ends, then closes those that are still whole. */
static void hold_open(void)
{
    char byte;
    printf("held %" PRIu64 "\n", held);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        speak();
    for (size_t i = 0; i < slot_count; i++) {
        struct connection *c = &slots[i];
        if (c->fd < 0)
            continue;
        if (c->received == want.expect && recv(c->fd, &byte, 1, MSG_PEEK) < 0 && errno == EAGAIN)
            succeed(c);
        else
            fail(c, E_SHORT);
    }
}

/* ---------------------------------------------------------------- command line and result */

static void read_hellos(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint32_t length;
    if (!file)
        die(path);
    while (hello_count < MAX_HELLOS && fread(&length, sizeof length, 1, file) == 1) {
        struct hello *h = &hellos[hello_count++];
        h->length = length;
        h->bytes = malloc(length);
        if (!h->bytes || fread(h->bytes, 1, length, file) != length)
            die(path);
    }
    fclose(file);
}

static void parse_target(char *text)
{
    char *colon = strrchr(text, ':');
    if (colon)
        *colon = 0;
    want.target.sin_family = AF_INET;
    if (!colon || inet_pton(AF_INET, text, &want.target.sin_addr) != 1) {
        fprintf(stderr, "load: --target wants IPV4:PORT\n");
        exit(2);
    }
    want.target.sin_port = htons((uint16_t)atoi(colon + 1));
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"target", 1, NULL, 't'},     {"hellos", 1, NULL, 'f'},  {"count", 1, NULL, 'n'},
        {"concurrency", 1, NULL, 'c'}, {"rate", 1, NULL, 'r'},    {"expect", 1, NULL, 'e'},
        {"upload", 1, NULL, 'u'},     {"pings", 1, NULL, 'p'},   {"ping-bytes", 1, NULL, 'b'},
        {"hold", 0, NULL, 'h'},       {"sources", 1, NULL, 's'}, {"timeout", 1, NULL, 'w'},
        {"words", 1, NULL, 'W'},      {"word-rate", 1, NULL, 'V'}, {"speakers", 1, NULL, 'U'},
        {"refused", 0, NULL, 'x'},     {"seed", 1, NULL, 'S'},     {"tell", 0, NULL, 'T'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 0;
        switch (option) {
        case 't': parse_target(optarg); break;
        case 'f': read_hellos(optarg); break;
        case 'n': want.count = number; break;
        case 'c': want.concurrency = number; break;
        case 'r': want.rate = strtod(optarg, NULL); break;
        case 'e': want.expect = number; break;
        case 'u': want.upload = number; break;
        case 'p': want.pings = number; break;
        case 'b': want.ping_bytes = number; break;
        case 'h': want.hold = 1; break;
        case 'x': want.refused = 1; break;
        case 'W': want.words = number; break;
        case 'V': want.word_rate = strtod(optarg, NULL); break;
        case 'U': want.speakers = number; break;
        case 's': want.sources = number; break;
        case 'S': want.seed = number; break;
        case 'T': want.tell = 1; break;
        case 'w': want.timeout = number; break;
        default: exit(2);
        }
    }
    if (!want.target.sin_port || !hello_count || !want.count || !want.concurrency || !want.sources || !want.speakers ||
        (want.hold && want.speakers > want.count) || want.word_rate <= 0 || want.ping_bytes > BUFFER) {
        fprintf(stderr, "load: --target, --hellos and --count are needed, and numbers that make sense\n");
        exit(2);
    }
}

static void allocate(void)
{
    slot_count = want.hold ? want.count : want.rate > 0 ? OPEN_LOOP_SLOTS : want.concurrency;
    slots = calloc(slot_count, sizeof *slots);
    free_slots = calloc(slot_count, sizeof *free_slots);
    samples = calloc(want.pings > 0 ? want.count * want.pings : want.count + want.words, sizeof *samples);
    if (!slots || !free_slots || !samples)
        die("calloc");
    for (size_t i = slot_count; i-- > 0;) {
        slots[i].fd = -1;
        free_slots[free_count++] = &slots[i];
    }
    for (size_t i = 0; i < BUFFER; i++)
        pattern[i] = (char)(i % 251);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_us(double q)
{
    return sample_count ? (double)samples[(size_t)(q * (double)(sample_count - 1))] / 1e3 : 0;
}

static void print_result(double seconds)
{
    const char *comma = "";
    uint64_t unfinished = want.count - finished;

    errors[E_TIMEOUT] += unfinished;
    qsort(samples, sample_count, sizeof *samples, by_size);
    printf("{\"asked\": %" PRIu64 ", \"ok\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"errors\": {",
           want.count, ok, bytes, seconds);
    for (int kind = 0; kind < E_KINDS; kind++) {
        if (errors[kind]) {
            printf("%s\"%s\": %" PRIu64, comma, error_names[kind], errors[kind]);
            comma = ", ";
        }
    }
    printf("}, \"samples\": %zu, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f",
           sample_count, quantile_us(0.5), quantile_us(0.9), quantile_us(0.99), quantile_us(0.999), quantile_us(1));
    if (want.tell) {
        printf(", \"latencies_us\": [");
        for (size_t i = 0; i < sample_count; i++)
            printf("%s%.1f", i ? ", " : "", (double)samples[i] / 1e3);
        printf("]");
    }
    printf("}\n");
}

int main(int argc, char **argv)
{
    double seconds;

    parse(argc, argv);
    allocate();
    epoll_fd = epoll_create1(0);
    seconds = run();
    if (want.hold)
        hold_open();
    print_result(seconds);
    return 0;
}
